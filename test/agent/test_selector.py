"""γ for a batch, from the decision in force."""

import pickle

import pytest

from sglang_nightjar.agent.candidates import Candidates, choose, parse
from sglang_nightjar.agent.decision import FALLBACK, Decision, fallback, from_plan
from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.agent.settings import Settings
from sglang_nightjar.core.messages import Plan

PLAN = Plan(7, "table", "1", ((1, 4, 5), (5, 16, 2), (17, None, 0)), "device", "why", 1000)


@pytest.fixture
def selector() -> GammaSelector:
    return GammaSelector((0, 1, 2, 3, 5), 3)


def test_before_any_plan_it_is_the_fallback(selector: GammaSelector) -> None:
    assert [selector.get_steps_for_batch(size) for size in (1, 20, 5000)] == [3, 3, 3]
    assert selector.decision.source == FALLBACK


def test_a_plan_decides_at_once_for_every_batch_size(selector: GammaSelector) -> None:
    selector.get_steps_for_batch(4)
    selector.decide(from_plan(PLAN, 1))
    assert [selector.get_steps_for_batch(size) for size in (1, 4, 5, 16, 17, 5000)] == [5, 5, 2, 2, 0, 0]
    selector.decide(fallback(1, "gone", 2))
    assert selector.get_steps_for_batch(4) == 1


def test_launches_remember_the_plan_under_which_they_were_launched(selector: GammaSelector) -> None:
    selector.get_steps_for_batch(8)
    selector.decide(from_plan(PLAN, 1))
    selector.get_steps_for_batch(8)
    assert [(launch.gamma, launch.decision.plan_id) for launch in selector.launches] == [(3, 0), (2, 7)]
    assert selector.launched == 2


def test_a_plan_with_a_gamma_that_was_not_built_is_refused(selector: GammaSelector) -> None:
    assert selector.refusal(from_plan(PLAN, 1)) == ""
    assert "[4]" in selector.refusal(fallback(4, "", 1))


def test_it_has_the_methods_of_sglangs_protocol(selector: GammaSelector) -> None:
    assert selector.candidate_steps == [0, 1, 2, 3, 5]
    assert selector.cuda_graph_bs_for_step(5) is None
    selector.set_cuda_graph_bs([8, 1, 4])
    assert selector.cuda_graph_bs_for_step(5) == [1, 4, 8]
    assert selector.on_verify_complete([1, 2], 2) is None


def test_a_fallback_outside_the_candidates_is_an_error() -> None:
    with pytest.raises(ValueError, match="4"):
        GammaSelector((0, 1), 4)


def test_a_decision_survives_the_way_to_the_other_ranks() -> None:
    decision = from_plan(PLAN, 3)
    assert pickle.loads(pickle.dumps(decision)) == decision
    assert isinstance(decision, Decision)


def test_candidates_survive_the_way_through_the_arguments() -> None:
    given = Candidates((0, 2, 4), 2)
    assert parse(given.dump()) == given
    assert parse("/some/path.json") is None
    assert parse(None) is None


@pytest.mark.parametrize(
    "settings, num_steps, expected",
    [
        (Settings(), None, Candidates((0, 1, 2, 3, 4, 5), 3)),
        (Settings(), 2, Candidates((0, 1, 2, 3, 4, 5), 2)),
        (Settings(), 7, Candidates((0, 1, 2, 3, 4, 5, 7), 7)),
        (Settings(candidates=(0, 5)), None, Candidates((0, 5), 5)),
        (Settings(candidates=(0, 5), fallback_gamma=1), 5, Candidates((0, 1, 5), 1)),
        (Settings(), 0, Candidates((0, 1, 2, 3, 4, 5), 0)),
    ],
)
def test_the_fallback_is_the_configured_one_or_the_users(settings, num_steps, expected) -> None:
    assert choose(settings, num_steps) == expected


def test_a_batch_for_which_the_draft_is_not_ready_goes_without(selector: GammaSelector) -> None:
    selector.held = True
    assert selector.get_steps_for_batch(4) == 0
    assert selector.launches[-1].gamma == selector.last_gamma == 0
    selector.held = False
    assert selector.get_steps_for_batch(4) == selector.last_gamma == 3
