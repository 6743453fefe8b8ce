"""How many KV slots each running request holds in advance: as many as its next iteration can need, and no more.

SGLang 0.5.17 reserves twice the largest γ + 1 slots for every request, whatever γ is in force. Here the reserve follows
the γ that the next batch will have. If the slots for its drafts can't be had without retracting somebody, the batch
decodes without drafts instead.
"""

from collections.abc import Callable

from sglang_nightjar.agent.selector import GammaSelector


class Reserve:
    """Decided once per iteration, before slots are allotted; on all ranks alike.

    Attributes:
        gamma: the γ that the slots of the next batch suffice for.
        refused: iterations that went without drafts for lack of slots.
    """

    def __init__(self, selector: GammaSelector, overlapped: bool):
        """``overlapped``: a batch is launched before the result of the one before it is known."""
        self.gamma = 0
        self.refused = 0
        self._selector = selector
        self._overlapped = overlapped

    def settle(self, batch_size: int, may_draft: bool, fits: Callable[[], bool]) -> bool:
        """Choose `gamma` for ``batch_size`` requests; whether the slots can be had, which ``fits`` says for it."""
        self.gamma = self._selector.decision.gamma_for(max(1, batch_size)) if may_draft else 0
        if self.gamma and not fits():
            self.gamma = 0
            self.refused += 1
        return self.gamma > 0 or fits()

    def slots(self) -> int:
        """Slots that a request needs beyond its committed length.

        The iteration to come writes γ + 1. Under overlap the committed length lags behind by what is in flight.
        """
        in_flight = self._selector.last_gamma + 1 if self._overlapped else 0
        return in_flight + self.gamma + 1
