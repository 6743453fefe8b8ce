"""The whole cycle of a draft's memory on SGLang's own cache classes, with requests, plans and failures at random.

After every step: free and used add up to the capacity in each of SGLang's copies of it, no slot has two owners, every
row holds what its owner wrote, the draft's weights are what they were whenever it may run, what of its cache is not
noted as stale is right, and no memory is used that is not there.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from helpers.kv_world import ROWS, KvWorld, contents, make_pool
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sglang_nightjar.core.messages import Residency
from sglang_nightjar.core.residency import LONGEST_PAUSE_TICKS, Wish
from sglang_nightjar.draft import elastic_pool, residency
from sglang_nightjar.draft.coverage import Coverage
from sglang_nightjar.draft.draft_kv import DraftKv
from sglang_nightjar.draft.residency import DraftResidency
from sglang_nightjar.draft.step_times import STEPS, StepTimes
from sglang_nightjar.draft.weights import DraftWeights
from sglang_nightjar.memory.elastic import MemoryRefusedError
from sglang_nightjar.memory.posix import PAGE, PosixBuffer

AWAY = Wish(on_device=False, drafting=False)
OFF = Wish(on_device=True, drafting=False)
HERE = Wish(on_device=True, drafting=True)


class Faults:
    """What fails: the commit, release, copy or move after so many more; None: nothing."""

    def __init__(self) -> None:
        self.commit: int | None = None
        self.release: int | None = None
        self.copy: int | None = None
        self.move: int | None = None

    def due(self, name: str) -> bool:
        left = getattr(self, name)
        if left is None:
            return False
        setattr(self, name, None if left == 0 else left - 1)
        return left == 0


def flaky(faults: Faults):
    """A kind of buffer on a CPU that fails when told to."""

    class Flaky(PosixBuffer):
        def _back(self, start: int, end: int) -> None:
            if faults.due("commit"):
                raise MemoryRefusedError("injected")
            super()._back(start, end)

        def _unback(self, start: int) -> int:
            if start < self.committed and faults.due("release"):
                raise OSError("injected")
            return super()._unback(start)

    return lambda nbytes, device, huge_bytes=0: Flaky(nbytes)


class FlakyWeights(DraftWeights):
    """Copies from the host fail when told to."""

    faults: Faults | None = None

    def _fetch(self, start: int, end: int) -> None:
        if self.faults is not None and self.faults.due("copy"):
            raise RuntimeError("injected")
        super()._fetch(start, end)


class DraftCache:
    """The draft's KV of a world, and what is noted of it: written with the target's while the draft may run."""

    #: Its rows are none of the target's.
    FIRST = 10

    def __init__(self, world: KvWorld, buffers):
        self.kv = DraftKv(make_pool(world.pool.base_tokens), buffers)
        self.coverage = Coverage(world.pool.max_tokens + 1, ROWS, "cpu")
        self.may_run = lambda: True
        self._world = world
        world.on_write = self.wrote
        world.tail.on_move.append(self.coverage.moved)

    def wrote(self, slots: torch.Tensor, tokens: list[int], first: int) -> None:
        if not self.may_run():
            self.coverage.skipped(slots)
            return
        for number, buffer in enumerate(self._buffers()):
            for i, slot in enumerate(slots.tolist()):
                buffer[slot] = contents(tokens, first + i, self.FIRST + number)
        self.coverage.wrote(slots)

    def catch_up(self, req) -> None:
        line = self._world.scheduler.req_to_token_pool.req_to_token[req.req_pool_idx]
        self.wrote(line[: len(req.tokens)].long(), req.tokens, 0)

    def lost(self, requests) -> None:
        self.coverage.lost({req.req_pool_idx: req.kv_committed_len for req in requests})

    def check(self) -> int:
        """What is not stale is right, whoever holds it; how many rows that are."""
        table, fresh = self._world.scheduler.req_to_token_pool.req_to_token, 0
        held = [(path, value, len(path) - len(value)) for path, value in self._world.cached()]
        held += [(req.tokens, table[req.req_pool_idx, : len(req.tokens)].long(), 0) for req in self._world.holding]
        for tokens, slots, first in held:
            at = [i for i, stale in enumerate(self.coverage.stale[slots].tolist()) if not stale]
            fresh += len(at)
            for number, buffer in enumerate(self._buffers()):
                expected = [contents(tokens, first + i, self.FIRST + number) for i in at]
                assert buffer[slots[at], -1, -1].tolist() == expected
        return fresh

    def _buffers(self):
        return (*self.kv.pool.k_buffer, *self.kv.pool.v_buffer)


class Parts:
    """A world, weights and a driver over buffers that fail when told to; if wanted, the draft's KV goes too."""

    def __init__(
        self, radix: bool = True, retract: bool = False, agree=lambda code: code, ranks: int = 1, kv: bool = False
    ):
        self.faults = Faults()
        self.world = KvWorld(radix=radix, buffers=flaky(self.faults))
        torch.manual_seed(0)
        self.model = torch.nn.ModuleDict({"fc": torch.nn.Linear(64, 80), "norm": torch.nn.LayerNorm(64)})
        self.model.requires_grad_(False)
        self.original = {name: p.clone() for name, p in self.model.named_parameters()}
        self.weights = FlakyWeights(self.model, None, flaky(self.faults))
        self.weights.faults = self.faults
        self.weights._piece = 2 * PAGE
        self.wish = HERE
        self.idle = False
        self.world.tail._pages_per_step = 3
        self.world.tail.on_move.append(self.moved)
        self.fences = 0
        self.cache = DraftCache(self.world, flaky(self.faults)) if kv else None
        self.driver = DraftResidency(
            self.weights, self.world.pool, self.world.tail, lambda: self.wish, lambda: self.idle, self.fence, agree,
            retract, ranks, self.cache.kv if self.cache is not None else None,
        )  # fmt: skip
        if self.cache is not None:
            self.cache.may_run = lambda: self.driver.machine.has_weights
            self.driver.on_loss = self.cache.lost

    @property
    def draft_bytes(self) -> int:
        return self.weights.device_bytes + (self.cache.kv.device_bytes if self.cache is not None else 0)

    def close(self) -> None:
        self.weights._buffer.close()
        self.world.pool.close()
        if self.cache is not None:
            self.cache.kv.close()

    def fence(self) -> None:
        self.fences += 1

    def moved(self, _old: torch.Tensor, _new: torch.Tensor) -> None:
        if self.faults.due("move"):
            raise RuntimeError("injected")

    def go(self, wish: Wish, state: Residency, steps: int = 400) -> None:
        self.wish = wish
        for _ in range(steps):
            self.driver.step()
            self.check()
            if self.driver.machine.state is state:
                return
        raise AssertionError(f"{self.driver.machine.state.name} after {steps} steps, not {state.name}")

    def check(self) -> None:
        self.world.check()
        if self.driver.machine.has_weights:
            for name, parameter in self.model.named_parameters():
                assert torch.equal(parameter, self.original[name]), name
            if self.cache is not None:
                assert self.driver.is_all_there
                self.cache.check()


