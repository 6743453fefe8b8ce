"""A policy for measurements and tests: γ by the number of decode iterations, over and over."""

from dataclasses import dataclass

from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.messages import Hello, Telemetry
from sglang_nightjar.core.policy import Decision, Policy, nearest_candidate


@dataclass(frozen=True)
class PhasesParams:
    """Attributes:
    iterations, gammas: of each phase how long it lasts, and its γ.
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
        self.began = 0
        self.phase = 0

    def hello(self, hello: Hello) -> Decision:
        self.candidates = hello.candidates
        return self._decision()

    def telemetry(self, sender: str, record: Telemetry) -> Decision | None:
        if record.iteration - self.began < self.params.iterations[self.phase]:
            return None
        self.began = record.iteration
        self.phase = (self.phase + 1) % len(self.params.gammas)
        return self._decision()

    def _decision(self) -> Decision:
        gamma = nearest_candidate(self.params.gammas[self.phase], self.candidates)
        return Decision(constant(gamma), f"phase {self.phase}: γ={gamma}", self.params.residency)
