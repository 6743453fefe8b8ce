"""A draft's memory on SGLang's own cache classes, on buffers and copies that fail when a test says so.

What `Parts.check` holds after every step: free and used add up to the capacity in each of SGLang's copies of it, no
slot has two owners, every row holds what its owner wrote, the draft's weights are what they were whenever it may run,
what of its cache is not noted as stale is right, and no memory is used that is not there.
"""

from typing import Any

import torch

from helpers.kv_world import ROWS, KvWorld, contents, make_pool
from sglang_nightjar.core.messages import Residency
from sglang_nightjar.core.residency import Wish
from sglang_nightjar.draft.coverage import Coverage
from sglang_nightjar.draft.draft_kv import DraftKv
from sglang_nightjar.draft.residency import DraftResidency
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

    def away_with_holes(self) -> list[Any]:
        """The draft is away; of four requests two have ended, whose rows are free. The two that run."""
        self.go(AWAY, Residency.OFFLOADED)
        reqs = [self.world.admit([i] * 30) for i in range(1, 5)]
        for req in reqs[:2]:
            self.world.finish(req, insert=False)
        return reqs[2:]

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
