"""``model`` gives the draft's memory up under pressure, by the same rule as ``nightjar``, and has it back after it."""

from dataclasses import replace

import pytest

from sglang_nightjar.core.policy import Policy
from sglang_nightjar.policies.model import Model, ModelParams
from sglang_nightjar.sim.builtin import builtin
from sglang_nightjar.sim.loads import Lengths, LoadSettings
from sglang_nightjar.sim.setup import Setup
from sglang_nightjar.sim.world import simulate


class Told(Model):
    """Remembers where it wanted the draft, and whether an iteration had drafts."""

    def __init__(self, params=None, seed=0):
        super().__init__(params, seed)
        self.residencies, self.gammas = [], []

    def telemetry(self, sender, record):
        self.gammas.append(record.gamma)
        decision = super().telemetry(sender, record)
        if decision is not None:
            self.residencies.append(decision.residency)
        return decision


def server(without_draft: int) -> Setup:
    setup = builtin("demo-cpu")
    moves = replace(setup.engine.draft, parks=True)
    engine = replace(setup.engine, kv_tokens=2_000, kv_tokens_without_draft=without_draft, draft=moves)
    return replace(setup, engine=engine)


def run(policy: Policy, without_draft: int = 3_000):
    """A surge that KV has no room for, and then a single client."""
    load = LoadSettings(clients=((60.0, 30.0), (60.0, 1.0)), prompt=Lengths(64), output=Lengths(100))
    return simulate(server(without_draft), load, policy, seed=1)


def test_the_draft_leaves_in_a_surge_and_is_back_after_it():
    policy = Told(seed=1)
    assert run(policy).offloads == 1
    assert policy.residencies[0] == "device" and policy.residencies[-1] == "device"
    assert sum(gamma > 0 for gamma in policy.gammas[-100:]) > 60


def test_it_stays_where_nothing_is_to_be_gained():
    policy = Told(seed=1)
    assert run(policy, without_draft=2_000).offloads == 0
    assert set(policy.residencies) == {"device"}


@pytest.mark.parametrize(("persistence_s", "leaves"), [(3600.0, False), (0.5, True)])
def test_pressure_must_last(persistence_s, leaves):
    assert (run(Model(ModelParams(persistence_s=persistence_s), seed=1)).offloads > 0) == leaves
