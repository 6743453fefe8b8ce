"""A policy process as an agent sees it, in the hands of a test: a bound ROUTER that sends what the test says."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.messages import Hello, Message, Plan, Telemetry, TelemetryBatch
from sglang_nightjar.core.wire import decode, encode

_ids = iter(range(1, 1_000_000))


def make_plan(gamma: int | None = None, **changes: Any) -> Plan:
    """A plan with a new id: ``gamma`` for all batch sizes, valid for a minute, unless ``changes`` say otherwise."""
    fields: dict[str, Any] = {
        "plan_id": next(_ids),
        "policy": "test",
        "policy_version": "1",
        "gammas": constant(0 if gamma is None else gamma),
        "residency": "device",
        "trim": False,
        "reason": "a test",
        "valid_for_ms": 60_000,
    }
    return Plan(**fields | changes)


class Router:
    """Bound at ``path``; use it in a ``with`` block. Its own thread receives, and repeats the plan as a sign of life.

    Attributes:
        endpoint: for agents.
        received: all messages, oldest first.
    """

    def __init__(self, path: Path, repeat_s: float = 0.1):
        self.endpoint = f"ipc://{path}"
        self.received: list[Message] = []
        self._repeat_s = repeat_s
        self._outbox: list[bytes] = []
        self._peers: set[bytes] = set()
        self._ranks: dict[bytes, int] = {}
        self._repeated: Callable[[], Plan] | Plan | None = None
        self._by_rank: dict[int, Plan] = {}
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Router":
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(self.endpoint)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(10)
        self._socket.close(0)
        self._context.term()

    def repeat(self, plan: Callable[[], Plan] | Plan | None) -> None:
        """Send ``plan``, or a new one from it, to everybody now and then; None: fall silent."""
        self._repeated = plan

    def repeat_to(self, plans: dict[int, Plan]) -> None:
        """Like `repeat`, with a plan for each DP rank."""
        self._by_rank = plans
        self._repeated = None

    def send(self, *frames: bytes) -> None:
        """Send ``frames`` to everybody who has spoken."""
        with self._lock:
            self._outbox += frames

    def records(self) -> list[Telemetry]:
        return [record for m in list(self.received) if isinstance(m, TelemetryBatch) for record in m.records]

    def of(self, kind: type) -> list[Any]:
        return [message for message in list(self.received) if isinstance(message, kind)]

    def wait_for(self, what: Callable[[], Any], timeout_s: float = 10.0) -> Any:
        """The first true value of ``what()``. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing after {timeout_s} s; received {self.received[-5:]}")
            time.sleep(0.005)
        return found

    def wait_for_hello(self, timeout_s: float = 10.0) -> Hello:
        return self.wait_for(lambda: self.of(Hello), timeout_s)[-1]

    def _run(self) -> None:
        next_repeat = 0.0
        while not self._ends.is_set():
            if self._socket.poll(5):
                peer, frame = self._socket.recv_multipart()
                self._peers.add(peer)
                message = decode(frame)
                if isinstance(message, Hello):
                    self._ranks[peer] = message.dp_rank
                self.received.append(message)
            with self._lock:
                frames, self._outbox = self._outbox, []
            if self._repeated is not None and time.monotonic() >= next_repeat:
                next_repeat = time.monotonic() + self._repeat_s
                frames.append(encode(self._repeated if isinstance(self._repeated, Plan) else self._repeated()))
            if self._by_rank and time.monotonic() >= next_repeat:
                next_repeat = time.monotonic() + self._repeat_s
                for peer, rank in self._ranks.items():
                    self._socket.send_multipart([peer, encode(self._by_rank[rank])])
            for frame in frames:
                for peer in self._peers:
                    self._socket.send_multipart([peer, frame])
