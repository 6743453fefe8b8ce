"""The policy process' side of one worker: starting it, feeding it, and noticing when it fails or hangs."""

import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson

from sglang_nightjar.policy import pipe, saved_state
from sglang_nightjar.policy.config_file import PolicySection

START_TIMEOUT = 10.0
#: Batches that a worker may have in hand. What comes meanwhile waits here, and goes as one batch.
_IN_HAND = 3
_MAX_BATCH = 256
_MAX_WAITING = 20_000
#: Seconds that anybody waits for a state to be written.
_SAVE_PATIENCE = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy decided for a scheduler, and the record that led to it (0, None, None after a hello)."""

    sender: str
    gammas: tuple[tuple[int, int | None, int], ...]
    residency: str
    trim: bool
    reason: str
    at_ns: int
    batch_size: int | None
    gamma: int | None


@dataclass(slots=True)
class _Batch:
    sent_at: float
    echoes: list[tuple[str, int]] = field(default_factory=list)


class Host:
    """One policy in its worker.

    Attributes:
        spec: what was asked for.
        name, version, params, estimates_of: what the worker said it is.
        error: why it failed; None while it has not. A failed host stays failed.
        ready: loaded and rehearsed.
        records, decisions: how many it was sent, and made.
        latest: its last decision for each scheduler.
        dropped: frames that it was too slow to take.
    """

    def __init__(self, spec: PolicySection, cold: bool = False) -> None:
        """``cold``: without what it had learnt in an earlier life."""
        self.spec = spec
        self.name, self.version, self.params = spec.name or os.path.basename(spec.path or ""), "", dict(spec.params)
        self.error: str | None = None
        self.ready = False
        self.records = self.decisions = self.dropped = 0
        self.latest: dict[str, Verdict] = {}
        self.estimates: dict[str, Any] = {}
        self.estimates_of = ""
        self.since = time.time()
        self._batches: deque[_Batch] = deque()
        self._sent = self._done = 0
        self._waiting: deque[tuple[bytes, int | None]] = deque()
        self._echoes: list[tuple[str, int]] = []
        self._out = bytearray()
        self._buffer = pipe.Buffer()
        self._started = time.monotonic()
        self._saves_until, self._saved_records = 0.0, 0
        self._state = saved_state.folder_of(spec.state)
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._process: subprocess.Popen[bytes] | None = None
        command = [sys.executable, "-m", "sglang_nightjar.policy.worker", str(theirs.fileno()), str(os.getpid())]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    # A policy is small sums: threads of a numerical library would only take cores and address space.
                    env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **os.environ},
                )
        except OSError as error:
            self._fail(f"its worker can't be started: {error.strerror}")
            return
        init: dict[str, Any] = {n: getattr(spec, n) for n in ("name", "path", "params", "seed", "memory_mb")}
        init |= {"state": str(self._state) if self._state else None, "cold": cold}
        init["log_level"] = logging.getLogger().getEffectiveLevel()
        try:
            self._send(pipe.INIT, orjson.dumps(init, option=orjson.OPT_NON_STR_KEYS))
        except TypeError as error:
            self._fail(f"params {spec.params!r} can't be handed to its worker: {error}"[:300])

    def fileno(self) -> int:
        """For polling."""
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        """Bytes wait for the socket to take them: poll for writing, then call `flush`."""
        return bool(self._out)

    @property
    def mark(self) -> int:
        """A point in what was offered so far; see `reached`."""
        return self._sent + (len(self._waiting) + _MAX_BATCH - 1) // _MAX_BATCH

    def reached(self, mark: int) -> bool:
        """True when all that was offered before ``mark`` has been worked on."""
        return self._done >= mark

    def offer(self, frame: bytes, records: int | None = None, echo: tuple[str, int] | None = None) -> None:
        """Queue a wire frame. ``echo`` comes out of `receive` when the frame was worked on.

        ``records`` is the number of telemetry records in it; None for what must arrive, as a scheduler's hello must.
        """
        if len(self._waiting) >= _MAX_WAITING:
            self._drop_half()
        self._waiting.append((frame, records))
        if echo is not None:
            self._echoes.append(echo)

    def flush(self) -> None:
        """Send what is queued, as far as the worker keeps up."""
        if self.error is None and self.ready:
            while self._waiting and len(self._batches) < _IN_HAND:
                some = [self._waiting.popleft() for _ in range(min(_MAX_BATCH, len(self._waiting)))]
                self.records += sum(records or 0 for _, records in some)
                self._sent += 1
                self._batches.append(_Batch(time.monotonic(), self._echoes))
                self._echoes = []
                self._send(pipe.BATCH, pipe.batch(frame for frame, _ in some))
        self._write()

    def ask_estimates(self) -> None:
        """Have `estimates` brought up to date, soon."""
        if self.error is None and self.ready and not self._batches and not self._out:
            self._send(pipe.ESTIMATES)

    def ask_save(self) -> None:
        """Have what was learnt since the last time written to disk, soon; see `saving`."""
        if self.error is None and self.ready and self._state is not None and self.records != self._saved_records:
            self._saved_records = self.records
            self._saves_until = time.monotonic() + _SAVE_PATIENCE
            self._send(pipe.SAVE)

    @property
    def saving(self) -> bool:
        """It was asked for, is not done, and is still worth waiting for."""
        return self.error is None and time.monotonic() < self._saves_until

    def save_and_wait(self) -> None:
        """For the end: `ask_save`, and wait until it is done, for a second at most."""
        self.ask_save()
        while self.saving:
            left = max(0.0, self._saves_until - time.monotonic())
            select.select([self._socket], [self._socket] if self._out else [], [], left)
            self._write()
            self.receive()

    def receive(self) -> tuple[list[Verdict], list[tuple[str, int]]]:
        """Decisions since the last call, and the echoes of what has been worked on. Never raises; see `error`."""
        verdicts: list[Verdict] = []
        echoes: list[tuple[str, int]] = []
        while self.error is None:
            try:
                data = self._socket.recv(1 << 18)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._fail(f"its connection broke: {error.strerror}")
                break
            if not data:
                self._fail(self._how_it_ended())
                break
            try:
                for kind, payload in self._buffer.feed(data):
                    self._take(kind, orjson.loads(payload), verdicts, echoes)
            except (ValueError, TypeError, IndexError, KeyError) as error:
                self._fail(f"its worker sent nonsense: {error!r}"[:200])
        return verdicts, echoes

    def check(self, now: float) -> None:
        """Fail the host if its worker has been busy for too long. Call after `receive`."""
        if self.error is not None:
            return
        if not self.ready:
            if now - self._started > START_TIMEOUT:
                self._fail(f"it did not load within {START_TIMEOUT:.0f} s")
        elif self._batches and now - self._batches[0].sent_at > self.spec.timeout:
            self._fail(f"it was busy for more than {self.spec.timeout:g} s (policy.timeout)")

    def lively(self, now: float, within: float) -> bool:
        """It is up, and has nothing in hand for longer than ``within`` seconds."""
        return self.ready and self.error is None and not (self._batches and now - self._batches[0].sent_at > within)

    def forgive(self, seconds: float) -> None:
        """This process itself stood still for so long: don't blame the worker."""
        self._started += seconds
        for waiting in self._batches:
            waiting.sent_at += seconds

    def forget(self, sender: str) -> None:
        """A scheduler is gone."""
        self.latest.pop(sender, None)
        self.offer(orjson.dumps({"type": "goodbye", "sender": sender}))

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket.close()
        self._waiting.clear()

    def _send(self, kind: bytes, payload: bytes = b"") -> None:
        self._out += pipe.frame(kind, payload)
        self._write()

    def _write(self) -> None:
        while self._out and self.error is None:
            try:
                sent = self._socket.send(self._out)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # What it said last, and its exit code, are still to be read.
                self._out.clear()
                return
            del self._out[:sent]

    def _take(self, kind: bytes, body: Any, verdicts: list[Verdict], echoes: list[tuple[str, int]]) -> None:
        if kind == pipe.DONE:
            self._done += 1
            echoes += self._batches.popleft().echoes
            for sender, gammas, *rest in body:
                verdict = Verdict(sender, tuple((first, last, gamma) for first, last, gamma in gammas), *rest)
                self.latest[sender] = verdict
                self.decisions += 1
                verdicts.append(verdict)
        elif kind == pipe.READY:
            self.name, self.version, self.params = body["name"], body["version"], body["params"]
            self.estimates_of = body["estimates_of"]
            self.ready = True
        elif kind == pipe.ESTIMATES:
            self.estimates = body
        elif kind == pipe.SAVED:
            self._saves_until = 0.0
        elif kind == pipe.FAILED:
            self._fail(str(body["error"]))

    def _how_it_ended(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            return "its worker closed the connection"
        return f"its worker was ended by signal {-code}" if code < 0 else f"its worker ended with exit code {code}"

    def _fail(self, why: str) -> None:
        self.error = self.error or why
        if self._process is not None:
            self._process.kill()

    def _drop_half(self) -> None:
        """Of what waits, drop the older half, but for what must arrive."""
        half = _MAX_WAITING // 2
        old = [self._waiting.popleft() for _ in range(half)]
        kept = [item for item in old if item[1] is None]
        self.dropped += half - len(kept)
        self._waiting.extendleft(reversed(kept))
