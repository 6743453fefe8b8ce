"""What the ranks of a TP group agree on: the least of what each of them says.

They run in step, so each asks at the same point. Scheduling and shapes must be the same on all, and what one rank alone
can know (whether it got memory, whether a copy has arrived) may differ.
"""

from collections.abc import Callable
from typing import Any

Agree = Callable[[int], int]


def of(scheduler: Any) -> Agree:
    """The agreement of a scheduler with the other ranks; with itself if there are none."""
    if scheduler.ps.tp_size == 1:
        return lambda code: code
    import torch

    group = scheduler.tp_cpu_group

    def least(code: int) -> int:
        said = torch.tensor([code])
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MIN, group)
        return int(said)

    return least
