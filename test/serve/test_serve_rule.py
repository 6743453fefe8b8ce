"""γ of SGLang's own rule, from the changes in its log and the requests that ran."""

import json
from datetime import datetime
from pathlib import Path

from bench.serve import rule
from bench.serve.job import Sample

BEGAN = datetime(2026, 11, 29, 18, 49, 0).timestamp()
START = "[2026-11-29 18:48:38] AdaptiveSpeculativeParams initialized: steps=3, candidate_steps=[1, 3, 7]\n"
RANGES = {1: [1, 3, 7], 8: [0, 1, 3], 32: [0, 1]}


def change(seconds: int, before: int, after: int) -> str:
    at = datetime.fromtimestamp(BEGAN + seconds)
    return f"[{at:%Y-%m-%d %H:%M:%S}] Adaptive spec params updated: steps {before} -> {after} (ema_accept_len=0.23)\n"


def samples(*running: int) -> list[Sample]:
    return [Sample(float(at), count, 0, 100, 8192) for at, count in enumerate(running)]


def test_ranges_are_sglangs_own_unless_the_server_has_others(tmp_path: Path) -> None:
    assert rule.ranges() == {1: [1, 3, 7], 8: [0, 1, 3], 32: [0, 1], 64: [0]}
    config = tmp_path / "rule.json"
    config.write_text(json.dumps({"ema_alpha": 0.1, "4": {"candidate_steps": [2, 0]}}))
    for flags in (["--speculative-adaptive-config", str(config)], [f"--speculative-adaptive-config={config}"]):
        assert rule.ranges(["--tp", "1", *flags]) == {4: [0, 2]}


def test_a_change_is_of_the_range_that_the_running_requests_are_in(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(START + "[2026-11-29 18:48:50] Decode batch\n" + change(2, 3, 1) + change(4, 3, 7) + "half a li")
    # With twelve requests 3 -> 1; those below eight keep 3, and take 7 later.
    found = rule.over_time(log, RANGES, samples(12, 12, 12, 2, 2, 12, 0, 40), BEGAN, 10.0)
    assert [(s["at"], s["gamma"]) for s in found["seconds"]] == [
        *((0, 3), (1, 3), (2, 1), (3, 3), (4, 7), (5, 1)),
        # Nothing runs at 6; with 40 the start, 3, is no candidate, and the middle one is 1.
        (7, 1),
    ]
    assert found["seconds_by_gamma"] == {"1": 5.0, "3": 3.0, "7": 1.0} and found["gamma_switches"] == 2


def test_changes_before_the_load_count_where_they_fit(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    # 1 -> 0 fits only the range from 8 on once that is at 1, and the one from 32 on, which comes later.
    log.write_text(START + change(-9, 3, 7) + change(-8, 3, 1) + change(-7, 1, 0))
    found = rule.over_time(log, RANGES, samples(4, 12, 32), BEGAN, 3.0)
    assert [s["gamma"] for s in found["seconds"]] == [7, 0, 1] and found["gamma_switches"] == 0


def test_a_range_never_takes_what_is_no_candidate_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    # Below eight γ is 1 by then, too, but can't be 0; from 32 on it can.
    log.write_text(START + change(-9, 3, 1) + change(-8, 1, 0))
    found = rule.over_time(log, RANGES, samples(4, 12, 32), BEGAN, 3.0)
    assert [s["gamma"] for s in found["seconds"]] == [1, 3, 0]


def test_a_log_without_the_rule_says_nothing(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("[2026-11-29 18:48:50] Decode batch\n")
    assert rule.over_time(log, RANGES, samples(4), BEGAN, 3.0) == {}
