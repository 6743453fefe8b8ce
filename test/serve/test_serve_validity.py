"""Each fault is planted, and found; and what is fine is left alone."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.serve import reference, validity
from bench.serve.claim import claim
from bench.serve.job import Answer, Job, Outcome, Request
from bench.serve.results import Results, speed
from bench.serve.servers import Fleet, Models, Usage
from bench.serve.settings import Settings

JOB = Job("http://nowhere", [Request(0.0, [1, 2, 3], 4), Request(1.0, [4, 5], 4)], seconds=2.0)


def good() -> list[Answer]:
    return [
        Answer(i, at, at + 0.001, [(at + 0.5, 1), (at + 1.0, 4)], at + 1.0, [7, 8, 9, 10], "length")
        for i, at in enumerate((0.0, 1.0))
    ]


def outcome(answers: list[Answer], **more: Any) -> Outcome:
    return replace(Outcome(0.0, answers, [], wall_s=2.1, cpu_s=0.05, worst_lag=0.01), **more)


def texts(faults: list[validity.Fault], kind: str) -> str:
    assert {fault.kind for fault in faults} == {kind}
    return "; ".join(fault.text for fault in faults)


def test_what_is_fine_has_no_fault() -> None:
    assert validity.of_answers(JOB, good()) == []
    assert validity.of_generator(JOB, outcome(good())) == []
    assert validity.of_capacity((32, 8192), (32, 8192)) == []
    assert validity.of_policy("nightjar", "nightjar", {"gamma_switches": 40, "policy_restarts": 0}) == []


def test_a_failed_request() -> None:
    answers = good()
    answers[1] = Answer(1, 1.0, 1.0, error="status 500: out of memory")
    assert texts(validity.of_answers(JOB, answers), "arm") == (
        "1 of 2 requests failed, first: status 500: out of memory"
    )


@pytest.mark.parametrize(
    ("forced", "tokens", "finish", "is_cut"),
    [
        (True, 4, "length", False),
        (True, 3, "length", True),
        (True, 3, "stop", True),
        (True, 2, "abort", True),
        (False, 4, "length", False),
        (False, 2, "stop", False),
        (False, 2, "length", True),
        (False, 2, "abort", True),
        (False, 2, "", True),
    ],
)
def test_a_truncated_answer(forced: bool, tokens: int, finish: str, is_cut: bool) -> None:
    answers = good()
    answers[0] = replace(answers[0], tokens=[7, 8, 9, 10][:tokens], finish=finish)
    faults = validity.of_answers(replace(JOB, forced=forced), answers[:1])
    assert bool(faults) == is_cut
    if is_cut:
        assert f"{tokens} of 4 tokens" in texts(faults, "arm")


def test_a_generator_that_lagged() -> None:
    answers = good()
    answers[1] = replace(answers[1], sent=1.3)
    assert "lagged" in texts(validity.of_generator(JOB, outcome(answers)), "measurement")
    assert "stood still" in texts(validity.of_generator(JOB, outcome(good(), worst_lag=0.7)), "measurement")
    assert "of a core" in texts(validity.of_generator(JOB, outcome(good(), cpu_s=1.0)), "measurement")
    assert "ended after" in texts(validity.of_generator(JOB, outcome(good(), wall_s=1.0)), "measurement")


def test_a_machine_that_did_something_else() -> None:
    assert validity.of_machine(others_s=8.0, idle_s=8.0, wall_s=90.0, cores=2) == []
    assert texts(validity.of_machine(90.0, 0.0, 90.0, 2), "measurement") == "other work took 50% of the machine's cores"
    assert texts(validity.of_machine(0.0, 45.0, 90.0, 2), "measurement") == (
        "idle servers took 25% of the machine's cores"
    )
    before = Usage({"scheduler": 100.0, "http": 5.0}, {}, busy_s=1000.0, idle_s=30.0)
    after = Usage({"scheduler": 180.0, "http": 7.0}, {}, busy_s=1100.0, idle_s=37.0)
    # Other servers of the benchmark are not other work.
    assert after.others_since(before) == pytest.approx(11.0) and after.idle_since(before) == pytest.approx(7.0)


def test_other_work_is_seen() -> None:
    """By the real counters: this process is nobody's server, and works for a while."""
    before = Usage({}, {}, Usage.machine_busy_s())
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    assert Usage({}, {}, Usage.machine_busy_s()).others_since(before) > 0.3


