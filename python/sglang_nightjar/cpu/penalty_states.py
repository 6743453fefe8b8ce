"""Frequency, presence and repetition penalties and min_new_tokens inside a draft chain.

Without speculation SGLang counts every output token before the next one is chosen. A verification chooses several at
once, so row j of a chain has to count the j drafts in front of it, and afterwards the penalties must have counted
exactly the drafts that were accepted. (SGLang itself counts the last token of every iteration; it does so at the start
of the next one, which takes care of the bonus token.)
"""

from typing import Any

import torch

# A penalizer's tensors, by attribute name.
State = dict[str, torch.Tensor]


class PenaltyStates:
    """The states of a batch's penalizers after 0, 1, 2 ... drafts of its chains."""

    def __init__(self, orchestrator: Any):
        self._orchestrator = orchestrator
        self._penalizers = [p for p in orchestrator.penalizers.values() if p.is_prepared()]
        # One entry per number of drafts: a state per penalizer.
        self._states: list[list[State]] = []

    def penalise_chain(self, logits: torch.Tensor, candidates: torch.Tensor) -> None:
        """Apply to each row of ``logits`` ``[batch * width, vocab]`` what its place in the chain asks for, in place.

        ``candidates`` int64 ``[batch, width]``: the bonus token, which the penalizers have counted, and the drafts.
        """
        batch, width = candidates.shape
        rows = logits.view(batch, width, -1)
        for place in range(width):
            if place > 0:
                self._orchestrator.cumulate_output_tokens(candidates[:, place])
            self._states.append([_copy(penalizer) for penalizer in self._penalizers])
            penalised = rows[:, place].contiguous()
            # With `repeat`, sums come before factors, as in SGLang's loop without speculation.
            self._orchestrator.apply(penalised, repeat=1)
            rows[:, place] = penalised

    def keep(self, accepted: torch.Tensor) -> None:
        """Set each request's penalties to where ``accepted`` ``[batch]`` drafts leave them."""
        request = torch.arange(len(accepted))
        for number, penalizer in enumerate(self._penalizers):
            for name in self._states[0][number]:
                states = torch.stack([state[number][name] for state in self._states])
                setattr(penalizer, name, states[accepted, request])


def _copy(penalizer: Any) -> State:
    return {name: value.clone() for name, value in vars(penalizer).items() if isinstance(value, torch.Tensor)}
