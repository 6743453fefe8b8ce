"""The profile's file: found again, and never a reason not to start."""

from pathlib import Path

import pytest

from sglang_nightjar.core.switch_costs import SwitchCosts
from sglang_nightjar.profile import store

KEY = ("target", "draft", "cpu", 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTJAR_CACHE", str(tmp_path))


def test_what_was_saved_is_loaded_for_the_same_models_and_machine() -> None:
    costs = SwitchCosts()
    costs.observe(100, 5e6)
    store.save(KEY, costs)
    assert store.load(KEY) == costs
    assert store.load(("target", "draft", "another machine", 1)) == SwitchCosts()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"switch_costs": {"weight": "x"}}', '{"switch_costs": {"z": 1}}'])
def test_a_damaged_file_says_nothing(text: str) -> None:
    path = store.path_of(KEY)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert store.load(KEY) == SwitchCosts()


@pytest.mark.parametrize("costs", ['{"weight": 2.0, "y": 5.0}', '{"x": NaN}', '{"weight": 1e999, "x": 1.0}'])
def test_costs_that_cant_be_say_nothing(costs: str) -> None:
    path = store.path_of(KEY)
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"switch_costs": {costs}}}')
    assert store.load(KEY) == SwitchCosts()


def test_both_parts_are_kept_when_one_is_written() -> None:
    costs, steps = SwitchCosts(), {"load": {"ms": 30.0, "busy_ms": 12.5}}
    costs.observe(100, 5e6)
    store.save(KEY, costs)
    store.save_steps(KEY, steps)
    assert (store.load(KEY), store.load_steps(KEY)) == (costs, steps)
    costs.observe(10, 1e6)
    store.save(KEY, costs)
    assert (store.load(KEY), store.load_steps(KEY)) == (costs, steps)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": {"load": 3}}', '{"steps": {"load": {"ms": "x"}}}'])
def test_damaged_times_say_nothing(text: str) -> None:
    path = store.path_of(KEY)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert store.load_steps(KEY) == {}