def test_servers_beside_are_counted_apart(tmp_path: Path) -> None:
    """By the real counters: the measured server sleeps, the one beside it works."""
    codes = {"plain": "import time; time.sleep(60)", "steered": "while True: pass"}
    started = {kind: subprocess.Popen([sys.executable, "-c", code]) for kind, code in codes.items()}
    try:
        fleet = Fleet(Models("target", "draft"), Settings(), tmp_path, side_by_side=True)
        fleet._running.update({k: SimpleNamespace(process=p, children=list) for k, p in started.items()})  # type: ignore[misc]
        before = fleet.usage(fleet._running["plain"])
        deadline = time.monotonic() + 20
        while (used := fleet.usage(fleet._running["plain"])).idle_since(before) < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert used.others_since(before) <= used.busy_s - before.busy_s - 0.5
        assert used.since(before)["http"]["cpu_s"] < 0.3
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_a_cap_that_differed() -> None:
    assert texts(validity.of_capacity((32, 8192), (48, 8192)), "arm") == "max_running_requests is 48 instead of 32"
    assert "KV cache is 9000 instead of 8192" in texts(validity.of_capacity((32, 8192), (32, 9000)), "arm")


@pytest.mark.parametrize("counter", ["policy_restarts", "policy_swaps", "fallbacks", "agent_errors"])
def test_a_policy_that_was_not_in_charge(counter: str) -> None:
    assert "(2 times)" in texts(validity.of_policy("ema", "ema", {counter: 2}), "arm")
    assert "'off' was in charge" in texts(validity.of_policy("ema", "off", {}), "arm")


class _Referee(reference.Reference):
    """Says what a referee that knows the target's answer would say, and counts how often it was asked."""

    asked = 0

    def _ask(self, cases: list[reference.Case]) -> list[list[int]]:
        self.asked += len(cases)
        right = [7, 8, 9, 10]
        return [[i for i, t in enumerate(case["tokens"]) if t != right[i]] for case in cases]


def test_an_answer_that_is_not_the_targets(tmp_path: Path) -> None:
    file = tmp_path / "agreed.json"
    referee = _Referee(tmp_path, file)
    assert referee.wrong(JOB, good()) == []
    assert referee.asked == 2
    # Known answers, and their beginnings, are not judged again, not even after an interruption.
    again = _Referee(tmp_path, file)
    shorter = [replace(answer, tokens=answer.tokens[:2]) for answer in good()]
    assert again.wrong(JOB, [*good(), *shorter]) == [] and again.asked == 0
    answers = good()
    answers[1] = replace(answers[1], tokens=[7, 8, 99, 10])
    assert again.wrong(JOB, answers) == [1]
    assert "first: that of request 1" in texts(validity.of_texts([1]), "arm")
    # A wrong answer is not believed because it was seen before.
    assert again.wrong(JOB, answers) == [1]
    assert validity.of_texts([]) == []


def run(arm: str, repetition: int, rate: float, *faults: str) -> dict[str, Any]:
    part = {"tokens_per_s": rate, "latency_s": {"mean": 10.0 / rate}}
    return {
        "scenario": "clients",
        "arm": arm,
        "label": arm,
        "repetition": repetition,
        "open_loop": False,
        "began": repetition,
        "whole": part,
        "by_phase": {"1 client": part},
        "faults": [{"kind": kind, "text": "planted"} for kind in faults],
    }


def test_what_is_invalid_is_not_averaged_in() -> None:
    results = Results(
        [
            run("none", 0, 100.0),
            run("none", 1, 100.0),
            run("nightjar", 0, 130.0),
            run("nightjar", 1, 9000.0, "measurement"),
            run("static-3", 0, 500.0),
            run("static-3", 1, 500.0, "arm"),
        ]
    )
    assert results.arms("clients") == ["none", "nightjar"]
    assert results.by_repetition("clients", "nightjar", speed) == {0: 130.0}
    assert results.by_repetition("clients", "static-3", speed) == {}
    assert len(results.faulty()) == 2
    lines = claim(results, "nightjar").splitlines()
    assert "+30.0% | met, not for certain" in lines[2] and "no speculation" not in lines[2].split("|")[0]
    assert not any(line.startswith("| static") for line in lines)