@pytest.mark.parametrize("kv", [False, True])
def test_memory_changes_hands_and_back(kv: bool) -> None:
    parts = Parts(kv=kv)
    world, driver = parts.world, parts.driver
    base, held = world.pool.base_tokens, parts.draft_bytes
    assert held == driver.freed_bytes == parts.weights.nbytes + (4 * 2 * PAGE if kv else 0)
    before = world.pool.committed_bytes + held
    parts.go(AWAY, Residency.OFFLOADED)
    assert parts.draft_bytes == 0
    assert driver.extra_tokens > 0
    assert world.scheduler.max_total_num_tokens == base + driver.extra_tokens
    assert before - held < world.pool.committed_bytes <= before
    long = [world.admit([i] * 40) for i in range(1, 6)]
    assert all(long), "the room is really there"
    parts.check()
    for req in long[:3]:
        world.finish(req)
    parts.go(HERE, Residency.RESIDENT)
    assert world.tail.moved_tokens > 0
    assert world.scheduler.max_total_num_tokens == base
    assert world.pool.committed_bytes + parts.draft_bytes == before
    assert parts.fences > 0


def test_what_the_drafts_cache_held_is_stale_after_its_return() -> None:
    """Of requests that run, of the cache, and of one that came meanwhile; what is written again is not."""
    parts = Parts(kv=True)
    world, cache = parts.world, parts.cache
    running, ended = world.admit([1] * 20), world.admit([2] * 20)
    world.finish(ended)
    assert cache.check() == 60, "of the first one twice: its own, and in the radix cache"
    parts.go(AWAY, Residency.OFFLOADED)
    world.admit([3] * 10)
    world.grow(running, 5)
    assert cache.coverage.lag[running.req_pool_idx] == 20
    parts.go(HERE, Residency.RESIDENT)
    assert cache.check() == 0
    world.admit([4] * 10)
    assert cache.check() == 20
    cache.catch_up(running)
    assert cache.check() == 20 + 21 + 20
    parts.check()


