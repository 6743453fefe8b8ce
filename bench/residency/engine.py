"""One running server in the hands of the bench, which is its policy process: it says when the draft goes and comes."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "test"))

from helpers.router import Router, make_plan

from bench import demo_server
from bench.residency.report import stalls
from sglang_nightjar.core.messages import Residency

#: Where the draft is sent in a cycle, whether with drafts, and what shows that it has arrived. Both rests at γ=0 are
#: among them: what transitions are compared with. The return wants drafts, so that it ends with a real catch-up.
_CYCLE = (
    ("host", False, Residency.OFFLOADED),
    ("device", True, Residency.RESIDENT),
    ("device", False, Residency.PARKED),
)
_REST_S = 0.5


class Engine:
    """Attributes:
    router: the policy process' end of the link.
    url: of the server.
    """

    def __init__(self, router: Router, url: str):
        self.router, self.url = router, url

    def status(self) -> dict[str, Any]:
        """What Nightjar says about the scheduler."""
        with urllib.request.urlopen(f"{self.url}/server_info", timeout=60) as response:
            return json.load(response)["internal_states"][0]["nightjar"]

    def go(self, residency: str, within_s: float = 120.0) -> dict[str, Any]:
        """γ=0 and the draft there; the status once it is. Raises TimeoutError."""
        self.router.repeat(make_plan(0, residency=residency))
        wanted = "OFFLOADED" if residency == "host" else "PARKED"
        deadline = time.monotonic() + within_s
        while (seen := self.status())["residency"] != wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the draft is {seen['residency']}, not {wanted}")
            time.sleep(0.02)
        return seen

    def memory(self, held: Callable[[], int]) -> dict[str, Any]:
        """Idle: the draft's bytes, the tokens that it makes room for, and by how much ``held`` falls without it."""
        here = self.go("device")
        before = held()
        away = self.go("host")
        freed = before - held()
        self.go("device")
        return {
            "draft_bytes": here["draft"]["device_bytes"],
            "freed_resident_bytes": freed,
            "tokens": away["kv"]["capacity"] - here["kv"]["capacity"],
        }

    def cycles(self, count: int, batch: int, new_tokens: int, gamma: int) -> list[dict[str, Any]]:
        """``batch`` requests decode, over and over; the draft goes and comes ``count`` times, and drafts in between.

        Returns what `stalls` makes of the records. Raises TimeoutError if the draft takes a minute.
        """
        before, ends = len(self.router.records()), threading.Event()

        def send() -> None:
            for i in itertools.count():
                if ends.is_set():
                    return
                texts = [f"Tell me about the number {i * batch + j}." for j in range(batch)]
                demo_server.generate(self.url, texts, new_tokens, 0.0, True)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        try:
            time.sleep(1.0)
            self.turns(count, gamma)
        finally:
            ends.set()
            sender.join(120)
        time.sleep(0.3)
        return stalls(self.router.records()[before:], batch)

    def turns(self, count: int, gamma: int, busy: Callable[[], bool] = lambda: True) -> None:
        """The draft goes, comes back to draft γ, and is parked; ``count`` times, as long as the server is ``busy``.

        Raises TimeoutError if it takes a minute to arrive somewhere.
        """
        for _ in range(count):
            for residency, drafts, arrived in _CYCLE:
                self.router.repeat(make_plan(gamma if drafts else 0, residency=residency))
                # By telemetry: asking for the status would itself take milliseconds from the iterations.
                self.router.wait_for(
                    lambda wanted=arrived: not busy() or self.router.records()[-1].residency == wanted, 60
                )
                time.sleep(_REST_S)

    def surge(self, texts: list[str], new_tokens: int, arm: str) -> dict[str, Any]:
        """All ``texts`` at once, with the draft where ``arm`` says: what came of it."""
        status = self.go(arm)
        before, first = status["counters"]["retractions"], len(self.router.records())
        outcome = demo_server.timed(self.url, texts, new_tokens)
        retractions = self.status()["counters"]["retractions"] - before
        records = self.router.records()[first:]
        by_batch: dict[int, list[float]] = {}
        for record in records:
            if record.prefill_tokens == 0:
                by_batch.setdefault(record.batch_size, []).append(record.iteration_ns / 1e6)
        queued = [record.batch_size for record in records if record.queue_length] or [one.batch_size for one in records]
        return {
            "arm": arm,
            "rate": outcome.rate,
            "seconds": outcome.seconds,
            "retractions": retractions,
            "capacity": status["kv"]["capacity"],
            "mean_batch": statistics.mean(record.batch_size for record in records),
            "batch_while_queued": statistics.mean(queued),
            "ms_by_batch": {size: statistics.median(times) for size, times in sorted(by_batch.items())},
        }

    def surges(self, repetitions: int, requests: int, new_tokens: int) -> list[dict[str, Any]]:
        """`surge` for each arm in turn, each repetition in the other order."""
        texts = [f"Write a story about {i} birds." for i in range(requests)]
        return [
            self.surge(texts, new_tokens, arm)
            for repetition in range(repetitions)
            for arm in (ARMS if repetition % 2 else reversed(ARMS))
        ]


#: An arm is where the draft lives while γ=0.
ARMS = ("device", "host")
