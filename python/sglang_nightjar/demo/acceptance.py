"""Accepted length of a draft head, computed from the target's greedy answers without serving anything.

With greedy decoding the tokens before a draft step are the target's own whenever the step matters, so one unrolled pass
over the answer tells which draft tokens would have been accepted, and walking along it gives what a server would show.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .features import Batch
from .head import DraftHead


@dataclass
class Acceptance:
    """Counts over verify steps: `offered[k]` chains reached draft position k, `taken[k]` had it accepted."""

    gamma: int
    verify_steps: int = 0
    tokens: int = 0
    offered: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.offered = self.offered or [0] * self.gamma
        self.taken = self.taken or [0] * self.gamma

    @property
    def mean_length(self) -> float:
        """Committed tokens a verify step, the bonus token counted."""
        return self.tokens / max(1, self.verify_steps)

    @property
    def by_position(self) -> list[float]:
        """Share of the chains that reached each draft position and had it accepted."""
        return [t / max(1, o) for t, o in zip(self.taken, self.offered, strict=True)]

    def walk(self, matches: list[list[bool]], first: int, end: int) -> None:
        """Follows one answer: `matches[k][t]` says whether step k predicted token t + 2; chains start at `first`."""
        anchor = first
        while anchor + 2 < end:
            accepted = 0
            for k in range(self.gamma):
                if anchor + k + 2 >= end:
                    break
                self.offered[k] += 1
                if not matches[k][anchor + k]:
                    break
                self.taken[k] += 1
                accepted += 1
            self.verify_steps += 1
            self.tokens += accepted + 1
            anchor += accepted + 1


@torch.no_grad()
def measure(head: DraftHead, embed: torch.Tensor, batches: Iterable[Batch], gamma: int) -> Acceptance:
    """Acceptance of `head` over greedy answers; `embed` [vocab, hidden] is the target's embedding."""
    result = Acceptance(gamma)
    for b in batches:
        with torch.autocast(b.tokens.device.type, torch.bfloat16):
            outputs = head.unroll(b.features[:, :-1], F.embedding(b.tokens[:, 1:], embed), gamma)
            drafted = torch.stack([head.vocab[head.lm_head(o).argmax(-1)] for o in outputs])
        matches = drafted[:, :, :-1] == b.tokens[:, 2:]
        for row, answer in enumerate(b.answer.tolist()):
            first = answer.index(True) - 1
            end = len(answer) - answer[::-1].index(True)
            result.walk(matches[:, row].tolist(), first, end)
    return result
