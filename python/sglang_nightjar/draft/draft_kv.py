"""The draft's own KV cache on elastic buffers, to be given back with its weights (``memory.reclaim: weights+kv``).

It has the slots of the target's cache as started. The tail by which that grows meanwhile never needs rows of the
draft's: it is emptied before this cache gets memory again. What was in it is lost when it goes; who gives it back marks
every slot as stale first (`draft.coverage`), and rows come back by catching up.
"""

from collections.abc import Callable, Generator
from typing import Any

import torch

from sglang_nightjar.draft.elastic_pool import ElasticPool
from sglang_nightjar.memory import elastic
from sglang_nightjar.memory.elastic import ElasticBuffer


class DraftKv:
    """Attributes:
    pool: SGLang's, of the draft.
    nbytes: what giving it back frees, in bytes.
    on_device: all of it is backed by memory; not that anything is in it.
    """

    def __init__(self, pool: Any, reserve: Callable[[int, torch.device, int], ElasticBuffer] = elastic.reserve):
        """Makes ``k_buffer`` and ``v_buffer`` of ``pool``, ``[tokens + page, heads, head_dim]`` each, all backed."""
        self.pool = pool
        self._rows = ElasticPool(pool, pool.size, reserve)
        self.nbytes = self._rows.committed_bytes
        self.on_device = True

    @property
    def device_bytes(self) -> int:
        """What it takes on the device now."""
        return self._rows.committed_bytes

    def release(self) -> Generator[None, None, None]:
        """Give the memory back, a bounded piece per step. Nothing may use it from the first step on."""
        self.on_device = False
        yield from self._rows.vacate()

    def load(self) -> Generator[None, None, None]:
        """Get memory for all of it again, a bounded piece per step. Raises MemoryRefusedError; then there is none."""
        yield from self._rows.grow(self._rows.base_tokens)
        if torch.device(self.pool.device).type != "cpu":
            # As SGLang has it at the start, and as a CPU's fresh pages are: kernels may multiply rows that nobody wrote
            # with 0, which must not be NaN.
            for tensor in (*self.pool.k_buffer, *self.pool.v_buffer):
                tensor.zero_()
        self.on_device = True

    def close(self) -> None:
        self._rows.close()
