"""A draft that goes away and comes back on SGLang's own scheduler (away_scenes.py), under its strict memory checks."""

from pathlib import Path
from typing import Any

import away_scenes
import pytest
from helpers.one_scheduler import in_own_process

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def scenes(target: Path) -> dict[str, Any]:
    return in_own_process(away_scenes.all_scenes, str(target))


def test_what_the_doctor_predicts_is_what_the_driver_gains(scenes: dict[str, Any]) -> None:
    assert scenes["predicted"] == scenes["real"]


@pytest.mark.parametrize("retract", [False, True])
def test_a_prompt_in_chunks_survives_a_shrink(scenes: dict[str, Any], retract: bool) -> None:
    found = scenes["chunked"][retract]
    assert found["states"], "a chunk was to come when the draft was wanted back"
    assert all(withheld == 0 for _, withheld in found["states"]), found["states"]
    assert found["lengths"] == [away_scenes.NEW] * 4
    assert (found["end"], found["capacity"]) == ("PARKED", away_scenes.BASE)
