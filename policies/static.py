"""``static``: one γ for every batch size, as SGLang's own flags do it."""

from dataclasses import dataclass, field

from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.messages import MAX_GAMMA, Hello
from sglang_nightjar.core.policy import Decision, Policy, nearest_candidate


@dataclass(frozen=True)
class StaticParams:
    """Attributes:
    gamma: the γ; None is the one that the server starts with.
    trim: drafts that are too unlikely to pay for their verification are left out of it, where the server can
        (an EAGLE-3 head on a CPU).
    """

    gamma: int | None = field(default=None, metadata={"min": 0, "max": MAX_GAMMA})
    trim: bool = False


class Static(Policy):
    """The same γ always. A γ that a scheduler cannot run becomes the next smaller one that it can."""

    name = "static"
    Params = StaticParams

    def hello(self, hello: Hello) -> Decision:
        wanted = hello.start_gamma if self.params.gamma is None else self.params.gamma
        gamma = nearest_candidate(wanted, hello.candidates)
        reason = f"γ={gamma} always" + (", as many of the drafts as pay" if self.params.trim else "")
        reason = reason if gamma == wanted else f"{reason}; {wanted} is no candidate"
        return Decision(constant(gamma), reason, trim=self.params.trim)
