"""``off``: never draft."""

from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.messages import Hello
from sglang_nightjar.core.policy import Decision, Policy


class Off(Policy):
    """γ=0 for every batch size; the smallest γ of a server that cannot stop drafting."""

    name = "off"

    def hello(self, hello: Hello) -> Decision:
        gamma = hello.candidates[0]
        return Decision(
            constant(gamma), "never draft" if gamma == 0 else f"γ=0 is no candidate; {gamma} is the smallest"
        )
