"""Who holds ids of KV slots in SGLang between two iterations, and how they learn that rows have moved.

Between iterations these are all: the request table, the nodes of the radix cache, and the matched prefixes of requests.
The lists of free slots are `draft.pool_tail`'s. Batches hold ids only from their scheduling to their result, and what
could hold some for longer (hierarchical cache, PD disaggregation, sessions) is refused at the start.
"""

from collections.abc import Iterator
from typing import Any

import torch

from sglang_nightjar.patches.seams import Seam

_BATCH = "sglang.srt.managers.schedule_batch"

SEAMS = (
    Seam("sglang.srt.mem_cache.memory_pool:ReqToTokenPool.write", ("indices", "values"), "call", "the request table"),
    Seam("sglang.srt.mem_cache.radix_cache:TreeNode.__init__", ("id", "priority"), "call", "slots in the radix cache"),
    Seam(f"{_BATCH}:Req.init_next_round_input", None, "call", "it renews prefix_indices"),
)


def rewrite(scheduler: Any, table: torch.Tensor) -> None:
    """Replace every slot id by ``table[id]``; ``table`` is int64 and covers every id that was ever handed out."""
    _rewrite_requests(scheduler.req_to_token_pool, table)
    nodes = list(_nodes(scheduler.tree_cache))
    if nodes:
        moved = table[torch.cat([node.value for node in nodes])]
        # Parts of one tensor: nobody writes to a node's value, and a copy each would be a kernel each on a GPU.
        for node, value in zip(nodes, moved.split([len(node.value) for node in nodes]), strict=True):
            node.value = value
    for req in requests(scheduler):
        if len(req.prefix_indices):
            req.prefix_indices = table[req.prefix_indices]


def requests(scheduler: Any) -> list[Any]:
    """Every request of the scheduler's, running or waiting, each once."""
    found = list(scheduler.waiting_queue)
    for batch in (scheduler.running_batch, scheduler.last_batch):
        if batch is not None:
            found += batch.reqs
    if scheduler.chunked_req is not None:
        found.append(scheduler.chunked_req)
    return list({id(req): req for req in found}.values())


def _rewrite_requests(pool: Any, table: torch.Tensor) -> None:
    free = set(pool.free_slots)
    # Row 0 is padding.
    rows = [row for row in range(1, pool.req_to_token.shape[0]) if row not in free]
    # One row at a time bounds what it takes beside: a row is as long as the context may be.
    for row in rows:
        line = pool.req_to_token[row]
        line.copy_(table[line.long()])


def _nodes(tree_cache: Any) -> Iterator[Any]:
    root = getattr(tree_cache, "root_node", None)
    waiting = list(root.children.values()) if root is not None else []
    while waiting:
        node = waiting.pop()
        waiting += node.children.values()
        if node.value is not None and len(node.value):
            yield node
