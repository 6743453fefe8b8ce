"""Where the draft is, and how it gets elsewhere: the state machine, without the work that its transitions stand for.

RESIDENT -> PARKED -> OFFLOADING -> OFFLOADED -> SHRINKING -> LOADING -> CATCHING_UP -> RESIDENT. Only with its weights
can the draft run, and γ be above 0: it is in RESIDENT, and in CATCHING_UP from the iteration on for which nothing is
missing any more, which the machine hears of in front of the next one.

One machine runs on each rank of a TP group. Everything that moves it is the same on all of them and comes at the same
iteration (plans ride SGLang's broadcast; what takes time is agreed on before it is told to the machine), so the
machines never differ.
"""

import enum
from dataclasses import dataclass

from sglang_nightjar.core.messages import Residency


class Event(enum.Enum):
    """What moves the machine. The first five are asked for by a `Wish`, the others report what happened."""

    PARK = "park"
    CATCH_UP = "catch up"
    OFFLOAD = "offload"
    RECALL = "recall"
    TURN_BACK = "turn back"
    RELEASED = "released"
    SHRUNK = "shrunk"
    LOADED = "loaded"
    CAUGHT_UP = "caught up"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the plan in force wants of the draft for the batch at hand.

    Attributes:
        on_device: the plan's residency is ``device``.
        drafting: the plan's γ for this batch is above 0.
    """

    on_device: bool
    drafting: bool


_R = Residency

#: (state, event) -> next state. A failure leads back to where the draft was before the step that failed, or away.
TRANSITIONS: dict[tuple[Residency, Event], Residency] = {
    (_R.RESIDENT, Event.PARK): _R.PARKED,
    (_R.PARKED, Event.CATCH_UP): _R.CATCHING_UP,
    (_R.PARKED, Event.OFFLOAD): _R.OFFLOADING,
    (_R.OFFLOADING, Event.RELEASED): _R.OFFLOADED,
    (_R.OFFLOADING, Event.FAILED): _R.PARKED,
    (_R.OFFLOADED, Event.RECALL): _R.SHRINKING,
    (_R.SHRINKING, Event.SHRUNK): _R.LOADING,
    (_R.SHRINKING, Event.TURN_BACK): _R.OFFLOADED,
    (_R.SHRINKING, Event.FAILED): _R.OFFLOADED,
    (_R.LOADING, Event.LOADED): _R.CATCHING_UP,
    (_R.LOADING, Event.TURN_BACK): _R.OFFLOADING,
    (_R.LOADING, Event.FAILED): _R.OFFLOADED,
    (_R.CATCHING_UP, Event.CAUGHT_UP): _R.RESIDENT,
    (_R.CATCHING_UP, Event.PARK): _R.PARKED,
    (_R.CATCHING_UP, Event.FAILED): _R.PARKED,
}

#: States in which the draft's weights can be used.
WITH_WEIGHTS = frozenset({_R.RESIDENT, _R.PARKED, _R.CATCHING_UP})

#: After a failure, nothing is tried for so many ticks; twice as many after the next one, up to the second number.
FIRST_PAUSE_TICKS = 64
LONGEST_PAUSE_TICKS = 8192

_TRIES = frozenset({Event.CATCH_UP, Event.OFFLOAD, Event.RECALL})


class ImpossibleTransition(Exception):
    """The event has no meaning in this state: a bug of the caller's."""


class ResidencyMachine:
    """Attributes:
    state: where the draft is.
    reason: why it went there.
    offloads, reloads: how often the weights were released, and came back.
    failures: steps that failed.
    """

    def __init__(self) -> None:
        self.state = Residency.RESIDENT
        self.reason = "started"
        self.offloads = self.reloads = self.failures = 0
        self._tick = 0
        self._quiet_until = 0
        self._pause = FIRST_PAUSE_TICKS

    @property
    def has_weights(self) -> bool:
        """The draft's weights are all on the device."""
        return self.state in WITH_WEIGHTS

    def tick(self) -> None:
        """An iteration of the scheduler's loop; pauses after failures are counted in them."""
        self._tick += 1

    def wanted(self, wish: Wish) -> Event | None:
        """The event that ``wish`` asks for in this state; None if there is nothing to do but to wait."""
        event = self._wanted(wish)
        return None if event in _TRIES and self._tick < self._quiet_until else event

    def _wanted(self, wish: Wish) -> Event | None:
        drafting = wish.on_device and wish.drafting
        match self.state:
            case Residency.RESIDENT | Residency.CATCHING_UP:
                return None if drafting else Event.PARK
            case Residency.PARKED:
                if not wish.on_device:
                    return Event.OFFLOAD
                return Event.CATCH_UP if drafting else None
            case Residency.OFFLOADED:
                return Event.RECALL if wish.on_device else None
            case Residency.SHRINKING | Residency.LOADING:
                return None if wish.on_device else Event.TURN_BACK
        # An offload that is no longer wanted ends first: it takes a few iterations.
        return None

    def fire(self, event: Event, reason: str) -> Residency:
        """Go where ``event`` leads, for ``reason``. Raises ImpossibleTransition and stays if it leads nowhere."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise ImpossibleTransition(f"{event.value!r} in state {self.state.name}")
        self.state, self.reason = following, reason
        if event is Event.FAILED:
            self.failures += 1
            self._quiet_until = self._tick + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_TICKS)
        elif event in (Event.RELEASED, Event.LOADED, Event.CAUGHT_UP):
            self._pause = FIRST_PAUSE_TICKS
            self.offloads += event is Event.RELEASED
            self.reloads += event is Event.LOADED
        return following
