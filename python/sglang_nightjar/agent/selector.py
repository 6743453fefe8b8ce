"""γ for the next batch, from memory: the object that stands where SGLang's adaptive rule would.

It has the five methods of SGLang 0.5.23's ``AdaptiveSpecPolicy``, so going past 0.5.17 means handing it over instead of
putting it into ``AdaptiveController.params``.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from sglang_nightjar.agent.decision import Decision, fallback

#: Batch sizes whose γ is looked up once per decision.
_CACHED_SIZES = 4096

#: Launches whose result was not taken yet: two at most, unless nobody takes any.
_UNTAKEN = 8


class Launch(NamedTuple):
    """A decode batch that was launched with ``gamma``, under ``decision``; its result comes later.

    Attributes:
        held: γ is 0 because the draft was not ready, whatever ``decision`` says.
    """

    gamma: int
    decision: Decision
    held: bool = False


class GammaSelector:
    """Answers with the γ of the decision in force.

    Every rank of a TP group has one, and `decide` is called on all of them in the same iteration: different γ on two
    ranks are different shapes, and a hang.

    Attributes:
        decision: the decision in force.
        launched: decode batches launched so far.
        launches: of those, the ones whose result nobody has taken yet, oldest first.
        last_gamma: γ of the batch launched last.
        held: the next batch decodes without drafts whatever the decision says, because the draft is not ready for it.
    """

    def __init__(self, candidates: Sequence[int], fallback_gamma: int):
        """Raises ValueError if ``fallback_gamma`` is not one of ``candidates``."""
        if fallback_gamma not in candidates:
            raise ValueError(f"the fallback γ={fallback_gamma} is not one of the candidates {tuple(candidates)}")
        self.candidates = tuple(sorted(candidates))
        self.fallback_gamma = fallback_gamma
        self.decision = fallback(fallback_gamma, "no plan yet", 0)
        self.launched = 0
        self.held = False
        self.last_gamma = max(self.candidates)
        self.launches: deque[Launch] = deque(maxlen=_UNTAKEN)
        self._by_size: dict[int, int] = {}
        self._graph_batch_sizes: list[int] | None = None

    def decide(self, decision: Decision) -> None:
        """Put ``decision`` in force from the next batch on."""
        self.decision = decision
        self._by_size.clear()

    def refusal(self, decision: Decision) -> str:
        """Why this scheduler can't follow ``decision``; "" if it can."""
        impossible = sorted({gamma for _, _, gamma in decision.gammas} - set(self.candidates))
        return f"γ {impossible} not among the candidates {list(self.candidates)}" if impossible else ""

    # SGLang's protocol.

    @property
    def candidate_steps(self) -> list[int]:
        return list(self.candidates)

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        self._graph_batch_sizes = sorted(cuda_graph_bs) if cuda_graph_bs else None

    def get_steps_for_batch(self, batch_size: int) -> int:
        gamma = self._by_size.get(batch_size)
        if gamma is None:
            gamma = self.decision.gamma_for(max(1, batch_size))
            if len(self._by_size) < _CACHED_SIZES:
                self._by_size[batch_size] = gamma
        if self.held:
            gamma = 0
        self.launched += 1
        self.last_gamma = gamma
        self.launches.append(Launch(gamma, self.decision, self.held))
        return gamma

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> None:
        """Results go to the policy process; nothing is learned here, so nothing switches here."""

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """Any plan may ask for any γ at any batch size, so every size is captured for every γ."""
        return self._graph_batch_sizes
