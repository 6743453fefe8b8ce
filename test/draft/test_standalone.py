"""A STANDALONE draft on SGLang's own scheduler: γ changes, it goes away and comes back, and its cache is always right.

One process plays all scenes (standalone_scenes.py) under SGLang's strict memory checks. Target and draft are the same
model, so every draft must be accepted; a row that is wrong or missing in the draft's cache shows as rejections.
"""

from pathlib import Path
from typing import Any

import pytest
import standalone_scenes
from helpers.one_scheduler import in_own_process

pytestmark = pytest.mark.server

#: Of all drafts, for ties within rounding: draft and target are one position apart, so their angles round differently.
TIES = 0.005


@pytest.fixture(scope="module")
def scenes(target: Path) -> dict[str, Any]:
    return in_own_process(standalone_scenes.all_scenes, str(target))


@pytest.mark.parametrize("scene", ["stale prefixes", "always 3", "branches", "flips", "away"])
def test_the_text_is_the_targets_own(scenes: dict[str, Any], scene: str) -> None:
    assert scenes[scene]["same"]


@pytest.mark.parametrize("scene", ["always 3", "stale prefixes", "branches", "flips", "sampled", "away"])
def test_every_draft_is_accepted(scenes: dict[str, Any], scene: str) -> None:
    found = scenes[scene]
    assert found["drafted"] > 100
    assert found["rejected"] <= TIES * found["drafted"]


def test_a_draft_that_is_not_caught_up_is_noticed(scenes: dict[str, Any]) -> None:
    found = scenes["not caught up"]
    assert found["rejected"] > 20 * TIES * found["drafted"]


def test_gamma_0_runs_no_draft(scenes: dict[str, Any]) -> None:
    assert scenes["always 0"] == {"used": [0], "draft calls": 0}


def test_prefixes_that_the_draft_never_saw_are_caught_up(scenes: dict[str, Any]) -> None:
    assert scenes["stale prefixes"]["caught up"] > 0


def test_the_scene_of_flips_had_them_all(scenes: dict[str, Any]) -> None:
    assert set(scenes["flips"]["used"]) == {0, 1, 3, 5}
    assert scenes["flips"]["retracted"] > 0


def test_all_its_weights_go_and_the_cache_grows_as_predicted(scenes: dict[str, Any]) -> None:
    assert scenes["predicted"] == scenes["real"]
    found, (_, tokens) = scenes["away"], scenes["real"]
    assert found["device bytes"] == [0, 0]
    assert found["capacity"] == [standalone_scenes.BASE + tokens] * 2
    for state in ("OFFLOADED", "SHRINKING", "LOADING", "CATCHING_UP", "RESIDENT"):
        assert found["states"].count(state) >= 2


def test_nothing_is_kept_for_it_and_nothing_computed_anew(scenes: dict[str, Any]) -> None:
    empty = {"bytes": {"device": 0, "host": 0}, "capacity": 0, "written": 0}
    assert scenes["status"] == {"reads": "tokens", "journal": empty}
    assert scenes["recomputed"] == 0


def test_nothing_failed_quietly(scenes: dict[str, Any]) -> None:
    assert scenes["failures"] == 0
