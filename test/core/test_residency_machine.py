"""The residency machine: a draft goes away and comes back, plans change their mind, and steps fail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_nightjar.core.messages import Residency
from sglang_nightjar.core.residency import (
    FIRST_PAUSE_TICKS,
    LONGEST_PAUSE_TICKS,
    TRANSITIONS,
    Event,
    ImpossibleTransition,
    ResidencyMachine,
    Wish,
)

AWAY = Wish(on_device=False, drafting=False)
HERE = Wish(on_device=True, drafting=True)
OFF = Wish(on_device=True, drafting=False)

#: What ends the work of a state well.
ENDS = {
    Residency.OFFLOADING: Event.RELEASED,
    Residency.SHRINKING: Event.SHRUNK,
    Residency.LOADING: Event.LOADED,
    Residency.CATCHING_UP: Event.CAUGHT_UP,
}


def advance(machine: ResidencyMachine, wish: Wish) -> bool:
    """One step towards ``wish``; False if nothing is left to do."""
    machine.tick()
    event = machine.wanted(wish) or ENDS.get(machine.state)
    if event is None:
        return False
    machine.fire(event, "test")
    return True


def go(machine: ResidencyMachine, wish: Wish) -> list[str]:
    states = []
    while advance(machine, wish):
        states.append(machine.state.name)
    return states


def test_the_whole_cycle() -> None:
    machine = ResidencyMachine()
    assert machine.has_weights
    assert go(machine, AWAY) == ["PARKED", "OFFLOADING", "OFFLOADED"]
    assert not machine.has_weights
    assert go(machine, HERE) == ["SHRINKING", "LOADING", "CATCHING_UP", "RESIDENT"]
    assert (machine.offloads, machine.reloads, machine.failures) == (1, 1, 0)


def test_gamma_0_parks_and_leaves_the_weights() -> None:
    machine = ResidencyMachine()
    assert go(machine, OFF) == ["PARKED"]
    assert machine.has_weights
    assert go(machine, HERE) == ["CATCHING_UP", "RESIDENT"]


def test_a_draft_that_is_called_back_without_work_waits_parked() -> None:
    machine = ResidencyMachine()
    go(machine, AWAY)
    assert go(machine, OFF) == ["SHRINKING", "LOADING", "CATCHING_UP", "PARKED"]


@pytest.mark.parametrize("state", [Residency.SHRINKING, Residency.LOADING])
def test_a_plan_that_is_reversed_turns_back(state: Residency) -> None:
    machine = ResidencyMachine()
    go(machine, AWAY)
    while machine.state is not state:
        advance(machine, HERE)
    assert go(machine, AWAY)[-1] == "OFFLOADED"


@pytest.mark.parametrize("state", [state for state in ENDS])
def test_a_step_that_fails_is_tried_again_later_and_ever_more_rarely(state: Residency) -> None:
    machine = ResidencyMachine()
    wish = AWAY if state is Residency.OFFLOADING else HERE
    if wish is HERE:
        go(machine, AWAY)
    pauses = []
    for _ in range(12):
        while machine.state is not state:
            assert machine.wanted(wish) is not None or machine.state in ENDS
            advance(machine, wish)
        machine.fire(Event.FAILED, "refused")
        assert machine.state is not Residency.RESIDENT
        ticks = 0
        while machine.wanted(wish) is None:
            machine.tick()
            ticks += 1
        pauses.append(ticks)
    assert pauses[0] == FIRST_PAUSE_TICKS
    # A step before the one that fails may succeed, and then the pause starts over.
    assert pauses == sorted(pauses) and max(pauses) <= LONGEST_PAUSE_TICKS
    assert machine.failures == 12


def test_a_failure_does_not_keep_a_wish_to_stop_from_being_heard() -> None:
    machine = ResidencyMachine()
    go(machine, AWAY)
    advance(machine, HERE)
    machine.fire(Event.FAILED, "refused")
    machine.tick()
    assert machine.wanted(HERE) is None
    assert machine.state is Residency.OFFLOADED


def test_an_event_out_of_place_is_refused() -> None:
    machine = ResidencyMachine()
    with pytest.raises(ImpossibleTransition, match="'loaded' in state RESIDENT"):
        machine.fire(Event.LOADED, "test")
    assert machine.state is Residency.RESIDENT


def test_every_state_is_left_and_reached() -> None:
    assert {state for state, _ in TRANSITIONS} == set(Residency)
    assert set(TRANSITIONS.values()) == set(Residency)


@given(st.lists(st.tuples(st.sampled_from([AWAY, HERE, OFF]), st.booleans()), max_size=200))
def test_from_anywhere_the_draft_comes_back(steps: list[tuple[Wish, bool]]) -> None:
    machine = ResidencyMachine()
    for wish, fails in steps:
        if fails and machine.state in ENDS:
            machine.fire(Event.FAILED, "injected")
        else:
            advance(machine, wish)
    for _ in range(LONGEST_PAUSE_TICKS + 100):
        advance(machine, HERE)
    assert machine.state is Residency.RESIDENT
