"""γ=0 on SGLang's own scheduler: no draft work, the same text, and a draft that comes back as if it had never stopped.

One process plays all scenes (off_path_scenes.py) under SGLang's strict memory checks, with γ set for every iteration.
"""

from pathlib import Path
from typing import Any

import off_path_scenes
import pytest
from helpers.lossless import Referee
from helpers.one_scheduler import in_own_process

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def scenes(target: Path, draft: Path) -> dict[str, Any]:
    return in_own_process(off_path_scenes.all_scenes, str(target), str(draft))


@pytest.fixture(scope="module")
def referee(target: Path) -> Referee:
    return Referee(target)


@pytest.mark.parametrize("scene", ["always 0", "stale prefixes", "flips"])
def test_the_text_is_the_same(scenes: dict[str, Any], referee: Referee, scene: str) -> None:
    prompts = scenes["prompts"]
    for index, ours, reference in scenes[scene]["pairs"]:
        difference = referee.first_difference(prompts[index], ours, reference)
        assert difference is not None and difference.is_tie, (scene, index, difference)


def test_gamma_0_runs_no_draft(scenes: dict[str, Any]) -> None:
    assert scenes["always 0"]["used"] == [0]
    assert scenes["always 0"]["draft calls"] == 0
    assert scenes["always 3"]["journalled"] == 0


def test_gamma_0_holds_one_slot_per_request_beyond_its_text(scenes: dict[str, Any]) -> None:
    assert scenes["reserve"] == {0: 1, 3: 4}


def test_prefixes_that_the_draft_never_saw_are_caught_up(scenes: dict[str, Any]) -> None:
    """Iterations at γ=0 shift where drafts begin, so one request may be luckier than before; all together not."""
    assert scenes["stale prefixes"]["caught up"] > 0
    lengths, always = (sum(scenes[name]["lengths"]) for name in ("stale prefixes", "always 3"))
    assert lengths == pytest.approx(always, rel=0.05)


def test_the_scene_of_flips_had_them_all(scenes: dict[str, Any]) -> None:
    assert set(scenes["flips"]["used"]) == {0, 1, 3, 5}
    assert scenes["flips"]["retracted"] > 0
    assert scenes["flips"]["chunked"] > 0


def test_sampled_drafts_are_accepted_right_after_a_return(scenes: dict[str, Any]) -> None:
    """Without shared noise, or from a wrong state, hardly any would be."""
    assert scenes["sampled"]["accepted"] > 0.25


@pytest.mark.parametrize("scene", ["cache", "cache without a journal"])
def test_the_draft_cache_after_a_return_is_what_it_would_have_been(scenes: dict[str, Any], scene: str) -> None:
    """Position by position; keys and values of other positions are as far apart as their own size."""
    assert scenes[scene]["other positions"] > 0.5
    assert scenes[scene]["difference"] < 1e-3


def test_what_is_not_in_the_journal_is_computed_anew(scenes: dict[str, Any]) -> None:
    assert scenes["recomputed"] == 0
    assert scenes["recomputed without a journal"] > 0


def test_nothing_failed_quietly(scenes: dict[str, Any]) -> None:
    assert scenes["failures"] == 0
