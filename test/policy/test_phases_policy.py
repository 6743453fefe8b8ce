"""The policy of `nightjar profile`: a phase lasts as many iterations as really had its γ."""

from helpers.policy_load import make_hello

from sglang_nightjar.core.messages import Telemetry
from sglang_nightjar.draft.phases_policy import Phases, PhasesParams


def test_iterations_that_only_make_ready_do_not_count() -> None:
    policy = Phases(PhasesParams(iterations=(3, 2), gammas=(0, 2)))
    plan = policy.hello(make_hello(candidates=(0, 1, 2), start_gamma=2))
    wanted = []
    # The first iteration was launched with the γ before; a return takes the four at γ=0 in the middle.
    for index, gamma in enumerate([2, 0, 0, 0, 0, 0, 0, 0, 2, 2, 0]):
        plan = policy.telemetry("s/dp0/a", Telemetry(index, index, 1, 4, gamma, 4)) or plan
        wanted.append(plan.gamma_for(4))
    assert wanted == [0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0]
