"""Hot swap by request and by saving the config; shadows."""

import json
import os
import time

import pytest
from helpers.policy_peers import Peer, PolicyProcess
from helpers.waiting import eventually

from sglang_nightjar.core.messages import Request

CONFIG = "policy: {name: static, params: {gamma: 3}}\n"
#: The same γ for every batch.
MINE = """
from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.policy import Decision, Policy

class Mine(Policy):
    name = "mine"

    def hello(self, hello):
        return Decision(constant({gamma}), "mine")

    def telemetry(self, sender, record):
        return None

    def goodbye(self, sender):
        pass
"""


@pytest.fixture
def process(tmp_path):
    started = PolicyProcess(tmp_path / "p", config=CONFIG)
    yield started
    started.stop()


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_many_swaps_in_a_row(process, agent, count):
    """Under telemetry, without gaps in the signs of life, and nothing is left behind."""
    wanted = [("static", {"gamma": 1}), ("off", {}), ("ema", {}), ("nightjar", {"bin_iterations": 2})]
    gaps, last, number = [], time.monotonic(), 0
    files = len(os.listdir(f"/proc/{process.process.pid}/fd"))
    for index in range(count):
        name, params = wanted[index % len(wanted)]
        seq = agent.next_seq()
        agent.send(Request(agent.sender, seq, "policy_set", {"name": name, "params": params}))
        while seq not in agent.replies:
            agent.iterate()
            message = agent.receive(0.02)
            if message is agent.plans[-1]:
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
        reply = agent.replies.pop(seq)
        assert reply.ok, reply.error
        assert reply.body["name"] == name
        number += 1
    status = agent.status()
    assert status["counters"]["policy_swaps"] == number == count
    assert status["counters"]["policy_errors"] == 0
    # Of many, one may be the machine's; a swap that interrupts the signs of life would do it every time.
    assert sorted(gaps)[int(0.98 * len(gaps)) - 1] < 1.0, "an agent would have fallen back"
    assert len(gaps) >= count
    assert len(process.children()) == 1
    assert len(os.listdir(f"/proc/{process.process.pid}/fd")) <= files + 4


def test_the_new_policy_is_warm(process, agent):
    """It knows what came before it was there, so it does not start with the start γ again."""
    for index in range(400):
        gamma = (0, 1, 3, 5)[index % 4]
        agent.iterate(8, gamma, iteration_ns=1_000_000 if gamma == 1 else 50_000_000, committed=8)
    assert agent.ask("policy_set", name="nightjar").ok
    plan = agent.plan(matching=lambda plan: plan.policy == "nightjar")
    assert plan.gamma_for(60) == 1
    assert agent.ask("policy_get").body["records"] >= 400


