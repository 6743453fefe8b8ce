"""The report of a benchmark whose runs are made up, and the decision log behind its series."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench.serve import arms, measures, paper, report, server_side, tables
from bench.serve.claim import best_static, claim, gain, losses, subjects
from bench.serve.job import Answer, Sample
from bench.serve.measures import Objectives
from bench.serve.results import Results, phase_speed, speed
from bench.serve.scenarios import catalogue
from bench.serve.server_side import LogMark
from bench.serve.settings import Settings
from bench.serve.store import Store
from bench.serve.tables import number
from sglang_nightjar.errors import ConfigError


def made_up(name: str, arm: str, repetition: int, factor: float, **more: Any) -> dict[str, Any]:
    """A run in which an answer of ten tokens takes ``1 / factor`` s."""
    scenario, objectives = catalogue()[name], Objectives(2.0, 0.06)
    count = int(scenario.seconds) if scenario.is_open else int(scenario.seconds * factor)
    answers = []
    for i in range(count):
        due = i * scenario.seconds / count
        # One after the other in both: the machine keeps up.
        pieces = [(due + (1 + k) / 10 / factor, 1 + k) for k in range(10)]
        answers.append(
            Answer(i, due, due + 0.002, pieces, pieces[-1][0], list(range(10)), "length", verify_steps=5, proposed=15)
        )
    steered = arms.make(arm).server == "steered"
    log = {"seconds": [], "seconds_by_gamma": {"0": 30.0, "3": 60.0}, "gamma_switches": 4, "retractions": 0}
    log["seconds_by_residency"] = {"RESIDENT": 60.0, "OFFLOADED": 30.0}
    log["seconds"] = [
        {"at": float(s), "gamma": s % 4, "accepted_length": 1.9, "batch_size": 2.0}
        for s in range(int(scenario.seconds))
    ]
    side: dict[str, Any] = {
        "load": server_side.from_samples([Sample(1.0, 2, 3, 100, 8192)]),
        "processes": {"policy": {"cpu_s": 0.9, "rss_mb": 50.0}} if steered else {},
    }
    if steered:
        side["log"] = log
    figures = measures.figures(answers, scenario.phases, objectives)
    return {
        "run": f"{name}.{arm}.{repetition}",
        "scenario": name,
        "arm": arm,
        "label": arms.make(arm).label,
        "repetition": repetition,
        "open_loop": scenario.is_open,
        "phases": [vars(phase) for phase in scenario.phases],
        "provenance": {
            "time": "2026-01-01T00:00:00+00:00",
            "commit": "abc",
            "uncommitted_changes": False,
            "command": "python -m bench.serve.run",
            "versions": {"python": "3.11"},
            "machine": {"cpu": "a CPU", "cores": 2, "memory_gb": 8, "vector": ["avx2"]},
        },
        "began": float(repetition),
        "faults": [],
        "whole": figures["whole"] | {"retractions": 0, "gamma_per_step": 3.0},
        "by_phase": figures["by_phase"],
        "quantiles": {
            key: measures.quantiles(answers, of)
            for key, of in (("ttft_s", measures.ttft), ("tpot_s", measures.tpot), ("latency_s", measures.latency))
        },
        "seconds": measures.seconds_of(answers, scenario.seconds),
        "generator": {"cpu_s": 1.0, "late_s": measures.summary([0.002]), "worst_lag_s": 0.01, "wall_s": 90.0},
        "server_side": side,
        "answers": [vars(answer) for answer in answers],
    } | more


SPEEDS = {"none": 1.0, "static-1": 1.1, "static-3": 1.2, "sglang-adaptive": 1.25, "nightjar": 1.5}


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    return [
        made_up(name, arm, repetition, factor * (1 + 0.01 * repetition))
        for name in ("surge", "clients", "sweep")
        for arm, factor in SPEEDS.items()
        for repetition in range(2)
    ]


def test_gains_are_throughput_or_latency(runs: list[dict[str, Any]]) -> None:
    results = Results.of(runs)
    # A closed loop: 1.5 times the tokens are 50% more; an open one: a 1.5 times smaller latency is 33% less.
    assert gain(results, "clients", "nightjar", "none") == pytest.approx(0.5, abs=0.02)
    assert gain(results, "surge", "nightjar", "none") == pytest.approx(1 / 3, abs=0.001)
    assert best_static(results, "surge") == "static-3"
    assert results.mean("clients", "none", phase_speed("24 clients")) > 0
    assert results.by_repetition("surge", "none", speed)[0] == pytest.approx(1.0)
    assert subjects(results) == ["nightjar"]
    lines = claim(results, "nightjar").splitlines()
    assert len(lines) == 8 and not any("missed" in line for line in lines)
    # The sweep is no dynamic load, but its phases count among the worst.
    assert "sweep" not in lines[2]
    slower = [*runs, *(made_up("day", a, r, f) for a, f in (("none", 1.0), ("nightjar", 0.9)) for r in range(2))]
    worst = claim(Results.of(slower), "nightjar").splitlines()[-1]
    # 0.9 times the speed is 11% more latency.
    assert "**missed**" in worst and "day" in worst and "-11.1%" in worst
    lost = losses(Results.of(slower), "nightjar")
    assert sorted(line.split(":")[0] for line in lost) == ["- day, night", "- day, noon"]
    assert all("-11.1%" in line and "more than allowed" in line for line in lost)
    assert losses(results, "nightjar") == []
    # Ahead of no speculation, and behind what is there without us.
    behind = [run for run in runs if run["arm"] != "nightjar" and run["scenario"] == "surge"]
    behind += [made_up("surge", "nightjar", repetition, 1.1) for repetition in range(2)]
    lost = losses(Results.of(behind), "nightjar")
    assert len(lost) == 6 and sum("against `--speculative-adaptive`" in line for line in lost) == 3
    assert sum("against static γ=3" in line for line in lost) == 3


def test_no_loss_is_told_twice() -> None:
    """No speculation is the best fixed γ here."""
    speeds = {"none": 1.0, "static-3": 0.8, "nightjar": 0.9}
    runs = [made_up("surge", arm, repetition, speed) for arm, speed in speeds.items() for repetition in (0, 1)]
    lost = losses(Results.of(runs), "nightjar")
    assert len(lost) == 3 and all("more than allowed" in line for line in lost)


def test_a_goal_is_met_for_certain_if_the_whole_interval_meets_it() -> None:
    def verdicts(*factors: float) -> list[str]:
        ours = [made_up("clients", "nightjar", n, factor) for n, factor in enumerate(factors)]
        results = Results.of([*ours, *(made_up("clients", "none", n, 1.0) for n in range(len(factors)))])
        return [line.split("|")[4].strip() for line in claim(results, "nightjar").splitlines()[2:]]

    # The last line is the worst phase's.
    assert verdicts(1.39, 1.40, 1.41) == ["met", "met"]
    assert verdicts(1.2, 1.4, 1.6)[0] == "met, not for certain"
    assert verdicts(1.4)[0] == "met, not for certain", "of one repetition nothing is certain"
    assert verdicts(0.9, 0.9) == ["**missed**", "**missed**"]


def test_without_another_gamma_there_is_no_best_one(runs: list[dict[str, Any]]) -> None:
    results = Results.of(run for run in runs if not run["arm"].startswith("static"))
    assert best_static(results, "surge") is None
    assert "best static" not in claim(results, "nightjar")


def test_means_are_arithmetic_and_few_requests_show() -> None:
    results = Results.of([made_up("surge", "none", 0, 1.0), made_up("surge", "none", 1, 0.5)])
    lines = tables.phases(results, "surge").splitlines()
    # Latencies of 1 and 2 s.
    assert lines[2].split("|")[2].strip() == "1.50"
    assert lines[-1].startswith("| requests in it, mean | ")


def test_figures_are_made_anew_of_the_answers(runs: list[dict[str, Any]]) -> None:
    old = {**runs[0], "whole": {**runs[0]["whole"], "tokens_per_s": -1.0}, "by_phase": {}}
    [made] = Results.of([old], Objectives(2.0, 0.06)).runs
    assert made["whole"]["tokens_per_s"] > 0 and made["by_phase"].keys() == runs[0]["by_phase"].keys()
    assert made["whole"]["gamma_per_step"] == 3.0


def test_what_a_user_feels_and_where_the_draft_was(runs: list[dict[str, Any]]) -> None:
    results = Results.of(runs)
    [row] = [line for line in tables.felt(results, "clients").splitlines() if line.startswith("| nightjar")]
    # Ten tokens, a tenth of a second each at speed 1; at 1.5 and 1.515 0.0663 s between two pieces, 0.663 s in all.
    assert row.count("0.0663 / 0.0663 / 0.0663") == 3 and "0.663 / 0.663 / 0.663 |" in row
    server = tables.server_side(results, "clients").splitlines()
    assert "resident: 67%, offloaded: 33%" in server[-1] or "offloaded: 33%, resident: 67%" in server[-1]
    assert "requests/s" in tables.against_none(results, "clients")


def test_the_papers_rows_stand_beside_ours(runs: list[dict[str, Any]]) -> None:
    lines = paper.beside(Results.of(runs), ["nightjar"]).splitlines()
    assert lines[2].startswith("| against no speculation | +27.29% throughput | +41.")
    # Nobody here stands for TETRIS, and nobody ran a policy that stands for DSD.
    assert lines[4].endswith("| – |") and lines[6].endswith("| – |")
    assert "12.90%" in lines[-1] and "up to 20." in lines[-1]


def test_the_report_is_whole(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    store = Store(tmp_path)
    store.open(Settings().as_json())
    for run in runs:
        store.save(run["run"], run)
    broken = made_up("surge", "static-2", 0, 1.0, faults=[{"kind": "arm", "text": "3 of 90 requests failed"}])
    store.save(broken["run"], broken)
    text = report.write(store).read_text()
    assert "surge, static γ=2, repetition 1: 3 of 90 requests failed; the arm does not count" in text
    assert "## Beside the paper" in text and "arXiv 2512.22420" in text and "## Where it loses" in text
    assert "nan" not in text.lower().replace("nanog", "")
    for name in ("surge", "clients", "sweep"):
        assert f"## {name}" in text
        assert (tmp_path / "pictures" / f"{name}-timeline.svg").stat().st_size > 10_000
        assert f"pictures/{name}-latency.svg" in text
    assert "pictures/sweep-by-load.svg" in text
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(runs) + 1 and not any("answers" in json.loads(line) for line in lines)
    # What is committed is enough to write the report again.
    for file in (tmp_path / "runs").iterdir():
        file.unlink()
    assert report.write(store).read_text() == text
    (tmp_path / "results.jsonl").unlink()
    with pytest.raises(ConfigError, match="holds no runs"):
        report.write(store)


def test_a_benchmark_in_pieces_names_them_all(runs: list[dict[str, Any]]) -> None:
    later = [dict(run) for run in runs if run["scenario"] == "surge"]
    for run in later:
        run["began"] += 1000.0
        run["provenance"] = run["provenance"] | {"time": "2026-01-02T00:00:00+00:00", "command": "the rest"}
    rest = [run for run in runs if run["scenario"] != "surge"]
    text = report.render(Results(later + rest), {}, 0, {})
    assert "from 2026-01-01T00:00:00+00:00 to 2026-01-02T00:00:00+00:00" in text
    assert "\n    python -m bench.serve.run\n    the rest\n" in text


def test_numbers() -> None:
    assert [number(v) for v in (0.0, 123.4, 1.234, 0.01234, None, math.nan)] == ["0", "123", "1.23", "0.0123", "–", "–"]


def row(iteration: int, at_ns: int, iteration_ns: int, batch_size: int, gamma: int, committed: int) -> list[object]:
    return [iteration, at_ns, iteration_ns, batch_size, gamma, committed, *[0] * 13, [0] * gamma]


def test_series_of_a_decision_log(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    log.write_text(json.dumps({"at": 9_000_000_000, "event": "start"}) + "\n")
    mark = LogMark.end_of(log)
    lines: list[dict[str, Any]] = [
        {
            "at": 10_200_000_000,
            "frame": {"type": "telemetry", "records": [row(1, 1, 30, 1, 0, 1), row(2, 2, 10, 1, 4, 3)]},
        },
        {"at": 10_300_000_000, "to": "agent", "shadow": False, "frame": {"type": "plan"}},
        {"at": 10_400_000_000, "event": "failed", "policy": "x"},
        {"at": 11_900_000_000, "frame": {"type": "telemetry", "records": [row(3, 3, 20, 4, 1, 6)]}},
        {"at": 99_000_000_000, "frame": {"type": "telemetry", "records": [row(4, 4, 20, 4, 1, 6)]}},
    ]
    with log.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines) + '{"half a li')
    found = server_side.from_log(list(mark.lines()), began=10.0, until=5.0)
    first, second = found["seconds"]
    assert (first["at"], first["batch_size"], first["gamma"], first["accepted_length"]) == (0.0, 1, 1.0, 2.0)
    assert (second["at"], second["batch_size"], second["gamma"], second["accepted_length"]) == (1.0, 4, 1.0, 1.5)
    assert (found["iterations"], found["gamma_switches"]) == (3, 2)
    assert found["seconds_by_gamma"] == {"0": 0.0, "1": 0.0, "4": 0.0} and first["residency"] == "RESIDENT"
    assert found["events"] == [{"at": 0.4, "event": "failed", "policy": "x"}]
