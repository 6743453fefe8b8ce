"""Which KV slots lack the draft's part, and how far behind each request is.

The draft's cache has the target's slot ids. What is true of a slot is true for everybody who holds it (a running
request, a node of the radix cache, a retracted request that finds its prompt again), so it is kept per slot and nothing
has to follow SGLang's bookkeeping. Counters per request save looking the slots up in every iteration.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

#: Positions [first, last) of a request.
Run = tuple[int, int]


class Coverage:
    """The state of every slot, and the lag of every request.

    Attributes:
        stale: bool ``[slots]`` on the pool's device; True where the target wrote a token and the draft did not.
        lag: int64 ``[rows]`` on the host: of the request in each row of ``req_to_token``, the newest positions in a row
            that are stale.
        uncertain: bool ``[rows]`` on the host: ``lag`` and ``holes`` are to be looked up again, because the radix cache
            exchanged slots of the row, or slots were filled for another request.
        holes: older stale runs of a request, by row, oldest first.
        used: whether a slot was ever stale. Until then nothing is marked and nothing costs anything.
    """

    def __init__(self, slots: int, rows: int, device: Any):
        self.stale = torch.zeros(slots, dtype=torch.bool, device=device)
        self.lag = np.zeros(rows, dtype=np.int64)
        self.uncertain = np.zeros(rows, dtype=bool)
        self.holes: dict[int, list[Run]] = {}
        self.used = False

    def wrote(self, slots: torch.Tensor) -> None:
        """The draft wrote ``slots`` (int64 ``[n]``)."""
        if self.used:
            self.stale[slots] = False

    def skipped(self, slots: torch.Tensor) -> None:
        """The target wrote ``slots`` and the draft did not."""
        self.used = True
        self.stale[slots] = True

    def lost(self, lengths: Mapping[int, int]) -> None:
        """The draft's cache was given back, so nothing is in it any more.

        ``lengths`` are positions of the requests at hand, by row: how far each is behind until it is looked up.
        """
        self.used = True
        self.stale.fill_(True)
        self.holes.clear()
        self.lag[:] = 0
        for row, length in lengths.items():
            self.lag[row] = length
        # Under overlap a request is longer than the host knows.
        self.uncertain[:] = True

    def moved(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Slots ``source`` now live in ``target``; the two have no slot in common."""
        if self.used:
            self.stale[target] = self.stale[source]

    def stale_runs(self, spans: Sequence[torch.Tensor]) -> list[list[Run]]:
        """For each span of slots its stale runs. Waits for the device if there ever was one."""
        lengths = [len(span) for span in spans]
        if not self.used or not sum(lengths):
            return [[] for _ in spans]
        stale = self.stale[torch.cat(list(spans)).to(torch.int64)].cpu().numpy()
        ends = np.cumsum([0, *lengths])
        return [runs(stale[first:last]) for first, last in zip(ends[:-1], ends[1:], strict=True)]

    def start(self, row: int, first: int, lag: int, behind: Sequence[Run]) -> None:
        """A request's prompt, or another piece of it, was computed in ``row``.

        It begins at position ``first``, its ``lag`` positions are stale (all, or 0), and so are the runs ``behind`` it.
        """
        found = list(behind)
        if lag and found and found[-1][1] == first:
            lag += first - found.pop()[0]
        self.lag[row] = lag
        self.uncertain[row] = False
        if found:
            self.holes[row] = found
        else:
            self.holes.pop(row, None)

    def recount(self, row: int, slots: torch.Tensor) -> None:
        """Look all ``slots`` of the request in ``row`` up. Waits for the device."""
        found = runs(self.stale[slots.to(torch.int64)].cpu().numpy())
        suffix = found.pop() if found and found[-1][1] == len(slots) else (0, 0)
        self.lag[row] = suffix[1] - suffix[0]
        self.uncertain[row] = False
        if found:
            self.holes[row] = found
        else:
            self.holes.pop(row, None)

    def missing(self, row: int, length: int) -> list[Run]:
        """The runs of the request in ``row``, of ``length`` positions, that the draft has to write; oldest first."""
        lag = int(self.lag[row])
        return [*self.holes.get(row, ()), *([(length - lag, length)] if lag else ())]

    def filled(self, row: int, run: Run, length: int) -> None:
        """The draft wrote ``run``, the beginning of the first of `missing`."""
        holes = self.holes.get(row)
        if not holes:
            self.lag[row] = length - run[1]
        elif run[1] < holes[0][1]:
            holes[0] = (run[1], holes[0][1])
        else:
            holes.pop(0)
            if not holes:
                del self.holes[row]

    def lags(self, rows: np.ndarray) -> tuple[int, int]:
        """(largest, total) number of stale positions of the requests in ``rows``; one that two share counts twice."""
        if not self.used or not len(rows):
            return 0, 0
        lag = self.lag[rows]
        if not self.holes:
            return int(lag.max()), int(lag.sum())
        lag = lag + [sum(last - first for first, last in self.holes.get(int(row), ())) for row in rows]
        return int(lag.max()), int(lag.sum())


def runs(flags: np.ndarray) -> list[Run]:
    """The [first, last) runs of True in bool ``[n]``."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True)]
