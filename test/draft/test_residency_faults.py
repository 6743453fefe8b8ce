"""The cycle of a draft's memory when something fails: here, on another rank, or in our own code."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from helpers.draft_world import AWAY, HERE, Parts

from sglang_nightjar.core.messages import Residency
from sglang_nightjar.core.residency import LONGEST_PAUSE_TICKS, Wish
from sglang_nightjar.draft import residency
from sglang_nightjar.memory.posix import PAGE


def test_a_failed_move_leaves_every_list_as_it_was() -> None:
    parts = Parts()
    parts.away_with_holes()
    parts.wish, parts.faults.move = HERE, 1
    while not parts.driver.machine.failures:
        parts.driver.step()
        parts.check()
    assert parts.driver.machine.state is Residency.OFFLOADED
    parts.go(HERE, Residency.RESIDENT, LONGEST_PAUSE_TICKS)


@pytest.mark.parametrize("fault, wish", [("commit", AWAY), ("release", AWAY), ("commit", HERE), ("release", HERE)])
@pytest.mark.parametrize("when", range(6))
@pytest.mark.parametrize("kv", [False, True])
def test_each_refusal_leads_to_a_state_that_serves(fault: str, wish: Wish, when: int, kv: bool) -> None:
    parts = Parts(kv=kv)
    world = parts.world
    kept = world.admit([1, 2, 3] * 10)
    if wish is HERE:
        parts.go(AWAY, Residency.OFFLOADED)
    setattr(parts.faults, fault, when)
    parts.wish = wish
    for _ in range(40):
        parts.driver.step()
        parts.check()
    setattr(parts.faults, fault, None)
    assert world.grow(kept, 7)
    parts.go(AWAY, Residency.OFFLOADED, LONGEST_PAUSE_TICKS)
    parts.go(HERE, Residency.RESIDENT, LONGEST_PAUSE_TICKS)
    assert world.scheduler.max_total_num_tokens == world.pool.base_tokens


def test_a_failure_on_another_rank_is_a_failure_here() -> None:
    codes = []

    def agree(code: int) -> int:
        codes.append(code)
        return 0 if len(codes) == 12 else code

    parts = Parts(agree=agree)
    parts.go(AWAY, Residency.OFFLOADED)
    while len(codes) < 12:
        parts.wish = HERE if parts.driver.machine.state is Residency.OFFLOADED else AWAY
        parts.driver.step()
        parts.check()
    parts.go(HERE, Residency.RESIDENT, LONGEST_PAUSE_TICKS)


class Ranks:
    """Two drivers in step, each on a thread of its own, as two ranks of a TP group are."""

    def __init__(self, kv: bool = False) -> None:
        self._codes = [0, 0]
        self._meeting = threading.Barrier(2, timeout=20)
        self.parts = [Parts(agree=lambda code, rank=rank: self._agree(rank, code), ranks=2, kv=kv) for rank in (0, 1)]

    def _agree(self, rank: int, code: int) -> int:
        self._codes[rank] = code
        self._meeting.wait()
        least = min(self._codes)
        self._meeting.wait()
        return least

    def step(self, wish: Wish) -> None:
        for parts in self.parts:
            parts.wish = wish
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(parts.driver.step) for parts in self.parts]:
                done.result(30)
        for parts in self.parts:
            parts.check()
        states, capacities = zip(
            *((p.driver.machine.state, p.world.scheduler.max_total_num_tokens) for p in self.parts), strict=True
        )
        assert states[0] is states[1]
        assert capacities[0] == capacities[1]
        if self.parts[0].cache is not None:
            # It decides about shapes.
            assert torch.equal(*(parts.cache.coverage.stale for parts in self.parts))

    def go(self, wish: Wish, state: Residency) -> None:
        for _ in range(400):
            self.step(wish)
            if self.parts[0].driver.machine.state is state:
                return
        raise AssertionError(f"{self.parts[0].driver.machine.state.name}, not {state.name}")


@pytest.mark.parametrize("fault", ["commit", "release"])
@pytest.mark.parametrize("when", range(5))
@pytest.mark.parametrize("kv", [False, True])
def test_ranks_whose_work_takes_unlike_time_stay_alike_when_one_fails(fault: str, when: int, kv: bool) -> None:
    """What is handed out on one rank was backed by memory on all, however many pieces each of them needs."""
    ranks = Ranks(kv)
    slow = ranks.parts[1]
    slow.weights._piece = PAGE
    setattr(slow.faults, fault, when)
    for _ in range(60):
        ranks.step(AWAY)
    setattr(slow.faults, fault, None)
    ranks.go(AWAY, Residency.OFFLOADED)
    ranks.go(HERE, Residency.RESIDENT)


def test_one_of_several_ranks_ends_when_it_cannot_move_rows() -> None:
    """The others have moved theirs; what is free would differ in every shrink to come."""
    parts = Parts(ranks=2)
    parts.away_with_holes()
    parts.faults.move = 0
    with pytest.raises(RuntimeError, match="injected"):
        parts.go(HERE, Residency.RESIDENT)


@pytest.mark.parametrize("away", [False, True])
def test_a_bug_of_ours_costs_the_draft_and_no_request(monkeypatch: pytest.MonkeyPatch, away: bool) -> None:
    from sglang_nightjar.patches import scheduler_residency

    parts = Parts()
    if away:
        parts.go(AWAY, Residency.OFFLOADED)
    available: list[bool] = []
    parts.driver.on_change = available.append
    monkeypatch.setattr(residency, "current", parts.driver)
    monkeypatch.setattr(residency, "why_not", "")
    monkeypatch.setattr(parts.driver, "_one_piece", lambda: 1 / 0)
    parts.world.scheduler.ps = SimpleNamespace(tp_size=1)
    scheduler_residency.between_iterations(parts.world.scheduler, None, None)
    assert residency.current is None and "ZeroDivisionError" in residency.why_not
    assert available == [not away]
    scheduler_residency.between_iterations(parts.world.scheduler, None, None)
    monkeypatch.setattr(residency, "current", parts.driver)
    parts.world.scheduler.ps.tp_size = 2
    with pytest.raises(ZeroDivisionError):
        scheduler_residency.between_iterations(parts.world.scheduler, None, None)