def test_no_iteration_waits_for_all_of_the_drafts_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_pool, "PIECE_BYTES", 2 * PAGE)
    parts = Parts(kv=True)
    parts.wish, seen = AWAY, [parts.draft_bytes]
    while parts.draft_bytes:
        parts.driver.step()
        parts.check()
        seen.append(parts.draft_bytes)
    assert max(a - b for a, b in zip(seen, seen[1:], strict=False)) <= 2 * PAGE
    parts.go(AWAY, Residency.OFFLOADED)
    parts.go(HERE, Residency.RESIDENT)


def test_it_waits_for_room_and_drops_nobody() -> None:
    parts = Parts()
    world = parts.world
    parts.go(AWAY, Residency.OFFLOADED)
    reqs = [world.admit([i] * 35) for i in range(1, 5)]
    assert all(reqs) and sum(len(req.tokens) for req in reqs) > world.pool.base_tokens
    parts.wish = HERE
    for _ in range(50):
        parts.driver.step()
        parts.check()
    assert parts.driver.machine.state is Residency.SHRINKING
    assert world.tail.withheld_tokens == 0, "nothing is taken from those that run before all of it fits"
    world.finish(reqs[0])
    world.finish(reqs[1])
    parts.go(HERE, Residency.RESIDENT)
    assert world.running == reqs[2:]


def test_with_retract_it_does_not_wait() -> None:
    parts = Parts(retract=True)
    world = parts.world
    parts.go(AWAY, Residency.OFFLOADED)
    for i in range(1, 5):
        world.admit([i] * 35)
    parts.wish = HERE
    for _ in range(50):
        parts.driver.step()
        parts.check()
    assert world.tail.withheld_tokens > 0
    assert len(world.scheduler.token_to_kv_pool_allocator.free_pages) <= world.reserve * len(world.running)


def test_every_step_that_was_completed_is_timed() -> None:
    parts = Parts()
    times, returned = parts.driver.times, []
    parts.driver.on_return = lambda: returned.append(list(times.table()))
    parts.go(AWAY, Residency.OFFLOADED)
    assert list(times.table()) == ["offload", "grow"]
    parts.go(HERE, Residency.RESIDENT)
    assert list(times.table()) == list(STEPS)
    assert all(0 <= entry["busy_ms"] <= entry["ms"] for entry in times.table().values())
    assert returned == [[*STEPS[:-1]]]


def test_medians_of_completed_steps_and_earlier_ones() -> None:
    now = 0
    times = StepTimes(lambda: now)
    times.earlier = {"load": {"ms": 9.0, "busy_ms": 8.0}, "grow": {"ms": 7.0, "busy_ms": 6.0}}
    for busy in (1, 5, 3):
        times.begin()
        now += 2_000_000
        times.piece_begins()
        now += busy * 1_000_000
        times.piece_ends()
        times.end("load")
    times.begin()
    assert times.table() == {"grow": {"ms": 7.0, "busy_ms": 6.0}, "load": {"ms": 5.0, "busy_ms": 3.0}}


def test_an_idle_scheduler_goes_all_the_way_at_once() -> None:
    parts = Parts()
    parts.idle, parts.wish = True, AWAY
    parts.driver.step()
    assert parts.driver.machine.state is Residency.OFFLOADED
    parts.wish = HERE
    parts.driver.step()
    assert parts.driver.machine.state is Residency.RESIDENT
    parts.check()


def test_work_is_bounded_per_iteration() -> None:
    parts = Parts()
    parts.wish = AWAY
    seen = [parts.weights.device_bytes]
    while parts.driver.machine.state is not Residency.OFFLOADED:
        parts.driver.step()
        seen.append(parts.weights.device_bytes)
    assert max(a - b for a, b in zip(seen, seen[1:], strict=False)) <= 2 * PAGE
    assert seen[0] > 4 * PAGE


def test_prefixes_of_waiting_requests_follow() -> None:
    """They are written into the request table when the request begins: old ids would come back to life."""
    parts = Parts()
    world, scheduler = parts.world, parts.world.scheduler
    parts.go(AWAY, Residency.OFFLOADED)
    first = [world.admit([i] * 30) for i in (1, 2, 3)]
    last = world.admit([4] * 40)
    for req in first:
        world.finish(req, insert=False)
    line = scheduler.req_to_token_pool.req_to_token[last.req_pool_idx]
    assert int(line.max()) > world.pool.base_tokens
    world.wait([4] * 35)
    [waiting] = scheduler.waiting_queue
    assert len(waiting.prefix_indices) == 34
    parts.go(HERE, Residency.RESIDENT)
    assert int(line[:40].max()) <= world.pool.base_tokens
    assert waiting.prefix_indices.tolist() == line[:34].tolist()


