"""The arithmetic behind the figures of bench/control_loop."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.control_loop import load, report, timeline


def test_tokens_count_where_they_were_made() -> None:
    phases = [load.Phase(10, 1), load.Phase(10, 24)]
    answers = [load.Answer(100, 105, 50), load.Answer(105, 115, 100), load.Answer(115, 125, 100)]
    made = load.Load(100.0, phases, answers, failed=0)
    # The second answer lies half in each phase, the third only half in the profile.
    assert made.rates() == pytest.approx([10.0, 10.0])
    assert made.rate == pytest.approx(10.0)
    assert load.Phase.parse("2.5:24") == load.Phase(2.5, 24)


def row(at_ns: int, iteration_ns: int, batch_size: int, gamma: int, committed: int) -> list[object]:
    return [1, at_ns, iteration_ns, batch_size, gamma, committed, *[0] * 13, [0] * gamma]


def test_seconds_of_a_decision_log(tmp_path: Path) -> None:
    lines = [
        {"at": 10_100_000_000, "event": "start"},
        {
            "at": 10_200_000_000,
            "frame": {"type": "telemetry", "records": [row(1, 30, 1, 0, 1), row(2, 10, 1, 4, 3)]},
        },
        {"at": 10_300_000_000, "to": "agent", "shadow": False, "frame": {"type": "plan"}},
        {"at": 11_900_000_000, "frame": {"type": "telemetry", "records": [row(3, 20, 4, 1, 6)]}},
    ]
    log = tmp_path / "decisions.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds = timeline.read(log)
    assert sorted(seconds) == [10, 11]
    assert (seconds[10].batch_size, seconds[10].gamma, seconds[10].accepted_length) == (1, 1.0, 2.0)
    assert (seconds[11].batch_size, seconds[11].gamma, seconds[11].accepted_length) == (4, 1.0, 1.5)
    [surge] = timeline.gamma_by_clients(seconds, began=9.0, phases=[(4.0, 24)])
    assert surge == pytest.approx(1.0)


def test_the_table_weighs_phases_by_their_length() -> None:
    phases = [{"seconds": 10, "clients": 1}, {"seconds": 5, "clients": 24}, {"seconds": 30, "clients": 1}]
    runs = [
        {"arm": "a", "phases": phases, "rates": [20.0, 300.0, 60.0], "rate": 90.0, "failed": 1},
        {"arm": "a", "phases": phases, "rates": [20.0, 100.0, 60.0], "rate": 70.0, "failed": 0},
    ]
    assert report.table({"runs": runs}).splitlines()[2] == (
        "| a | 80.0 (70.0 to 90.0) | 50.0 (50.0 to 50.0) | 200.0 (100.0 to 300.0) | 1 |"
    )
