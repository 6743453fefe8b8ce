"""Who holds ids of KV slots in SGLang between two iterations, and how they learn that rows have moved.

Between iterations these are all: the request table, the nodes of the radix cache, and the matched prefixes of requests.
The lists of free slots are `draft.pool_tail`'s. Batches hold ids only from their scheduling to their result, and what
could hold some for longer (hierarchical cache, PD disaggregation, sessions) is refused at the start.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from sglang_nightjar.patches.seams import Seam

_BATCH = "sglang.srt.managers.schedule_batch"

SEAMS = (
    Seam("sglang.srt.mem_cache.memory_pool:ReqToTokenPool.write", ("indices", "values"), "call", "the request table"),
    Seam("sglang.srt.mem_cache.radix_cache:TreeNode.__init__", ("id", "priority"), "call", "slots in the radix cache"),
    Seam(f"{_BATCH}:Req.init_next_round_input", None, "call", "it renews prefix_indices"),
    Seam(f"{_BATCH}:ReqKvInfo.kv_allocated_len", None, "field", "how far a request's row is in use"),
)


def rewriting(scheduler: Any, requests: Iterable[Any], table: torch.Tensor) -> Callable[[], None]:
    """What replaces every slot id by ``table[id]``; all that can fail is done when this returns.

    ``requests`` are all of the scheduler's, running and waiting. ``table`` is int64 and covers every id that was ever
    handed out.
    """
    requests = list(requests)
    rows = scheduler.req_to_token_pool.req_to_token
    lines = [
        # Behind what is allotted a row holds what nobody reads.
        rows[req.req_pool_idx, : req.kv.kv_allocated_len]
        for req in requests
        if req.req_pool_idx is not None and req.kv is not None
    ]
    nodes = list(_nodes(scheduler.tree_cache))
    prefixed = [req for req in requests if len(req.prefix_indices)]
    # Parts of one tensor: nobody writes to a node's value, and a copy each would be a kernel each on a GPU.
    new_lines = _looked_up(table, lines)
    new_values = _looked_up(table, [node.value for node in nodes])
    new_prefixes = _looked_up(table, [req.prefix_indices for req in prefixed])

    def apply() -> None:
        for line, part in zip(lines, new_lines, strict=True):
            line.copy_(part)
        for node, part in zip(nodes, new_values, strict=True):
            node.value = part
        for req, part in zip(prefixed, new_prefixes, strict=True):
            req.prefix_indices = part

    return apply


def _looked_up(table: torch.Tensor, ids: list[torch.Tensor]) -> Sequence[torch.Tensor]:
    if not ids:
        return ()
    return table[torch.cat(ids).to(torch.int64)].split([len(part) for part in ids])


def _nodes(tree_cache: Any) -> Iterator[Any]:
    root = getattr(tree_cache, "root_node", None)
    waiting = list(root.children.values()) if root is not None else []
    while waiting:
        node = waiting.pop()
        waiting += node.children.values()
        if node.value is not None and len(node.value):
            yield node
