"""One policy in a process of its own: ``python -m sglang_nightjar.policy.worker FD PARENT``.

Whatever a policy does (raise, hang, allocate without end, crash the interpreter) ends this process and nothing else.
The policy process sends batches of wire frames that it has checked, and counts the time until each is answered.
"""

import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

import orjson

from sglang_nightjar.core import wire
from sglang_nightjar.core.messages import Arrivals, Hello, Telemetry
from sglang_nightjar.core.policy import Decision, Policy, check
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy import loader, pipe
from sglang_nightjar.policy.saved_state import SavedState

#: Given back when memory runs out, so that there is some left to say so.
_BALLAST = 1 << 20


class Worker:
    """Drives one policy; every answer of it is checked."""

    def __init__(self, policy: Policy, saved: SavedState | None = None) -> None:
        self.policy, self.saved = policy, saved
        self.candidates: dict[str, tuple[int, ...]] = {}

    def batch(self, payload: bytes) -> bytes:
        """Feed the messages of a batch; returns the decisions as JSON rows, each with the record that led to it.

        A row: sender, gammas, residency, trim, reason, at_ns, batch size, γ; the last three are 0, null, null after a
        hello.
        """
        rows: list[tuple[Any, ...]] = []
        for frame in pipe.messages_of(payload):
            body = orjson.loads(frame)
            kind = body["type"]
            if kind == "telemetry":
                sender = body["sender"]
                for row in body["records"]:
                    row[-1] = tuple(row[-1])
                    record = Telemetry._make(row)
                    decision = self.policy.telemetry(sender, record)
                    if decision is not None:
                        self._check(sender, decision)
                        rows.append((*_plain(sender, decision), record.at_ns, record.batch_size, record.gamma))
            elif kind == "goodbye":
                self.policy.goodbye(body["sender"])
                self.candidates.pop(body["sender"], None)
            else:
                rows += self._other(frame)
        return orjson.dumps(rows)

    def _other(self, frame: bytes) -> list[tuple[Any, ...]]:
        message = wire.decode(frame)
        if isinstance(message, Hello):
            self.candidates[message.sender] = message.candidates
            if self.saved is not None:
                self.saved.take_up(message)
            decision = self.policy.hello(message)
            if decision is not None:
                self._check(message.sender, decision)
                return [(*_plain(message.sender, decision), 0, None, None)]
        elif isinstance(message, Arrivals):
            self.policy.arrivals(message)
        return []

    def _check(self, sender: str, decision: object) -> None:
        if (wrong := check(decision, self.candidates[sender])) is not None:
            raise Nonsense(wrong)


class Nonsense(Exception):
    """A policy returned something that is no decision."""


def _plain(sender: str, decision: Decision) -> tuple[Any, ...]:
    return sender, decision.gammas, decision.residency, decision.trim, decision.reason


def _rehearse(kind_of: Any) -> None:
    """Let another instance meet a scheduler that does not exist, so that what can't work fails before it counts."""
    policy = kind_of()
    hello = Hello(
        "rehearsal/dp0/0", 1, "rehearsal", 0, 1, 1, "target", "draft", "none", (0, 1, 3), 3, 64, 10_000, 11_000, 1_000
    )
    worker = Worker(policy)
    worker.candidates[hello.sender] = hello.candidates
    decisions = [policy.hello(hello)]
    policy.arrivals(Arrivals("rehearsal/tokenizer/0", 1, "rehearsal", 1, 1, 1, 10))
    for index in range(1, 65):
        size, gamma = (index * 7) % 64 + 1, hello.candidates[index % 3]
        record = Telemetry(
            index, index * 10_000_000, 10_000_000, size, gamma, size, running=size, kv_used=size, kv_capacity=10_000,
            accepted=(0,) * gamma,
        )  # fmt: skip
        decisions.append(policy.telemetry(hello.sender, record))
    for decision in decisions:
        if decision is not None:
            worker._check(hello.sender, decision)
    orjson.dumps(policy.estimates())
    policy.goodbye(hello.sender)


def serve(connection: socket.socket) -> None:
    """Answer frames until the policy process closes its end. Exceptions of the policy come out of here."""
    worker: Worker | None = None
    # What was saved is said from the thread that wrote it.
    lock = threading.Lock()

    def send(kind: bytes, payload: bytes) -> None:
        with lock:
            connection.sendall(pipe.frame(kind, payload))

    def saved() -> None:
        with contextlib.suppress(OSError):
            send(pipe.SAVED, b"null")

    for kind, payload in pipe.receive(connection):
        if kind == pipe.INIT:
            spec = orjson.loads(payload)
            _limit(spec.pop("memory_mb"))
            logging.getLogger().setLevel(spec.pop("log_level"))
            folder, cold = spec.pop("state"), spec.pop("cold")

            def make(spec: dict[str, Any] = spec) -> Policy:
                return loader.make(**spec)

            policy = make()
            _rehearse(make)
            worker = Worker(policy, SavedState(Path(folder), make, policy, cold) if folder else None)
            # What is here stays: looking through it for garbage would take milliseconds from plans.
            gc.collect()
            gc.freeze()
            params = policy.params if policy.params is not None else {}
            answer = orjson.dumps(
                {
                    "name": policy.name,
                    "version": str(policy.version),
                    "params": params,
                    "estimates_of": str(policy.estimates_of),
                },
                option=orjson.OPT_NON_STR_KEYS,
                default=str,
            )
            send(pipe.READY, answer)
        elif kind == pipe.BATCH and worker is not None:
            send(pipe.DONE, worker.batch(payload))
        elif kind == pipe.ESTIMATES and worker is not None:
            answer = orjson.dumps(worker.policy.estimates(), option=orjson.OPT_NON_STR_KEYS)
            send(pipe.ESTIMATES, answer)
        elif kind == pipe.SAVE and worker is not None and worker.saved is not None:
            worker.saved.save(saved)


def _limit(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def _die_with_parent(parent: int) -> None:
    # A policy in an endless loop would never see that its connection is closed.
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _explain(error: BaseException) -> str:
    """One line: what was raised and where in the policy."""
    if isinstance(error, ConfigError | Nonsense):
        return str(error)
    if isinstance(error, MemoryError):
        return "it used more memory than policy.memory_mb allows"
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (__file__, loader.__file__)]
    return f"{text} ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else text


def main(argv: list[str]) -> NoReturn:
    """Serve one policy on the inherited socket ``argv[0]``, as long as process ``argv[1]`` lives."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Whoever ends all processes of the server at once: our parent asks for the state first, then it ends us.
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s nightjar policy %(levelname)s: %(message)s", stream=sys.stderr)
    _die_with_parent(int(argv[1]))
    connection = socket.socket(fileno=int(argv[0]))
    ballast: bytearray | None = bytearray(_BALLAST)
    status = 0
    try:
        serve(connection)
    except (BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as error:
        ballast = None
        status = 1
        said = _explain(error)
        error.__traceback__ = None
        with contextlib.suppress(OSError, MemoryError):
            connection.sendall(pipe.frame(pipe.FAILED, orjson.dumps({"error": said})))
    del ballast
    sys.stderr.flush()
    # Not sys.exit: threads that a policy started must not keep the process.
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