class TestConfig:
    def save(self, process, text):
        process.config.write_text(text)

    def error(self, agent):
        return agent.status()["config"]["error"]

    def test_a_save_swaps(self, process, agent):
        self.save(process, "policy: {name: off}\n")
        assert agent.plan(20, lambda plan: plan.policy == "off").gamma_for(1) == 0
        self.save(process, "policy: {name: static}\nlink: {stale_after: 2}\n")
        assert agent.plan(20, lambda plan: plan.policy == "static").gamma_for(1) == 5
        assert agent.plan().valid_for_ms == 2000

    def test_a_longer_stale_after_is_told_before_the_shorter_one_is_over(self, process, agent):
        """An idle agent has a plan for one second; the next repetition would be due after 15."""
        self.save(process, CONFIG + "link: {stale_after: 40}\n")
        last, gap = time.monotonic(), 0.0
        while agent.plan(20).valid_for_ms != 40_000:
            gap, last = max(gap, time.monotonic() - last), time.monotonic()
        assert max(gap, time.monotonic() - last) < 1.0

    @pytest.mark.parametrize(
        "text, said",
        [
            ("policy: {name: [", "no YAML"),
            ("policy: {name: off}\nshadw: []\n", "shadw: there is no such setting"),
            ("policy: {name: 3}\n", "policy.name: 3 must be a text"),
            ("policy: {name: nope}\n", "policy.name: 'nope' must be one of"),
            ("policy: {name: static, params: {gamma: x}}\n", "policy.params.gamma: 'x' must be an integer"),
            ("policy: {name: off}\nlog: {path: /proc/none/log}\n", "log.path: /proc/none/log"),
            (None, "No such file"),
        ],
    )
    def test_a_broken_save_changes_nothing_and_says_why(self, process, agent, text, said):
        if text is None:
            process.config.unlink()
        else:
            self.save(process, text)
        error = eventually(lambda: self.error(agent), within=20)
        assert said in error
        assert said in process.said()
        assert agent.plan().gamma_for(1) == 3
        assert agent.ask("policy_get").body["params"]["gamma"] == 3
        self.save(process, "policy: {name: off}\n")
        agent.plan(20, lambda plan: plan.policy == "off")
        assert self.error(agent) == ""

    def test_half_written_it_waits(self, process, agent):
        """A writer that takes its time: neither half is applied, and no error comes of it."""
        text = "policy: {name: off}\nshadow: [{name: ema}]\n"
        with process.config.open("w") as file:
            for character in text:
                file.write(character)
                file.flush()
                time.sleep(0.02)
        agent.plan(20, lambda plan: plan.policy == "off")
        assert [shadow["name"] for shadow in agent.status()["shadow"]] == ["ema"]
        assert "no YAML" not in process.said()

    def test_what_cannot_change_live_is_refused_with_the_reason(self, process, agent):
        self.save(process, "policy: {name: off}\nlink: {endpoint: 'ipc:///elsewhere/p', fallback: 1}\n")
        agent.plan(20, lambda plan: plan.policy == "off")
        error = eventually(lambda: self.error(agent))
        assert "link.endpoint can't change" in error and "link.fallback" in error

    def test_candidates_are_narrowed_live(self, process, agent):
        self.save(process, CONFIG + "gamma: {candidates: [0, 1]}\n")
        assert agent.plan(20, lambda plan: plan.gamma_for(1) == 1).policy == "static"
        assert agent.status()["agents"][0]["candidates"] == [0, 1]
        self.save(process, CONFIG + "gamma: {candidates: [60]}\n")
        eventually(lambda: "can run none of them" in process.said(), within=20)
        assert agent.plan(20, lambda plan: plan.gamma_for(1) == 3)

    def test_a_save_of_something_else_keeps_a_policy_that_was_set(self, process, agent):
        assert agent.ask("policy_set", name="off").ok
        self.save(process, CONFIG + "shadow: [{name: ema}]\n")
        eventually(lambda: agent.status()["shadow"])
        assert agent.ask("policy_get").body["name"] == "off"

    def test_a_policys_file_is_read_again_with_the_config_unless_another_was_set(self, process, agent):
        file, config = process.config.parent / "mine.py", "policy: {path: mine.py}\n"
        file.write_text(MINE.format(gamma=1))
        self.save(process, config)
        agent.plan(20, lambda plan: plan.gamma_for(1) == 1)
        file.write_text(MINE.format(gamma=0))
        self.save(process, config + "shadow: [{name: ema}]\n")
        agent.plan(20, lambda plan: plan.gamma_for(1) == 0)
        assert agent.ask("policy_set", name="off").ok
        self.save(process, config + "log: {max_mb: 5}\n")
        eventually(lambda: not agent.status()["shadow"])
        assert agent.ask("policy_get").body["name"] == "off"

    def test_what_was_refused_is_refused_again(self, process, agent):
        self.save(process, CONFIG + "memory: {mode: keep}\n")
        assert "memory.mode" in eventually(lambda: self.error(agent))
        self.save(process, CONFIG + "memory: {mode: keep}\nshadow: [{name: ema}]\n")
        eventually(lambda: agent.status()["shadow"])
        assert "memory.mode" in self.error(agent)

    def test_a_value_that_no_worker_can_be_told_is_refused(self, process, agent):
        self.save(process, f"policy: {{name: static, params: {{gamma: {10**20}}}}}\n")
        assert "can't be handed to its worker" in eventually(lambda: self.error(agent), within=20)
        assert agent.plan().gamma_for(1) == 3


def test_shadows_are_logged_and_decide_nothing(tmp_path):
    log = tmp_path / "log"
    config = f"policy: {{name: static}}\nshadow: [{{name: off}}]\nlog: {{path: {log}}}\n"
    process = PolicyProcess(tmp_path / "p", config=config)
    agent = Peer(process.endpoint)
    try:
        agent.hello()
        agent.plan(20)
        eventually(lambda: any(d["shadow"] for d in agent.ask("decisions").body["decisions"]))
        agent.iterate()
        agent.plan()
        assert {plan.policy for plan in agent.plans} == {"static"}
    finally:
        agent.close()
        process.stop()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    plans = [(line["shadow"], line["frame"]["policy"], line["frame"]["plan_id"] == 0) for line in lines if "to" in line]
    assert sorted(plans) == [(False, "static", False), (True, "off", True)]
    assert [line["frame"]["type"] for line in lines if "frame" in line and "to" not in line] == ["hello", "telemetry"]