@pytest.mark.parametrize("retract", [False, True])
def test_a_prompt_in_chunks_gets_the_slots_that_it_was_let_in_for(retract: bool) -> None:
    """SGLang asks for a whole chunk whatever is free, and ends when there are fewer slots."""
    parts = Parts(retract=retract)
    world = parts.world
    parts.go(AWAY, Residency.OFFLOADED)
    other = world.admit([1] * 55)
    assert world.begin_prompt([2] * 75, 30)
    parts.wish = HERE
    while world.scheduler.chunked_req is not None:
        for _ in range(20):
            parts.driver.step()
            parts.check()
        world.next_chunk(30)
    assert parts.driver.machine.state is Residency.SHRINKING
    world.finish(other)
    parts.go(HERE, Residency.RESIDENT)


def test_a_prompt_that_begins_while_the_tail_is_emptied_gets_its_slots() -> None:
    parts = Parts()
    world = parts.world
    parts.go(AWAY, Residency.OFFLOADED)
    reqs = [world.admit([i] * 20) for i in range(1, 7)]
    for req in reqs[:4]:
        world.finish(req, insert=False)
    parts.wish = HERE
    while not world.tail.withheld_tokens:
        parts.driver.step()
    assert not world.tail.is_empty
    assert world.begin_prompt([9] * 40, 10)
    while world.scheduler.chunked_req is not None:
        parts.driver.step()
        parts.check()
        world.next_chunk(10)
    parts.go(HERE, Residency.RESIDENT)


def test_requests_that_were_just_prefilled_count() -> None:
    """SGLang merges them into the running batch after we had our turn."""
    parts = Parts()
    world, tail = parts.world, parts.world.tail
    parts.go(AWAY, Residency.OFFLOADED)
    world.scheduler.new_token_ratio_tracker.current = 0.5
    fresh = world.admit([1] * 70)
    world.running.remove(fresh)
    last_batch = SimpleNamespace(reqs=[fresh])
    assert tail.fits(), "70 of 96, if nobody had told it of the request"
    parts.driver.step(last_batch)
    assert not tail.fits(), "70 now, 32 expected"
    fresh.sampling_params.max_new_tokens = 30
    assert tail.fits()
    fresh.origin_input_ids = fresh.origin_input_ids * 2
    world.scheduler.chunked_req = fresh
    assert not tail.fits(), "half of its prompt is to come"


def test_a_failed_move_leaves_every_list_as_it_was() -> None:
    parts = Parts()
    world = parts.world
    parts.go(AWAY, Residency.OFFLOADED)
    reqs = [world.admit([i] * 30) for i in range(1, 5)]
    world.finish(reqs[0], insert=False)
    world.finish(reqs[1], insert=False)
    parts.wish, parts.faults.move = HERE, 1
    while not parts.driver.machine.failures:
        parts.driver.step()
        parts.check()
    assert parts.driver.machine.state is Residency.OFFLOADED
    parts.go(HERE, Residency.RESIDENT, LONGEST_PAUSE_TICKS)


def test_a_flush_in_the_middle_of_a_shrink() -> None:
    parts = Parts()
    world = parts.world
    parts.go(AWAY, Residency.OFFLOADED)
    reqs = [world.admit([i] * 30) for i in range(1, 5)]
    world.finish(reqs[0], insert=False)
    world.finish(reqs[1], insert=False)
    parts.wish = HERE
    while not 0 < world.tail.withheld_tokens < world.tail.extra_tokens:
        parts.driver.step()
    for req in reqs[2:]:
        world.finish(req)
    scheduler = world.scheduler
    scheduler.tree_cache.reset()
    scheduler.req_to_token_pool.clear()
    scheduler.token_to_kv_pool_allocator.clear()
    world.tail.after_flush()
    parts.check()
    parts.go(HERE, Residency.RESIDENT)


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
    parts.go(AWAY, Residency.OFFLOADED)
    reqs = [parts.world.admit([i] * 30) for i in range(1, 5)]
    for req in reqs[:2]:
        parts.world.finish(req, insert=False)
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


