"""What a policy is: a class that is told what happens and answers with γ for every batch size.

The same classes run in the policy process and in the simulator, so a policy takes the time only from the messages, its
randomness only from ``seed``, and does no I/O. It may keep state, of bounded size.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from sglang_nightjar.core import gammas
from sglang_nightjar.core.gammas import Ranges
from sglang_nightjar.core.messages import MAX_BATCH, MAX_GAMMA, MAX_TEXT, Arrivals, Hello, Telemetry

#: What `Policy.estimates` are of, unless a policy says something else.
NS_PER_TOKEN = "ns per token"


@dataclass(frozen=True)
class NoParams:
    """For a policy without parameters."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's mind; the policy process makes a `Plan` of it.

    Attributes:
        gammas: γ by batch size, as in `Plan`; every γ is one of the scheduler's candidates.
        reason: why, in one printable line.
        residency: ``device`` or ``host``, as in `Plan`.
        trim: as in `Plan`.
    """

    gammas: Ranges
    reason: str
    residency: str = "device"
    trim: bool = False

    def gamma_for(self, batch_size: int) -> int:
        """γ for ``batch_size`` requests."""
        return gammas.lookup(self.gammas, batch_size)


class Policy:
    """Base class of all policies. Overriding ``hello`` alone makes a static policy.

    A method that raises, or returns anything but a valid `Decision` or None, gets the policy started again in a new
    worker.

    Attributes:
        name: how it is called in logs and metrics.
        version: changes when its decisions may.
        Params: a dataclass of the parameters, with defaults; the config's ``params`` are checked against it. A field
            may have ``metadata={"min": ..., "max": ...}``; `__post_init__` may raise ValueError.
        estimates_of: the unit of `estimates`; those in ns per token are exported to Prometheus.
    """

    name: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    Params: ClassVar[type] = NoParams
    estimates_of: ClassVar[str] = NS_PER_TOKEN

    def __init__(self, params: Any = None, seed: int = 0) -> None:
        self.params = self.Params() if params is None else params
        self.seed = seed

    def hello(self, hello: Hello) -> Decision | None:
        """A scheduler joins, or introduces itself once more. ``hello.candidates`` are those that the config allows."""
        raise NotImplementedError

    def telemetry(self, sender: str, record: Telemetry) -> Decision | None:
        """A scheduler that has joined ran an iteration. None: the last decision stands."""
        return None

    def arrivals(self, arrivals: Arrivals) -> None:
        """Requests arrived at a server."""

    def goodbye(self, sender: str) -> None:
        """A scheduler is gone; forget it."""

    def estimates(self) -> dict[str, dict[str, dict[str, float]]]:
        """For people: what is expected, by pool, batch-size bucket and γ, in units of ``estimates_of``."""
        return {}

    def save(self) -> dict[str, Any]:
        """What it has learnt, as plain JSON with a ``version``, for `load` after a restart. Empty: nothing to keep."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `save` returned, before the first scheduler of a kind joins; with several kinds, once for each.

        A kind is target, draft, hardware, tp_size and SGLang's version. Raises ValueError, for people, if it can't.
        """
        raise ValueError(f"policy {self.name} keeps no state")


def check(decision: object, candidates: tuple[int, ...]) -> str | None:
    """What is wrong with what a policy returned to a scheduler with ``candidates``; None if nothing is."""
    if not isinstance(decision, Decision):
        return f"it returned {_show(decision)} instead of a Decision or None"
    if (wrong := gammas.fault(decision.gammas, MAX_GAMMA, MAX_BATCH)) is not None:
        return wrong
    if strange := sorted({gamma for _, _, gamma in decision.gammas} - set(candidates)):
        return f"γ {strange} is not among the candidates {list(candidates)}"
    if decision.residency not in ("device", "host"):
        return f"residency must be device or host, not {_show(decision.residency)}"
    if type(decision.trim) is not bool:
        return f"trim must be true or false, not {_show(decision.trim)}"
    reason = decision.reason
    if not isinstance(reason, str) or len(reason) > MAX_TEXT or not reason.isprintable():
        return f"reason must be one printable line of at most {MAX_TEXT} characters, not {_show(reason)}"
    return None


def nearest_candidate(gamma: int, candidates: tuple[int, ...]) -> int:
    """The largest candidate that is not above ``gamma``, else the smallest one."""
    return max((c for c in candidates if c <= gamma), default=candidates[0])


def _show(value: object) -> str:
    try:
        return repr(value)[:80]
    except Exception:
        return f"a {type(value).__name__} that can't be shown"
