"""The cycle of a draft's memory: who waits, what moves, and that all of it comes back."""

from types import SimpleNamespace

import pytest
from helpers.draft_world import AWAY, HERE, Parts

from sglang_nightjar.core.messages import Residency
from sglang_nightjar.draft import elastic_pool, residency
from sglang_nightjar.draft.step_times import STEPS, StepTimes
from sglang_nightjar.memory.posix import PAGE


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


def test_a_flush_in_the_middle_of_a_shrink() -> None:
    parts = Parts()
    world = parts.world
    running = parts.away_with_holes()
    parts.wish = HERE
    while not 0 < world.tail.withheld_tokens < world.tail.extra_tokens:
        parts.driver.step()
    for req in running:
        world.finish(req)
    scheduler = world.scheduler
    scheduler.tree_cache.reset()
    scheduler.req_to_token_pool.clear()
    scheduler.token_to_kv_pool_allocator.clear()
    world.tail.after_flush()
    parts.check()
    parts.go(HERE, Residency.RESIDENT)


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
