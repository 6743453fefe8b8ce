"""cpu/eagle3_draft.py against SGLang's own path through its ModelRunner, on SGLang's own scheduler."""

from pathlib import Path
from typing import Any

import eagle3_scenes
import pytest
from helpers.one_scheduler import in_own_process

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def scenes(target: Path, draft: Path) -> dict[str, Any]:
    return in_own_process(eagle3_scenes.all_scenes, str(target), str(draft))


def test_drafts_states_and_cache_are_sglangs_bit_by_bit(scenes: dict[str, Any]) -> None:
    compared = scenes["compared"]
    assert not compared["different"], compared["different"][:3]
    # Something was compared, and there was something to leave out.
    assert min(compared["chains"], compared["extends"]) > 30
    assert min(compared["prompts"], compared["chunks"], compared["prefixes"]) > 1
    assert compared["rejected"] > 20
    # Some of what was missed was filled in without drafts.
    assert compared["caught up"] > compared["first drafts"] > 1


def test_texts_are_the_same_where_drafts_that_do_not_pay_are_left_out(scenes: dict[str, Any]) -> None:
    found = scenes["trimmed"]
    assert found["texts"][True] == found["texts"][False]
    assert 0.3 < found["left"] / found["rows"] < 0.95
    assert (
        found["never made"] > 20 and found["verifications cut short"] > 20 and 0 < found["accepted"] < found["likely"]
    )
    assert sorted(found["measured"]) == found["measured"] and found["measured"][0] > 1000


def test_the_draft_does_without_its_model_runner(scenes: dict[str, Any]) -> None:
    runs = scenes["runs"]
    assert runs["ours"]["modes"] == []
    assert {"EXTEND", "DECODE", "DRAFT_EXTEND_V2"} <= set(runs["sglangs"]["modes"])


def test_text_and_acceptance_are_the_same_either_way(scenes: dict[str, Any]) -> None:
    runs = scenes["runs"]
    assert runs["ours"]["texts"] == runs["sglangs"]["texts"]
    assert runs["ours"]["accepted"] == runs["sglangs"]["accepted"]


def test_a_draft_that_does_not_fit_is_sglangs(scenes: dict[str, Any]) -> None:
    runs = scenes["runs"]
    reasons = runs["reasons"]
    assert reasons.pop("as it is") == ""
    assert all(reasons.values()), reasons