@pytest.mark.parametrize("page", [1, 16])
def test_what_a_request_may_ask_for_fits_after_a_shrink(monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    """SGLang admits what is in pages and a page more below the capacity; else the request waits for good."""
    from sglang.srt.managers.scheduler import Scheduler

    from sglang_nightjar.patches import scheduler_residency

    monkeypatch.setattr(residency, "current", SimpleNamespace(pool=SimpleNamespace(base_tokens=1000)))
    scheduler = SimpleNamespace(
        max_total_num_tokens=1300, max_req_len=999, max_new_tokens_limit=None, page_size=page,
        server_args=SimpleNamespace(dcp_size=1),
    )  # fmt: skip
    req = SimpleNamespace(
        rid="r", origin_input_ids=[1] * 101, sampling_params=SimpleNamespace(max_new_tokens=5000, min_new_tokens=0)
    )
    scheduler_residency.clip_by_base(Scheduler.init_req_max_new_tokens, scheduler, req)
    assert -(-101 // page) * page + req.sampling_params.max_new_tokens + page < 1000
    assert scheduler.max_total_num_tokens == 1300


class Cycle(RuleBasedStateMachine):
    """Requests, plans and failures in any order."""

    @initialize(radix=st.booleans(), retract=st.booleans(), kv=st.booleans())
    def start(self, radix: bool, retract: bool, kv: bool) -> None:
        self.parts = Parts(radix, retract, kv=kv)
        self.world = self.parts.world

    @rule(stem=st.integers(1, 3), depth=st.integers(1, 30), tail=st.lists(st.integers(4, 6), min_size=1, max_size=8))
    def arrive(self, stem: int, depth: int, tail: list[int]) -> None:
        self.world.admit([stem] * depth + tail)

    @rule(stem=st.integers(1, 3), depth=st.integers(2, 30))
    def wait_in_the_queue(self, stem: int, depth: int) -> None:
        if len(self.world.scheduler.waiting_queue) < 3:
            self.world.wait([stem] * depth)

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), token=st.integers(4, 6), ahead=st.integers(0, 4), times=st.integers(1, 6))
    def decode(self, data: st.DataObject, token: int, ahead: int, times: int) -> None:
        req = data.draw(st.sampled_from(self.world.running))
        for _ in range(times):
            self.world.grow(req, token, ahead)

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), insert=st.booleans())
    def end(self, data: st.DataObject, insert: bool) -> None:
        self.world.finish(data.draw(st.sampled_from(self.world.running)), insert)

    @rule(
        stem=st.integers(1, 3),
        length=st.integers(20, 120),
        chunk=st.integers(8, 40),
        wish=st.sampled_from([AWAY, HERE]),
        steps=st.integers(1, 8),
    )
    def prompt_in_chunks(self, stem: int, length: int, chunk: int, wish: Wish, steps: int) -> None:
        """Nobody decodes between two chunks of a prompt; the transition goes on."""
        self.world.begin_prompt([stem] * length, chunk)
        self.parts.wish = wish
        while self.world.scheduler.chunked_req is not None:
            for _ in range(steps):
                self.parts.driver.step()
                self.parts.check()
            self.world.next_chunk(chunk)

    @rule(wish=st.sampled_from([AWAY, OFF, HERE]), steps=st.integers(1, 30))
    def plan(self, wish: Wish, steps: int) -> None:
        self.parts.wish = wish
        for _ in range(steps):
            self.parts.driver.step()
            self.parts.check()

    @precondition(lambda self: self.world.running and self.parts.cache and self.parts.driver.machine.has_weights)
    @rule(data=st.data())
    def catch_up(self, data: st.DataObject) -> None:
        self.parts.cache.catch_up(data.draw(st.sampled_from(self.world.running)))

    @rule(fault=st.sampled_from(["commit", "release", "copy", "move"]), when=st.integers(0, 5))
    def break_something(self, fault: str, when: int) -> None:
        setattr(self.parts.faults, fault, when)

    @rule()
    def flush(self) -> None:
        scheduler = self.world.scheduler
        if self.world.running:
            return
        scheduler.tree_cache.reset()
        scheduler.req_to_token_pool.clear()
        scheduler.token_to_kv_pool_allocator.clear()
        self.world.tail.after_flush()

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "parts"):
            self.parts.check()

    def teardown(self) -> None:
        if not hasattr(self, "parts"):
            return
        parts = self.parts
        parts.faults.commit = parts.faults.release = parts.faults.copy = parts.faults.move = None
        for req in list(self.world.running):
            self.world.finish(req)
        parts.go(HERE, Residency.RESIDENT, 4 * LONGEST_PAUSE_TICKS)
        assert self.world.scheduler.max_total_num_tokens == self.world.pool.base_tokens
        assert parts.draft_bytes == parts.driver.freed_bytes
        parts.close()


TestCycle = Cycle.TestCase
TestCycle.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
