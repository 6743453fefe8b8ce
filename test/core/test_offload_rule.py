"""The offload rule: pressure that lasts sends the draft away, relief that lasts brings it back, and nothing flaps."""

import pytest

from sglang_nightjar.core.messages import Hello, Residency, Telemetry
from sglang_nightjar.core.offload_rule import OffloadRule

SECOND = 1_000_000_000


def hello(gain: int = 300) -> Hello:
    return Hello("s/dp0/0", 1, "s", 0, 1, 1, "t", "d", "cpu", (0, 3), 3, 16, 1000, 1000 + gain, 10_000)


class Run:
    """Feeds records, ten a second."""

    def __init__(self, rule: OffloadRule):
        self.rule, self.at_ns, self.count = rule, 0, 0

    def go(self, seconds: float, drafting: bool = False, **changes) -> str:
        for _ in range(round(10 * seconds)):
            self.at_ns += SECOND // 10
            self.count += 1
            fields = {"batch_size": 8, "gamma": 0, "committed": 8, "running": 8, "kv_used": 400, "kv_capacity": 1000}
            away = self.rule.residency == "host"
            fields["residency"] = Residency.OFFLOADED if away else Residency.PARKED
            self.rule.note(Telemetry(self.count, self.at_ns, SECOND // 10, **(fields | changes)), drafting)
        return self.rule.residency


@pytest.fixture
def run() -> Run:
    return Run(OffloadRule(hello(), watermark=0.1, persistence_s=2.0))


def test_a_full_cache_must_last(run: Run) -> None:
    assert run.go(1.9, kv_used=950) == "device"
    assert run.go(0.2) == "device"
    assert run.go(1.9, kv_used=950) == "device", "the clock starts again"
    assert run.go(0.3, kv_used=950) == "host"
    assert "950 of 1000" in run.rule.reason


@pytest.mark.parametrize(
    "pressure",
    [
        {"kv_used": 901},
        {"kv_used": 800, "queue_length": 3, "queued_tokens": 300},
        {"kv_used": 950, "residency": Residency.SHRINKING},
        {"kv_used": 950, "residency": Residency.LOADING},
    ],
    ids=["free KV under the watermark", "a queue that does not fit", "the cache shrinks", "the draft loads"],
)
def test_what_counts_as_pressure(run: Run, pressure: dict) -> None:
    assert run.go(3, **pressure) == "host"


@pytest.mark.parametrize(
    "calm",
    [
        {"kv_used": 899},
        {"kv_used": 950, "gamma": 3, "committed": 8},
        {"kv_used": 800, "queue_length": 3, "queued_tokens": 100},
        {"kv_used": 800, "queue_length": 3, "queued_tokens": 300, "running": 16},
        {"kv_used": 950, "residency": Residency.CATCHING_UP},
    ],
    ids=["enough is free", "it drafts", "the queue fits", "the batch is full", "it catches up"],
)
def test_what_does_not(run: Run, calm: dict) -> None:
    assert run.go(10, **calm) == "device"


def test_a_policy_that_wants_drafts_keeps_the_draft(run: Run) -> None:
    assert run.go(10, drafting=True, kv_used=950) == "device"


def test_exploration_neither_counts_nor_starts_the_clock_again(run: Run) -> None:
    run.go(1.5, kv_used=950)
    assert run.go(3, kv_used=950, gamma=3, committed=8) == "device"
    assert run.go(0.1, kv_used=950) == "host"


def test_retractions_that_go_on_are_pressure(run: Run) -> None:
    for count in range(30):
        run.go(0.1, kv_used=700, retractions=count)
    assert run.rule.residency == "host"


def test_one_retraction_is_pressure_for_twice_as_long_as_pressure_must_last(run: Run) -> None:
    run.go(1, retractions=0)
    assert run.go(0.1, drafting=True, gamma=3, retractions=1) == "device"
    assert run.go(1.5, retractions=1) == "device"
    assert run.go(0.8, retractions=1) == "host"
    assert run.go(3, kv_capacity=1300, retractions=1) == "device"
    assert run.go(10, retractions=1) == "device", "it is over"


def test_it_returns_when_all_would_fit_with_room_to_spare(run: Run) -> None:
    run.go(3, kv_used=950)
    assert run.go(10, kv_used=810, kv_capacity=1300) == "host", "under the old capacity, but not by enough"
    assert run.go(10, kv_used=700, kv_capacity=1300, queue_length=1) == "host"
    assert run.go(1.9, kv_used=790, kv_capacity=1300) == "host"
    assert run.go(0.3, kv_used=790, kv_capacity=1300) == "device"


def test_a_load_on_the_edge_does_not_make_it_flap(run: Run) -> None:
    turns, before = 0, "device"
    for step in range(60):
        now = run.go(1, kv_used=905 if step % 2 else 895, kv_capacity=1000 if before == "device" else 1300)
        turns, before = turns + (now != before), now
    assert turns <= 1


def test_without_a_gain_it_stays() -> None:
    run = Run(OffloadRule(hello(gain=0), 0.1, 0.0))
    assert run.go(10, kv_used=990) == "device"
