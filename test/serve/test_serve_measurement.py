"""A whole run with a fleet and a load that are made up: every check of validity is asked, and its faults are kept."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bench.serve import arms, measurement
from bench.serve.job import Answer, Job, Outcome, Sample
from bench.serve.measurement import Measurement
from bench.serve.order import Run
from bench.serve.scenarios import Scenario, piecewise
from bench.serve.servers import Models, Usage
from bench.serve.settings import Settings

SETTINGS = Settings(new_tokens=(4, 4), warm_up_s=2.0)
LOAD: Scenario = piecewise("surge", "", [("before", 2.0, 3.0), ("surge", 2.0, 3.0)])


@dataclass
class Fleet:
    """Servers that are as a test says. ``usages`` are what is said before and after the load, ``code`` is what the
    server ended with in it."""

    log: Path
    usages: list[Usage] = field(default_factory=lambda: [Usage({"scheduler": 1.0}, {"scheduler": 1}, 5.0)] * 2)
    found: tuple[int, int] = (32, 8192)
    url: str = "http://nowhere"
    key: str = "secret"
    steps: list[str] = field(default_factory=list)
    code: int | None = None
    models: Models = field(default_factory=lambda: Models("target", "draft"))

    @property
    def process(self) -> Any:
        return self

    def poll(self) -> int | None:
        return self.code

    def tail(self, _lines: int) -> str:
        return "out of memory"

    def get(self, kind: str) -> Any:
        self.steps.append(f"get {kind}")
        return self

    def prepare(self, _server: Any, arm: arms.Arm, warm_up: Any) -> None:
        self.steps.append(f"prepare {arm.name}")
        warm_up()

    def usage(self, _server: Any) -> Usage:
        return self.usages.pop(0)

    def capacity(self, _server: Any) -> tuple[int, int]:
        return self.found

    def wanted_capacity(self, _kind: str) -> tuple[int, int]:
        return 32, 8192

    def decision_log(self, _kind: str) -> Path:
        return self.log


def status(name: str = "nightjar", **counted: int) -> dict[str, Any]:
    rank = {"link": {"dropped": 0}, "counters": {"errors": counted.pop("agent_errors", 0)}}
    counters = {"policy_restarts": 1, "policy_swaps": 1, "fallbacks": 0} | counted
    return {"policy": {"name": name}, "counters": counters, "ranks": [rank]}


class Words:
    """Prompts without a tokenizer."""

    def draw(self, count: int, _seed: str, _lengths: Any = ()) -> list[list[int]]:
        return [[index, 1] for index in range(count)]


@dataclass
class Referee:
    """Says that these requests were answered wrongly."""

    bad: list[int] = field(default_factory=list)

    def wrong(self, _job: Job, _answers: Any) -> list[int]:
        return self.bad


@dataclass
class Played(Measurement):
    """A measurement whose load generator answers at once, and spoils the load as a test says."""

    spoil: Any = None
    jobs: list[Job] = field(default_factory=list)

    def _generate(self, job: Job, around: str) -> Outcome:
        self.jobs.append(job)
        answers = [
            Answer(i, r.at, r.at, [(r.at + 0.1, 1), (r.at + 0.2, 4)], r.at + 0.2, [1, 2, 3, 4], "length")
            for i, r in enumerate(job.requests)
        ]
        outcome = Outcome(100.0, answers, [], job.seconds, 0.05, 0.01)
        return self.spoil(outcome) if len(self.jobs) == 2 else outcome


@pytest.fixture
def make(tmp_path: Path, monkeypatch: Any) -> Any:
    """Makes a run; what is given differs from one in which all is well."""

    def run(arm: str = "nightjar", spoil: Any = None, bad: Any = (), after: Any = None, **fleet: Any) -> dict[str, Any]:
        statuses = [status(), after or status()]
        monkeypatch.setattr(measurement.time, "sleep", lambda _: None)
        monkeypatch.setattr(measurement, "Client", lambda *_: type("C", (), {"status": lambda _: statuses.pop(0)})())
        made = Played(SETTINGS, Words(), Fleet(tmp_path / "log.jsonl", **fleet), Referee(list(bad)))  # type: ignore[arg-type]
        made.spoil = spoil or (lambda outcome: outcome)
        result = made.make(Run("surge", arms.make(arm), 0), LOAD)
        kind = arms.make(arm).server
        assert made.fleet.steps == [f"get {kind}", f"prepare {arm}"] and len(made.jobs) == 2  # type: ignore[attr-defined]
        return result

    return run


def test_what_is_fine_counts(make: Any, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"at": 1, "event": "from before"}\n')
    result = make()
    assert result["faults"] == []
    assert (result["run"], result["arm"], result["open_loop"]) == ("surge.nightjar.0", "nightjar", True)
    assert result["whole"]["requests"] == len(result["answers"]) > 0
    assert set(result["by_phase"]) == {"before", "surge"}
    assert result["server_side"]["counters"]["policy_restarts"] == 0
    assert result["server_side"]["log"]["events"] == []
    assert json.loads(json.dumps(result))["run"] == result["run"]


RULE_STARTS = "AdaptiveSpeculativeParams initialized: steps=3, candidate_steps=[1, 3, 7]\n"


def spoilt_answer(**more: Any) -> Any:
    def spoil(outcome: Outcome) -> Outcome:
        return replace(outcome, answers=[replace(outcome.answers[0], **more), *outcome.answers[1:]])

    return spoil


BUSY = [Usage({}, {}, 0.0), Usage({}, {}, 1000.0)]
NOT_IDLE = [Usage({}, {}, 0.0), Usage({}, {}, 1000.0, idle_s=1000.0)]


@pytest.mark.parametrize(
    ("planted", "kind", "says"),
    [
        ({"spoil": spoilt_answer(error="status 500")}, "arm", "requests failed, first: status 500"),
        ({"spoil": spoilt_answer(tokens=[1, 2])}, "arm", "cut short"),
        ({"spoil": lambda outcome: replace(outcome, worst_lag=0.7)}, "measurement", "stood still"),
        ({"spoil": lambda outcome: replace(outcome, cpu_s=3.0)}, "measurement", "of a core"),
        ({"usages": BUSY}, "measurement", "other work took"),
        ({"usages": NOT_IDLE}, "measurement", "idle servers took"),
        ({"found": (48, 8192)}, "arm", "max_running_requests is 48 instead of 32"),
        ({"found": (32, 9000)}, "arm", "KV cache is 9000 instead of 8192"),
        ({"after": status("off")}, "arm", "'off' was in charge instead of 'nightjar'"),
        ({"after": status(policy_restarts=2)}, "arm", "started again (1 times)"),
        ({"after": status(agent_errors=3)}, "arm", "exceptions in the agent (3 times)"),
        ({"bad": [1]}, "arm", "1 answers differ from the target's own, first: that of request 1"),
    ],
)
def test_every_check_is_asked(make: Any, planted: dict[str, Any], kind: str, says: str) -> None:
    planted = {name: list(value) if name == "usages" else value for name, value in planted.items()}
    [fault] = make(**planted)["faults"]
    assert fault["kind"] == kind and says in fault["text"]


def test_a_server_that_ends_under_the_load_is_told_of(make: Any) -> None:
    result = make(code=-9)
    [fault] = result["faults"]
    assert fault["kind"] == "arm" and "the server ended with -9 under the load: out of memory" in fault["text"]
    assert len(result["answers"]) > 0


def test_an_arm_without_a_policy_is_not_asked_for_one(make: Any, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(RULE_STARTS)
    result = make("sglang-adaptive", after=status(policy_restarts=2))
    assert result["faults"] == [] and "counters" not in result["server_side"]


def test_the_rules_gamma_is_that_of_its_log(make: Any, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(RULE_STARTS)
    with_requests = [Sample(1.0, 2, 0, 10, 8192), Sample(2.0, 9, 0, 10, 8192)]
    result = make("sglang-adaptive", spoil=lambda outcome: replace(outcome, samples=with_requests))
    log = result["server_side"]["log"]
    assert [second["gamma"] for second in log["seconds"]] == [3, 3] and list(log["seconds_by_gamma"]) == ["3"]
