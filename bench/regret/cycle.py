"""Every γ in turn, a few iterations each: a recording from which costs and acceptance of all γ can be fitted."""

from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.policy import Decision, Policy

_ITERATIONS = 12


class Cycle(Policy):
    """Changes γ every few iterations, whatever happens."""

    name = "cycle"

    def __init__(self, params=None, seed=0):
        super().__init__(params, seed)
        self.candidates, self.count = {}, {}

    def hello(self, hello):
        self.candidates[hello.sender], self.count[hello.sender] = hello.candidates, 0
        return Decision(constant(hello.start_gamma), "joined")

    def telemetry(self, sender, record):
        self.count[sender] += 1
        if self.count[sender] % _ITERATIONS:
            return None
        candidates = self.candidates[sender]
        gamma = candidates[self.count[sender] // _ITERATIONS % len(candidates)]
        return Decision(constant(gamma), "its turn")

    def goodbye(self, sender):
        self.candidates.pop(sender, None)
        self.count.pop(sender, None)
