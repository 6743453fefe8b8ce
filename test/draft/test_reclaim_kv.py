"""The draft gives its KV cache back too, on SGLang's own scheduler: all of it is stale then, and is made good.

Scenes (reclaim_scenes.py) run under SGLang's strict memory checks. The EAGLE draft is the demo pair's, whose accepted
length means something; the STANDALONE one is its target's twin, so that a single wrong row would be seen.
"""

from pathlib import Path
from typing import Any

import pytest
import reclaim_scenes
import standalone_scenes
from helpers.lossless import Referee
from helpers.one_scheduler import in_own_process

pytestmark = pytest.mark.server

#: Of all drafts of twins, for ties within rounding.
TIES = 0.005


@pytest.fixture(scope="module")
def scenes(target: Path, draft: Path) -> dict[str, Any]:
    return in_own_process(reclaim_scenes.all_scenes, str(target), str(draft))


@pytest.fixture(scope="module")
def twins(target: Path) -> dict[str, Any]:
    return in_own_process(reclaim_scenes.standalone, str(target))


@pytest.fixture(scope="module")
def referee(target: Path) -> Referee:
    return Referee(target)


def test_it_frees_what_was_predicted(scenes: dict[str, Any]) -> None:
    assert scenes["predicted"] == scenes["real"]
    assert scenes["kv bytes"] > 0
    seen, (_, tokens) = scenes["running"], scenes["real"]
    assert (seen["draft bytes"], seen["capacity"]) == (0, reclaim_scenes.BASE + tokens)


def test_all_that_runs_is_behind_by_all_that_it_has(scenes: dict[str, Any]) -> None:
    seen = scenes["running"]
    assert seen["lag"] == seen["positions"] > 0
    assert seen["caught up"] > seen["lag"]


@pytest.mark.parametrize("scene", ["running", "cached"])
def test_the_text_is_the_same(scenes: dict[str, Any], referee: Referee, scene: str) -> None:
    prompts = scenes["prompts"]
    for index, ours, reference in scenes[scene]["pairs"]:
        difference = referee.first_difference(prompts[index], ours, reference)
        assert difference is not None and difference.is_tie, (scene, index, difference)


def test_acceptance_after_the_return_is_that_of_requests_left_alone(scenes: dict[str, Any]) -> None:
    """Iterations at γ=0 shift where drafts begin, so of a few hundred some are luckier."""
    assert scenes["running"]["left"] >= 20
    ours, theirs = scenes["running"]["accepted"]
    assert ours >= 0.95 * theirs > 1.2


def test_prefixes_in_the_radix_cache_are_made_good(scenes: dict[str, Any]) -> None:
    found = scenes["cached"]
    prompts = [scenes["prompts"][index] for index in reclaim_scenes.WHICH]
    # Beginnings in common are there once.
    assert found["caught up"] >= len({tuple(ids[:length]) for ids in prompts for length in range(1, len(ids))})
    ours, theirs = found["lengths"]
    assert ours >= 0.95 * theirs


@pytest.mark.parametrize("scene", ["cache", "cache without a journal"])
def test_the_draft_cache_after_a_return_is_what_it_would_have_been(scenes: dict[str, Any], scene: str) -> None:
    assert scenes[scene]["other positions"] > 0.5
    assert scenes[scene]["difference"] < 1e-3


def test_within_the_journals_bound_nothing_is_computed_anew_and_beyond_it_all_is(scenes: dict[str, Any]) -> None:
    assert scenes["recomputed"] == (0, 0)
    assert scenes["journalled"] > 0
    assert scenes["recomputed without a journal"] > reclaim_scenes.BEFORE


def test_of_a_standalone_draft_every_draft_is_accepted(twins: dict[str, Any]) -> None:
    found = twins["away"]
    assert found["same"] and found["drafted"] > 100
    assert found["rejected"] <= TIES * found["drafted"]
    assert twins["not caught up"]["rejected"] > 20 * TIES * twins["not caught up"]["drafted"]


def test_a_standalone_drafts_kv_doubles_the_targets(twins: dict[str, Any]) -> None:
    assert twins["predicted"] == twins["real"]
    _, tokens = twins["real"]
    assert tokens > standalone_scenes.BASE
    assert twins["away"]["device bytes"] == [0, 0]
    assert twins["away"]["capacity"] == [standalone_scenes.BASE + tokens] * 2


def test_nothing_failed_quietly(scenes: dict[str, Any], twins: dict[str, Any]) -> None:
    assert scenes["failures"] == twins["failures"] == 0
