"""Slots held in advance follow γ, and drafts never retract a request."""

import pytest

from sglang_nightjar.agent.decision import Decision
from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.draft.reserve import Reserve


@pytest.fixture
def selector() -> GammaSelector:
    made = GammaSelector((0, 1, 3, 5), 3)
    made.decide(Decision(((1, 4, 5), (5, 8, 3), (9, None, 0)), "policy", 1, "test", "", 0))
    return made


@pytest.mark.parametrize("batch_size, slots", [(1, 6), (6, 4), (20, 1)])
def test_one_iteration_ahead_when_results_are_known(selector: GammaSelector, batch_size: int, slots: int) -> None:
    reserve = Reserve(selector, overlapped=False)
    assert reserve.settle(batch_size, True, lambda: True)
    assert reserve.slots() == slots


def test_under_overlap_what_is_in_flight_counts_too(selector: GammaSelector) -> None:
    reserve = Reserve(selector, overlapped=True)
    selector.get_steps_for_batch(6)
    reserve.settle(20, True, lambda: True)
    assert reserve.slots() == 4 + 1
    selector.get_steps_for_batch(20)
    reserve.settle(20, True, lambda: True)
    assert reserve.slots() == 1 + 1


def test_without_slots_for_drafts_there_are_no_drafts(selector: GammaSelector) -> None:
    reserve = Reserve(selector, overlapped=False)
    assert reserve.settle(1, True, lambda: reserve.slots() <= 2)
    assert (reserve.gamma, reserve.refused) == (0, 1)
    assert not reserve.settle(1, True, lambda: False)


def test_a_draft_that_is_away_needs_no_slots(selector: GammaSelector) -> None:
    reserve = Reserve(selector, overlapped=False)
    reserve.settle(1, False, lambda: True)
    assert (reserve.gamma, reserve.slots(), reserve.refused) == (0, 1, 0)
