"""A policy for measurements: γ by the number of decode iterations, over and over."""

from dataclasses import dataclass

from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.messages import Hello, Telemetry
from sglang_nightjar.core.policy import Decision, Policy, nearest_candidate


@dataclass(frozen=True)
class PhasesParams:
    """Attributes:
    iterations, gammas: of each phase its γ, and how many iterations with that γ it lasts; those that only make ready
        for it don't count.
    residency: where the draft shall be, ``device`` or ``host``; always.
    """

    iterations: tuple[int, ...] = (20, 20)
    gammas: tuple[int, ...] = (0, 3)
    residency: str = "device"


class Phases(Policy):
    """One phase after the other."""

    name = "phases"
    Params = PhasesParams

    def __init__(self, params: PhasesParams | None = None, seed: int = 0) -> None:
        super().__init__(params, seed)
        self.candidates: tuple[int, ...] = (0,)
        self.phase = self.seen = 0

    def hello(self, hello: Hello) -> Decision:
        self.candidates = hello.candidates
        return self._decision()

    def telemetry(self, sender: str, record: Telemetry) -> Decision | None:
        self.seen += record.gamma == self._gamma()
        if self.seen < self.params.iterations[self.phase]:
            return None
        self.seen = 0
        self.phase = (self.phase + 1) % len(self.params.gammas)
        return self._decision()

    def _gamma(self) -> int:
        return nearest_candidate(self.params.gammas[self.phase], self.candidates)

    def _decision(self) -> Decision:
        gamma = self._gamma()
        return Decision(constant(gamma), f"phase {self.phase}: γ={gamma}", self.params.residency)
