"""The tail of the KV pool that exists while the draft is away: opened, withheld piece by piece, emptied, closed.

Capacity and free slots change together at every step, so SGLang's leak checks hold between any two iterations: what is
free and what is used add up to the capacity. A withheld page is in nobody's hands and counts for nothing.
Units: pages of ``page_size`` tokens; page 0 is padding, pages 1 to base are SGLang's own, the tail comes behind.
"""

from collections.abc import Callable
from typing import Any

import torch

from sglang_nightjar.draft import capacity, slot_holders
from sglang_nightjar.draft.elastic_pool import ElasticPool
from sglang_nightjar.patches.seams import Seam

#: Bytes of KV that are moved between two decode iterations, at most; a move reads and writes each.
MOVED_BYTES = 8 << 20

SEAMS = (
    Seam("sglang.srt.mem_cache.base_prefix_cache:EvictParams", None, "call", "to make room for a shrink"),
    Seam("sglang.srt.mem_cache.radix_cache:RadixCache.evict", ("params",), "call", "to make room for a shrink"),
    Seam("sglang.srt.mem_cache.allocation_sizing:get_alloc_reserve_per_decode", None, "call", "what a decode may take"),
    *(
        Seam(f"sglang.srt.mem_cache.allocator.{name}.clear", (), "call", "it makes free_pages and release_pages")
        for name in ("token:TokenToKVPoolAllocator", "paged:PagedTokenToKVPoolAllocator")
    ),
)


