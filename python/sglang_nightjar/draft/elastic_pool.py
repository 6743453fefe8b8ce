"""The target's KV cache on elastic buffers: as many addresses as it may ever need, memory for what it may use now.

SGLang's pool (mem_cache/memory_pool.py, MHATokenToKVPool) holds one tensor for the keys and one for the values of each
layer, ``[tokens + page, heads, head_dim]``. Here each lies in a buffer of its own that is longer than what SGLang asked
for. The draft's own cache has no added tail: those slots exist only while nothing is drafted.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

from sglang_nightjar.core.capacity import KvLayout, tokens_gained
from sglang_nightjar.memory import elastic
from sglang_nightjar.memory.elastic import ElasticBuffer, MemoryRefusedError

#: Bytes that may change hands between two decode iterations: giving 16 MiB back takes about 3 ms on a CPU.
PIECE_BYTES = 16 << 20


class ElasticPool:
    """Attributes:
    pool: SGLang's.
    base_tokens: what SGLang asked for.
    committed_tokens: what is backed by memory now.
    layout: see `KvLayout`.
    """

    def __init__(
        self, pool: Any, rows: int, reserve: Callable[[int, torch.device, int], ElasticBuffer] = elastic.reserve
    ):
        """Makes ``k_buffer`` and ``v_buffer`` of ``pool``, with addresses for ``rows`` tokens and a page of padding.

        ``pool.size`` becomes ``rows``: CUDA graphs freeze the limit that it sets for slot ids.
        """
        self.pool = pool
        self.base_tokens = pool.size
        pool.size = max(rows, pool.size) // pool.page_size * pool.page_size
        device = torch.device(pool.device)
        shapes = [shape for shape in pool._kv_buffer_shapes() for _ in range(pool.layer_num)]
        sizes = [torch.Size(shape[1:]).numel() * pool.store_dtype.itemsize for shape in shapes]
        # Attention reads a row here and a row there, and is slower by the page tables of small pages. What is lent and
        # given back is the tail behind the base, which has small ones.
        self._buffers = [
            reserve(shape[0] * size, device, self.base_tokens * size) for shape, size in zip(shapes, sizes, strict=True)
        ]
        self.layout = KvLayout(tuple(sizes), self._buffers[0].granularity, pool.page_size)
        self.committed_tokens = 0
        for _ in self.grow(self.base_tokens):
            pass
        tensors = [buffer.tensor(pool.store_dtype, shape) for buffer, shape in zip(self._buffers, shapes, strict=True)]
        # Zero from the start, as SGLang has it; a CPU's fresh pages are, and filling them would take them all.
        if device.type != "cpu":
            for tensor in tensors:
                tensor[: self.base_tokens + pool.page_size].zero_()
        pool.k_buffer, pool.v_buffer = tensors[: pool.layer_num], tensors[pool.layer_num :]

    @property
    def max_tokens(self) -> int:
        return int(self.pool.size)

    @property
    def committed_bytes(self) -> int:
        return sum(buffer.committed for buffer in self._buffers)

    def tokens_gained(self, freed_bytes: int) -> int:
        """Tokens by which the cache can grow into ``freed_bytes``, as far as there are addresses."""
        return min(tokens_gained(freed_bytes, self.base_tokens, self.layout), self.max_tokens - self.base_tokens)

    def grow(self, tokens: int) -> Generator[None, None, None]:
        """Back ``tokens`` tokens, a bounded piece per step. Raises MemoryRefusedError with all of the growth undone."""
        before = self.committed_tokens
        try:
            yield from self._commit(tokens)
        except MemoryRefusedError:
            for buffer, nbytes in zip(self._buffers, self.layout.committed_bytes(before), strict=True):
                buffer.release(nbytes if before else 0)
            raise
        self.committed_tokens = max(before, tokens)

    def shrink(self, tokens: int) -> Generator[None, None, None]:
        """Give back what lies behind ``tokens`` tokens, a bounded piece per step. Nothing may use it any more."""
        self.committed_tokens = min(self.committed_tokens, tokens)
        if self._buffers[0].device.type == "cuda":
            torch.cuda.synchronize(self._buffers[0].device)
        done = 0
        for buffer, nbytes in zip(self._buffers, self.layout.committed_bytes(tokens), strict=True):
            done += max(0, buffer.committed - nbytes)
            buffer.release(nbytes)
            if done >= PIECE_BYTES:
                done = 0
                yield

    def vacate(self) -> Generator[None, None, None]:
        """Give all of it back, the padding too, a bounded piece per step. Nothing may use it any more."""
        self.committed_tokens = 0
        in_pieces = self._buffers[0].device.type == "cpu"
        if not in_pieces:
            torch.cuda.synchronize(self._buffers[0].device)
        done = 0
        for buffer in self._buffers:
            while before := buffer.committed:
                # On a GPU what was backed in one go can only be given back whole.
                buffer.release(max(0, before - (PIECE_BYTES - done)) if in_pieces else 0)
                done += before - buffer.committed
                if done >= PIECE_BYTES:
                    done = 0
                    yield

    def move(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Copy the rows of slots ``old`` to slots ``new``, both int64; no slot may be in both."""
        if self._buffers[0].device.type == "cuda":
            self.pool.move_kv_cache(new, old)
            return
        for buffer in (*self.pool.k_buffer, *self.pool.v_buffer):
            buffer.index_copy_(0, new, buffer.index_select(0, old))

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.close()

    def _commit(self, tokens: int) -> Iterator[None]:
        done = 0
        for buffer, nbytes in zip(self._buffers, self.layout.committed_bytes(tokens), strict=True):
            # Rows of a page that is backed already may fill up what is not a multiple of the granularity.
            done += max(0, nbytes - buffer.committed)
            buffer.commit(min(nbytes, buffer.reserved))
            if done >= PIECE_BYTES:
                done = 0
                yield
