"""The cycle of a draft's memory with requests, plans and failures at random: what always holds is `Parts.check`."""

from helpers.draft_world import AWAY, HERE, OFF, Parts
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sglang_nightjar.core.messages import Residency
from sglang_nightjar.core.residency import LONGEST_PAUSE_TICKS, Wish


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