class PoolTail:
    """Attributes:
    extra_tokens: length of the tail, 0 while there is none.
    withheld_tokens: of these, those that nobody may use any more.
    moved_tokens: rows moved since the start.
    on_move: called with the old and the new slots, int64, after rows were copied and before their holders are told.
    last_batch: what the scheduler ran last; its requests join the running ones in the iteration to come.
    """

    def __init__(self, scheduler: Any, pool: ElasticPool):
        self._scheduler = scheduler
        self._pool = pool
        self._allocator = scheduler.token_to_kv_pool_allocator
        self._size = pool.layout.page_size
        self._base_pages = pool.base_tokens // self._size
        self._withheld = self._pages([])
        self._pages_per_step = max(1, MOVED_BYTES // (pool.layout.bytes_per_token * self._size))
        self.extra_tokens = 0
        self.moved_tokens = 0
        self.on_move: list[Callable[[torch.Tensor, torch.Tensor], None]] = []
        self.last_batch: Any = None

    @property
    def withheld_tokens(self) -> int:
        return len(self._withheld) * self._size

    @property
    def is_empty(self) -> bool:
        """Every page of the tail is withheld."""
        return self.withheld_tokens == self.extra_tokens

    @property
    def is_held(self) -> bool:
        """Nothing may be withheld or moved, because a prompt is being computed in chunks.

        SGLang let it in for the slots that were free then, allots the next chunk without asking whether they still are,
        and ends when they are not.
        """
        return self._scheduler.chunked_req is not None

    def open(self, extra_tokens: int) -> None:
        """Hand out a tail of ``extra_tokens``, which is backed by memory; or all that is withheld again."""
        first = self._base_pages + 1
        pages = torch.arange(
            first, first + extra_tokens // self._size, dtype=torch.int64, device=self._allocator.device
        )
        fresh = self._withheld if self.extra_tokens else pages
        self.extra_tokens = extra_tokens
        self._withheld = self._pages([])
        self._allocator.free_pages = torch.cat((self._allocator.free_pages, fresh))
        self._put_capacity()
        # It was full for the capacity before.
        self._scheduler.running_batch.batch_is_full = False

    def close(self) -> None:
        """Forget the tail, which `is_empty`; its memory may be released."""
        assert self.is_empty
        self.extra_tokens = 0
        self._withheld = self._pages([])

    def after_flush(self) -> None:
        """SGLang made every slot up to the capacity free: take those out that are withheld, and no others."""
        allocator = self._allocator
        if not len(self._withheld) or allocator.available_size() != capacity.current(self._scheduler):
            return
        pages = torch.arange(1, self._base_pages + self.extra_tokens // self._size + 1, device=allocator.device)
        allocator.free_pages = pages[~torch.isin(pages, self._withheld)]

    def fits(self) -> bool:
        """Whether all that is in use, and what requests in work are expected to need, fits without the tail."""
        scheduler, free = self._scheduler, self._allocator.available_size()
        used = capacity.current(scheduler) - free - scheduler.tree_cache.evictable_size()
        return used + self._reserve() + self._rest_of_prompt() + self._expected() <= self._pool.base_tokens

    def withhold(self) -> None:
        """Take the tail's free pages out of circulation, and let low pages be handed out first."""
        allocator = self._allocator
        free = torch.cat((allocator.free_pages, allocator.release_pages))
        free, _ = torch.sort(free)
        in_tail = int(torch.searchsorted(free, self._base_pages, right=True))
        if in_tail < len(free):
            self._withheld = torch.cat((self._withheld, free[in_tail:]))
        allocator.free_pages, allocator.release_pages = free[:in_tail], allocator.release_pages[:0]
        self._put_capacity()

    def empty(self) -> bool:
        """One bounded step of emptying the tail, not while it `is_held`: `withhold`, make room, move.

        True when `is_empty`.
        """
        self.withhold()
        if self.is_empty:
            return True
        used = self._used_pages()
        room = self._room()
        if room < len(used):
            self._evict((len(used) - room) * self._size)
            self.withhold()
            used, room = self._used_pages(), self._room()
        count = min(len(used), room, self._pages_per_step)
        if count > 0:
            self._move(used[:count])
        return self.is_empty

    def _move(self, old_pages: torch.Tensor) -> None:
        """What can fail comes first. Until the last lines rows and marks of free slots have changed, and no list."""
        allocator, count = self._allocator, len(old_pages)
        # Sorted by withhold.
        new_pages, free_pages = allocator.free_pages[:count], allocator.free_pages[count:]
        old, new = self._slots(old_pages), self._slots(new_pages)
        self._pool.move(old, new)
        table = torch.arange(self._pool.max_tokens + self._size, dtype=torch.int64, device=old.device)
        table[old] = new
        tell_holders = slot_holders.rewriting(self._scheduler, self._requests(), table)
        withheld = torch.cat((self._withheld, old_pages))
        for listener in self.on_move:
            listener(old, new)
        tell_holders()
        allocator.free_pages, self._withheld = free_pages, withheld
        self._put_capacity()
        self.moved_tokens += count * self._size

    def _used_pages(self) -> torch.Tensor:
        """Pages of the tail that are neither free nor withheld; `withhold` was called."""
        unused = torch.ones(self.extra_tokens // self._size, dtype=torch.bool, device=self._allocator.device)
        unused[self._withheld - self._base_pages - 1] = False
        return unused.nonzero().flatten() + self._base_pages + 1

    def _room(self) -> int:
        """Free pages below the tail that the next iteration does not need."""
        return max(0, len(self._allocator.free_pages) - -(-self._reserve() // self._size))

    def _reserve(self) -> int:
        """Tokens that the requests in work may take in the next iteration, at most."""
        return len(self.in_work()) * (self._slots_ahead() + self._size - 1)

    def _rest_of_prompt(self) -> int:
        """Tokens of the prompt that is being computed in chunks which have no slots yet."""
        req = self._scheduler.chunked_req
        if req is None:
            return 0
        length = len(req.origin_input_ids) + len(req.output_ids)
        return max(0, length - (req.kv.kv_allocated_len if req.kv is not None else 0))

    def _expected(self) -> int:
        """Tokens that requests in work will still write, by SGLang's own estimate when it admits others."""
        left = sum(max(0, req.sampling_params.max_new_tokens - len(req.output_ids)) for req in self.in_work())
        return int(left * self._scheduler.new_token_ratio_tracker.current)

    def in_work(self) -> list[Any]:
        """Requests that run or soon will: those just prefilled and the one in chunks are among them."""
        return [req for req in self._requests(waiting=False) if not req.finished()]

    def _requests(self, waiting: bool = True) -> list[Any]:
        """Every request that holds slots or knows of some, each once."""
        scheduler = self._scheduler
        found = list(scheduler.running_batch.reqs)
        if self.last_batch is not None:
            found += self.last_batch.reqs
        if scheduler.chunked_req is not None:
            found.append(scheduler.chunked_req)
        if waiting:
            found += scheduler.waiting_queue
        return list({id(req): req for req in found}.values())

    @staticmethod
    def _slots_ahead() -> int:
        from sglang.srt.mem_cache.allocation_sizing import get_alloc_reserve_per_decode

        return int(get_alloc_reserve_per_decode())

    def _evict(self, tokens: int) -> None:
        """Let the cache forget the least recently used ``tokens``: each leaves the tail, or makes room below it."""
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        self._scheduler.tree_cache.evict(EvictParams(num_tokens=tokens))

    def _put_capacity(self) -> None:
        capacity.put(self._scheduler, self._pool.base_tokens + self.extra_tokens - self.withheld_tokens)

    def _slots(self, pages: torch.Tensor) -> torch.Tensor:
        if self._size == 1:
            return pages
        return (pages[:, None] * self._size + torch.arange(self._size, device=pages.device)).flatten()

    def _pages(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self._allocator.device)
