"""Finding policies, the one that the documentation shows, and running one over a decision log."""

import json
import re
from pathlib import Path

import pytest
from helpers.policy_load import Scheduler, make_hello

from sglang_nightjar.cli import main
from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.messages import Plan, TelemetryBatch
from sglang_nightjar.core.wire import encode
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policies.static import Static, StaticParams
from sglang_nightjar.policy import loader, replay
from sglang_nightjar.policy.config_file import LogSection
from sglang_nightjar.policy.decision_log import LogSwitch

DOCS = Path(__file__).parents[2] / "docs"


def test_ours_are_listed_and_load():
    found = loader.available()
    assert set(found) >= {"off", "static", "table", "ema", "nightjar"}
    for name, summary in found.items():
        assert summary
        assert loader.load_class(name, None).name == name
    with pytest.raises(ConfigError, match="must be one of"):
        loader.make("nope", None, {}, 0)


def test_parameters_are_checked():
    assert loader.make("static", None, {"gamma": 2}, 0).params == StaticParams(2)
    with pytest.raises(ConfigError, match=r"policy\.params\.gamma: '2' must be an integer from 0 to 64"):
        loader.make("static", None, {"gamma": "2"}, 0)
    with pytest.raises(ConfigError, match="exactly one of"):
        loader.make("table", None, {}, 0)
    with pytest.raises(ConfigError, match="overlap"):
        loader.make("table", None, {"vllm": [[1, 4, 3], [2, 9, 1]]}, 0)


def test_the_policy_in_the_documentation_works(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / "policies.md").read_text(), re.S)
    file = tmp_path / "patient.py"
    file.write_text(code)
    policy = loader.make(None, str(file), {}, 0)
    scheduler = Scheduler(policy, make_hello(), delay=0)
    for queue in (0, 0, 3, 3, 0):
        scheduler.step(4, queue_length=queue)
    assert scheduler.gammas == [5, 5, 5, 0, 0]
    assert [decision.gamma_for(1) for decision in scheduler.decisions] == [0, 5]
    policy.goodbye(scheduler.hello.sender)


def test_dataclasses_in_a_users_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from sglang_nightjar.core.policy import Policy\n"
        "@dataclass\nclass Params:\n    depth: int = 3\n"
        "class Mine(Policy):\n    name = 'mine'\n    Params = Params\n"
    )
    assert loader.make(None, str(file), {"depth": 4}, 0).params.depth == 4


@pytest.fixture
def log(tmp_path):
    """A log of γ=5 at batch 64, where it does harm, with costs for γ=0 from its beginning."""
    path = tmp_path / "decisions.jsonl"
    switch = LogSwitch(LogSection(path=str(path)))
    switch.event("start")
    scheduler = Scheduler(Static(StaticParams(0)), make_hello(start_gamma=5))
    switch.frame(encode(scheduler.hello), 1)
    for index in range(400):
        if index == 100:
            scheduler.policy = Static(StaticParams(5))
            scheduler.plan = scheduler.policy.hello(scheduler.hello)
        record = scheduler.step(64)
        switch.frame(encode(TelemetryBatch(scheduler.hello.sender, index + 2, (record,))), index)
    switch.plan(scheduler.hello.sender, Plan(1, "static", "1", constant(5), "device", "", 1000), False)
    switch.close()
    return path


def test_replay_says_what_another_policy_would_have_done(log):
    as_it_ran = replay.run(log, Static(StaticParams(5)))
    assert (as_it_ran.iterations, as_it_ran.same) == (400, 300)
    assert as_it_ran.ran == {0: 100, 5: 300}
    off = replay.run(log, Static(StaticParams(0)))
    assert off.shares == {0: 400} and off.known == 400
    assert off.wanted_ns < 0.8 * off.ran_ns
    unknown = replay.run(log, Static(StaticParams(3)))
    assert unknown.known == 0 and unknown.wanted_ns == 0
    assert replay.run(log, Static()).skipped == 0


def test_rotated_files_come_first_and_damage_is_skipped(log):
    lines = log.read_text().splitlines(keepends=True)
    log.with_name(log.name + ".2").write_text("".join(lines[:200]))
    log.with_name(log.name + ".1").write_text("".join(lines[200:300]) + '{"half')
    log.write_text("".join(lines[300:]) + "[]\n")
    result = replay.run(log, Static(StaticParams(5)))
    assert (result.iterations, result.skipped) == (400, 2)


def test_the_command(log, capsys):
    assert main(["replay", str(log), "--policy", "static", "--params", '{"gamma": 0}']) == 0
    assert "400 iterations, 1 decisions; the γ that ran in 25.0%" in capsys.readouterr().out
    assert main(["replay", str(log), "--policy", "table", "--params", '{"trtllm": {"8": 3}}', "--table", "vllm"]) == 0
    [table] = json.loads(capsys.readouterr().out).values()
    assert table == [[1, 8, 3], [9, 65536, 0]]
    assert main(["replay", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["iterations"] == 400
    for wrong in (["none.jsonl"], [str(log), "--policy", "nope"], [str(log), "--params", "{"]):
        assert main(["replay", *wrong]) == 2
    assert main(["replay", str(log), "--policy", "static", "--table", "trtllm"]) == 2
    assert "0 above its last batch size" in capsys.readouterr().err


def test_list_and_keys(tmp_path, capsys):
    assert main(["policy", "list", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == set(loader.available())
    assert main(["policy", "keys", str(tmp_path / "keys")]) == 0
    assert len(capsys.readouterr().out.split()) == 4
    assert main(["policy", "keys", str(tmp_path / "keys")]) == 2
    assert main(["policy", "serve"]) == 2
    assert "link.endpoint" in capsys.readouterr().err
