"""When γ is Nightjar's to choose, and with what."""

from pathlib import Path
from types import SimpleNamespace as Fake
from typing import Any

import pytest

from sglang_nightjar import defaults
from sglang_nightjar.agent import candidates, settings
from sglang_nightjar.agent.settings import Settings
from sglang_nightjar.errors import ConfigError


def arguments(**given: Any) -> Fake:
    usual = {
        "speculative_algorithm": "EAGLE3",
        "speculative_adaptive": False,
        "speculative_eagle_topk": 1,
        "speculative_num_steps": 3,
    }
    return Fake(**usual | given)


@pytest.mark.parametrize("algorithm", ["EAGLE", "EAGLE3", "STANDALONE"])
def test_a_chain_of_drafts_is_made_ready_for_every_gamma(algorithm: str) -> None:
    filled = defaults.for_steering(Settings(), arguments(speculative_algorithm=algorithm))
    text = filled.pop("speculative_adaptive_config")
    assert candidates.parse(text) == candidates.Candidates((0, 1, 2, 3, 4, 5), 3)
    # The largest, because SGLang sizes buffers by the γ at the start.
    assert filled == {
        "speculative_adaptive": True,
        "speculative_num_steps": 5,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": 6,
    }


@pytest.mark.parametrize(
    "given",
    [
        {"speculative_algorithm": None},
        {"speculative_algorithm": "NGRAM"},
        {"speculative_adaptive": True},
        {"speculative_eagle_topk": 4},
        {"enable_dp_attention": True},
        {"enable_two_batch_overlap": True},
    ],
    ids=str,
)
def test_where_sglang_can_not_switch_or_decides_itself_nothing_changes(given: dict[str, Any]) -> None:
    assert defaults.for_steering(Settings(), arguments(**given)) == {}


def test_policy_off_is_plain_sglang(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("policy: {name: 'off'}\n")
    for environment in ({"NIGHTJAR_POLICY": "off"}, {"NIGHTJAR_CONFIG": str(file)}):
        found = settings.load(environment)
        assert not found.steered
        assert defaults.for_steering(found, arguments()) == {}


@pytest.mark.parametrize("reclaim", ["weights", "weights+kv"])
def test_what_the_draft_gives_back_is_the_configs_to_say(tmp_path: Path, reclaim: str) -> None:
    assert not settings.load({}).reclaim_kv
    file = tmp_path / "config.yaml"
    file.write_text(f"memory: {{reclaim: {reclaim}}}\n")
    found = settings.load({"NIGHTJAR_CONFIG": str(file)})
    assert found.offload and found.reclaim_kv == (reclaim == "weights+kv")


def test_with_policy_off_no_agent_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang_nightjar.agent import scheduler_agent
    from sglang_nightjar.patches import scheduler

    monkeypatch.setenv("NIGHTJAR_POLICY", "off")
    monkeypatch.setattr(scheduler_agent, "current", None)
    scheduler.start_agent(None, Fake())
    assert scheduler_agent.current is None
    done = []
    scheduler.around_result(lambda *given: done.append(given), "scheduler", "batch", "result")
    assert done == [("scheduler", "batch", "result")]


def test_the_config_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("gamma: {candidates: [0, 2]}\nlink: {stale_after: 0.5, fallback: 2}\n")
    environment = {"NIGHTJAR_CONFIG": str(file), "NIGHTJAR_ENDPOINT": "ipc:///a/b"}
    assert settings.load(environment) == Settings("ipc:///a/b", None, True, (0, 2), 2, 0.5)
    with pytest.raises(ConfigError):
        settings.load({"NIGHTJAR_CONFIG": str(tmp_path / "missing.yaml")})


def test_an_exception_of_ours_stays_with_us(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang_nightjar.agent import scheduler_agent
    from sglang_nightjar.patches import scheduler

    class Broken(scheduler_agent.SchedulerAgent):
        def __init__(self) -> None:
            self.errors = 0

        def before_result(self, batch: Any, result: Any) -> None:
            raise ValueError("ours")

        def after_result(self, batch: Any, result: Any) -> None:
            raise KeyError("ours")

    agent = Broken()
    monkeypatch.setattr(scheduler_agent, "current", agent)
    done = []
    scheduler.around_result(lambda *given: done.append(given), "scheduler", "batch", "result")
    assert done == [("scheduler", "batch", "result")]
    assert agent.errors == 2
