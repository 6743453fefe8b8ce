"""The arithmetic of bench/residency."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.residency.report import by_state, stalls, table
from sglang_nightjar.core.messages import Residency, Telemetry


def record(ms: float, state: Residency, **changes) -> Telemetry:
    fields = {"batch_size": 8, "gamma": 0, "committed": 8, "residency": state}
    return Telemetry(1, 0, int(ms * 1e6), **(fields | changes))


def test_the_longest_iteration_of_a_transition_against_the_median_at_rest() -> None:
    records = [record(ms, Residency.OFFLOADED) for ms in (10, 10, 11, 40)]
    records += [record(15, Residency.LOADING), record(12, Residency.LOADING)]
    records += [
        record(99, Residency.LOADING, prefill_tokens=5),
        record(99, Residency.LOADING, batch_size=7, committed=7),
        record(99, Residency.LOADING, gamma=1),
    ]
    found = by_state(stalls(records, 8))
    assert found["LOADING"] == {"count": 2, "median_ms": 13.5, "longest_ms": 15.0, "longest_over_rest": 15 / 10.5}
    assert found["at rest"]["longest_ms"] == 40.0
    assert set(found) == {"at rest", "LOADING"}
    assert by_state([]) == {}


def test_the_table() -> None:
    run = {"seconds": 1.0, "mean_batch": 3.0}
    surges = [
        {"arm": "device", "rate": 100.0, "retractions": 4, "capacity": 1000} | run,
        {"arm": "host", "rate": 120.0, "retractions": 1, "capacity": 1500} | run,
    ]
    text = table(
        {
            "memory": {"draft_bytes": 100, "freed_resident_bytes": 96, "tokens": 500},
            "predicted": {"tokens": 500, "freed_bytes": 100},
            "stalls": stalls([record(10, Residency.PARKED)], 8),
            "surges": surges,
        }
    )
    assert "(96%)" in text and "500 tokens more, predicted 500" in text
    assert "| host | 1500 | 3.0 | 120.0 tok/s (120.0 to 120.0) | 1.0 |" in text
    assert "away / here: 1.200" in text
