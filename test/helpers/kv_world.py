"""SGLang's own cache classes on a CPU with requests that are played by a test: no model, no server.

What a request's token should have in its KV row is a function of the token's place in its text, so that every row can
be checked after any number of moves: a lost, swapped or doubly owned row shows.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from sglang_nightjar.cpu.bootstrap import prepare_process
from sglang_nightjar.draft import capacity
from sglang_nightjar.draft.elastic_pool import ElasticPool
from sglang_nightjar.draft.pool_tail import PoolTail
from sglang_nightjar.memory import elastic
from sglang_nightjar.memory.elastic import ElasticBuffer

prepare_process()

#: Parts of SGLang's scheduler that have a copy of the capacity, and read it while they run.
HOLDERS = ("pool_stats_observer", "invariant_checker", "kv_events_publisher", "load_inquirer")

LAYERS, HEADS, HEAD_DIM = 2, 2, 8
CONTEXT = 256
ROWS = 12


class KvWorld:
    """A scheduler as `draft.pool_tail` and `draft.slot_holders` see it.

    Attributes:
        scheduler: a stand-in with SGLang's allocator, request table, radix cache and copies of the capacity.
        pool, tail: ours.
        live: requests that hold KV.
        reserve: tokens that each running request may take in the next iteration.
        on_write: called with the slots of new rows, the text that they belong to, and the position of the first.
    """

    def __init__(
        self,
        base_tokens: int = 96,
        max_tokens: int = 256,
        reserve: int = 2,
        radix: bool = True,
        buffers: Callable[..., ElasticBuffer] = elastic.reserve,
    ):
        from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.chunk_cache import ChunkCache
        from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
        from sglang.srt.mem_cache.radix_cache import RadixCache

        kv = make_pool(base_tokens)
        self.pool = ElasticPool(kv, max_tokens, buffers)
        allocator = TokenToKVPoolAllocator(base_tokens, torch.float32, "cpu", kv, need_sort=False)
        table = ReqToTokenPool(ROWS, CONTEXT, "cpu", enable_memory_saver=False)
        params = CacheInitParams(
            disable=False, req_to_token_pool=table, token_to_kv_pool_allocator=allocator, page_size=1
        )
        self.reserve = reserve
        self.scheduler = SimpleNamespace(
            token_to_kv_pool_allocator=allocator,
            req_to_token_pool=table,
            tree_cache=RadixCache(params) if radix else ChunkCache(params),
            running_batch=SimpleNamespace(reqs=[], batch_is_full=False),
            last_batch=None,
            chunked_req=None,
            waiting_queue=[],
            new_token_ratio_tracker=SimpleNamespace(current=0.0),
            **{name: SimpleNamespace() for name in HOLDERS},
        )
        capacity.put(self.scheduler, base_tokens)
        self.tail = PoolTail(self.scheduler, self.pool)
        self.tail._slots_ahead = lambda: self.reserve
        self.on_write: Callable[[torch.Tensor, list[int], int], None] = lambda slots, tokens, first: None
        self._serial = 0

    @property
    def running(self) -> list[Any]:
        return self.scheduler.running_batch.reqs

    @property
    def holding(self) -> list[Any]:
        """Requests that hold slots: those that run, and the one whose prompt is being computed in chunks."""
        chunked = self.scheduler.chunked_req
        return self.running + ([chunked] if chunked is not None and chunked not in self.running else [])

    # What requests do.

    def admit(self, tokens: list[int]) -> Any | None:
        """A request of these tokens, its prefix from the cache, or None if there is no room."""
        scheduler = self.scheduler
        if len(self.running) + (scheduler.chunked_req is not None) >= ROWS:
            return None
        matched, node = self._match(tokens)
        if node is not None:
            scheduler.tree_cache.inc_lock_ref(node)
        new = self._alloc(len(tokens) - len(matched))
        if new is None:
            if node is not None:
                scheduler.tree_cache.dec_lock_ref(node)
            return None
        req = self._request(tokens, matched, node)
        row = req.req_pool_idx
        scheduler.req_to_token_pool.write((row, slice(len(matched), len(tokens))), new.int())
        req.kv.kv_allocated_len = req.kv_committed_len = len(tokens)
        self._write(new, tokens, len(matched))
        self.running.append(req)
        if scheduler.tree_cache.is_chunk_cache():
            return req
        scheduler.tree_cache.cache_unfinished_req(req)
        return req

    def begin_prompt(self, tokens: list[int], chunk: int) -> bool:
        """A request whose prompt is computed in chunks, let in as SGLang does: if all of it fits now."""
        scheduler = self.scheduler
        if len(self.running) >= ROWS:
            return False
        matched, node = self._match(tokens)
        if node is not None:
            scheduler.tree_cache.inc_lock_ref(node)
        free = scheduler.token_to_kv_pool_allocator.available_size()
        if not scheduler.tree_cache.is_chunk_cache():
            free += scheduler.tree_cache.evictable_size()
        if len(tokens) - len(matched) + self.reserve * (len(self.running) + 1) > free:
            if node is not None:
                scheduler.tree_cache.dec_lock_ref(node)
            return False
        scheduler.chunked_req = req = self._request(tokens, matched, node)
        req.tokens = list(tokens[: len(matched)])
        self.next_chunk(chunk)
        return True

    def next_chunk(self, chunk: int) -> None:
        """Compute so many more tokens of the prompt; with the last ones the request runs. It must get its slots."""
        scheduler, req = self.scheduler, self.scheduler.chunked_req
        if req.kv.kv_allocated_len and not scheduler.tree_cache.is_chunk_cache():
            scheduler.tree_cache.cache_unfinished_req(req)
        first = len(req.tokens)
        req.tokens = list(req.origin_input_ids[: first + chunk])
        new = self._alloc(len(req.tokens) - first)
        if new is None:
            raise MemoryError("SGLang's scheduler ends here")
        scheduler.req_to_token_pool.write((req.req_pool_idx, slice(first, len(req.tokens))), new.int())
        req.kv.kv_allocated_len = req.kv_committed_len = len(req.tokens)
        self._write(new, req.tokens, first)
        if len(req.tokens) < len(req.origin_input_ids):
            return
        scheduler.chunked_req = None
        self.running.append(req)
        if not scheduler.tree_cache.is_chunk_cache():
            scheduler.tree_cache.cache_unfinished_req(req)

    def grow(self, req: Any, token: int, ahead: int = 0) -> bool:
        """One more token for ``req``, and slots allocated ``ahead`` of it; False if there is no room."""
        need = len(req.tokens) + 1 + ahead - req.kv.kv_allocated_len
        if need > 0:
            new = self._alloc(need)
            if new is None:
                return False
            start = req.kv.kv_allocated_len
            self.scheduler.req_to_token_pool.write((req.req_pool_idx, slice(start, start + need)), new.int())
            req.kv.kv_allocated_len += need
        position = len(req.tokens)
        req.tokens.append(token)
        req.output_ids.append(token)
        req.kv_committed_len = len(req.tokens)
        slot = self.scheduler.req_to_token_pool.req_to_token[req.req_pool_idx, position : position + 1].long()
        self._write(slot, req.tokens, position)
        return True

    def finish(self, req: Any, insert: bool = True) -> None:
        """The request ends; its KV goes to the cache, or nowhere (``insert`` False, as in a retraction)."""
        scheduler, row = self.scheduler, req.req_pool_idx
        allocator, line = scheduler.token_to_kv_pool_allocator, scheduler.req_to_token_pool.req_to_token[row]
        allocator.free(line[len(req.tokens) : req.kv.kv_allocated_len].long().clone())
        if scheduler.tree_cache.is_chunk_cache():
            allocator.free(line[: len(req.tokens)].long().clone())
        else:
            scheduler.tree_cache.cache_finished_req(req, is_insert=insert, kv_len_to_handle=len(req.tokens))
        scheduler.req_to_token_pool.free(req)
        self.running.remove(req)

    def wait(self, tokens: list[int]) -> None:
        """A request waits, with a prefix that was matched a while ago and that the cache may forget."""
        matched, _ = self._match(tokens)
        self.scheduler.waiting_queue.append(SimpleNamespace(tokens=tokens, prefix_indices=matched, req_pool_idx=None))

    # What must be true.

    def check(self) -> None:
        """Free and used add up; no slot has two owners; every row has what its owner wrote."""
        scheduler = self.scheduler
        allocator, tree = scheduler.token_to_kv_pool_allocator, scheduler.tree_cache
        total = capacity.current(scheduler)
        assert total == self.pool.base_tokens + self.tail.extra_tokens - self.tail.withheld_tokens
        assert allocator.size == total
        assert all(getattr(scheduler, name).max_total_num_tokens == total for name in HOLDERS)
        cached = 0 if tree.is_chunk_cache() else tree.evictable_size() + tree.protected_size()
        own = sum(req.kv.kv_allocated_len - req.cache_protected_len for req in self.holding)
        assert allocator.available_size() + cached + own == total
        # Every slot has one owner: free, withheld, the cache, or a request's part that is not in the cache.
        owners = [allocator.free_pages, allocator.release_pages, self.tail._withheld]
        for path, value in self.cached():
            owners.append(value)
            self._check_rows(value, path, len(path) - len(value))
        for req in self.holding:
            line = scheduler.req_to_token_pool.req_to_token[req.req_pool_idx].long()
            owners.append(line[req.cache_protected_len : req.kv.kv_allocated_len])
            self._check_rows(line[: len(req.tokens)], req.tokens, 0)
        slots = torch.cat(owners)
        assert slots.sort().values.tolist() == list(range(1, self.pool.base_tokens + self.tail.extra_tokens + 1))
        # Memory for every slot that may be used.
        used = torch.cat([owner for owner in owners if owner is not self.tail._withheld])
        assert int(used.max()) <= self.pool.committed_tokens

    def cached(self):
        """The nodes of the radix cache: the tokens up to the end of each, and its slots."""
        root = getattr(self.scheduler.tree_cache, "root_node", None)
        waiting = [(child, []) for child in root.children.values()] if root is not None else []
        while waiting:
            node, before = waiting.pop()
            path = before + list(node.key.token_ids)
            yield path, node.value
            waiting += [(child, path) for child in node.children.values()]

    def _check_rows(self, slots: torch.Tensor, tokens: list[int], first: int) -> None:
        for number, buffer in enumerate((*self.pool.pool.k_buffer, *self.pool.pool.v_buffer)):
            expected = [contents(tokens, first + i, number) for i in range(len(slots))]
            assert buffer[slots.long(), 0, 0].tolist() == expected
            assert buffer[slots.long(), -1, -1].tolist() == expected

    def _write(self, slots: torch.Tensor, tokens: list[int], first: int) -> None:
        for number, buffer in enumerate((*self.pool.pool.k_buffer, *self.pool.pool.v_buffer)):
            for i, slot in enumerate(slots.tolist()):
                buffer[slot] = contents(tokens, first + i, number)
        self.on_write(slots, tokens, first)

    def _request(self, tokens: list[int], prefix: torch.Tensor, node: Any) -> Any:
        self._serial += 1
        made = Request(self._serial, list(tokens), prefix, node, self.scheduler.new_token_ratio_tracker)
        [row] = self.scheduler.req_to_token_pool.alloc([made])
        self.scheduler.req_to_token_pool.write((row, slice(0, len(prefix))), prefix.int())
        return made

    def _alloc(self, count: int) -> torch.Tensor | None:
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        allocator = self.scheduler.token_to_kv_pool_allocator
        if allocator.available_size() < count:
            self.scheduler.tree_cache.evict(EvictParams(num_tokens=count - allocator.available_size()))
        return allocator.alloc(count)

    def _match(self, tokens: list[int]) -> tuple[torch.Tensor, Any]:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        tree = self.scheduler.tree_cache
        if tree.is_chunk_cache():
            return torch.empty(0, dtype=torch.int64), None
        # As in SGLang, the last token of a prompt is always computed.
        found = tree.match_prefix(MatchPrefixParams(key=RadixKey(_array(tokens[:-1]), None)))
        return found.device_indices, found.last_device_node


class Request:
    """What SGLang's caches and ours read of a request."""

    def __init__(self, rid: int, tokens: list[int], prefix: torch.Tensor, node: Any, ratio: Any):
        self.rid = rid
        self.tokens = tokens
        self.origin_input_ids = _array(tokens)
        self.output_ids = _array([])
        self.prefix_indices = prefix
        self.last_node = node
        self.cache_protected_len = len(prefix)
        self.extra_key = None
        self.priority = 0
        self.req_pool_idx: int | None = None
        self.inflight_middle_chunks = 0
        self.kv_committed_len = 0
        self.kv = SimpleNamespace(kv_allocated_len=0)
        self.sampling_params = SimpleNamespace(max_new_tokens=64)

    def get_fill_ids(self) -> Any:
        return _array(self.tokens)

    def finished(self) -> bool:
        return False


def contents(tokens: list[int], position: int, buffer: int) -> float:
    """What the row of a position holds: it depends on all tokens up to it, as KV does; exact in float32."""
    value = 7 * buffer + 1
    for token in tokens[: position + 1]:
        value = (value * 31 + token + 1) % 65_521
    return float(value)


def _array(tokens: list[int]) -> Any:
    from array import array

    return array("q", tokens)


def make_pool(base_tokens: int) -> Any:
    """The fields of SGLang's MHATokenToKVPool that an elastic pool fills or reads."""
    made = SimpleNamespace(
        size=base_tokens, page_size=1, device="cpu", layer_num=LAYERS, store_dtype=torch.float32, k_buffer=None
    )
    made._kv_buffer_shapes = lambda: ((made.size + 1, HEADS, HEAD_DIM),) * 2
    return made
