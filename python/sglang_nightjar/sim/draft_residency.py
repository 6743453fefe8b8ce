"""Where a replica's draft is, and what moving it takes: the residency machine in virtual time."""

import numpy as np

from sglang_nightjar.core.policy import Decision
from sglang_nightjar.core.residency import Event, Residency, ResidencyMachine, Wish
from sglang_nightjar.sim.meter import Meter
from sglang_nightjar.sim.setup import EngineSettings


class DraftResidency:
    """Attributes:
    capacity: KV tokens that the cache holds.
    """

    def __init__(self, settings: EngineSettings, meter: Meter) -> None:
        self._settings, self._meter = settings, meter
        self._machine = ResidencyMachine()
        self._until = 0
        self._to_catch_up = 0
        self.capacity = settings.kv_tokens

    @property
    def state(self) -> Residency:
        return self._machine.state

    def is_settled(self, decision: Decision, gamma: int) -> bool:
        """Nothing of the draft has to move."""
        return self.state is Residency.RESIDENT and gamma > 0 and decision.residency == "device"

    def step(self, decision: Decision, gamma: int, now_ns: int, context: int, lag: np.ndarray) -> tuple[int, float]:
        """Before an iteration.

        Args:
            gamma: that the policy wants.
            context: KV tokens in use.
            lag: int64[requests], tokens that the draft has missed of each; set to 0 where it misses none.

        Returns:
            γ that can be run, and ns that moving the draft adds to this iteration.
        """
        machine, moves = self._machine, self._settings.draft
        machine.tick()
        self._moved(now_ns, context, lag)
        event = machine.wanted(Wish(decision.residency == "device", gamma > 0))
        if event is not None:
            machine.fire(event, decision.reason)
            if event is Event.PARK:
                lag[:] = 0
            elif event is Event.OFFLOAD or (event is Event.TURN_BACK and machine.state is Residency.OFFLOADING):
                self._until = now_ns + int(moves.offload_ns)
            elif event is Event.RECALL:
                self._until = now_ns + int(moves.shrink_ns)
            elif event is Event.CATCH_UP:
                self._to_catch_up = -1
        if machine.state is Residency.RESIDENT:
            return gamma, 0.0
        return 0, self._catch_up(lag) if machine.state is Residency.CATCHING_UP else 0.0

    def _moved(self, now_ns: int, context: int, lag: np.ndarray) -> None:
        """Steps that take time and are over."""
        machine, settings = self._machine, self._settings
        if machine.state is Residency.SHRINKING and context > settings.kv_tokens - len(lag):
            return
        if machine.state is Residency.CATCHING_UP and self._to_catch_up == 0:
            machine.fire(Event.CAUGHT_UP, "caught up")
            lag[:] = 0
        elif now_ns >= self._until:
            if machine.state is Residency.OFFLOADING:
                machine.fire(Event.RELEASED, "released")
                self.capacity = max(settings.kv_tokens, settings.kv_tokens_without_draft)
                self._meter.offloads += 1
            elif machine.state is Residency.SHRINKING:
                machine.fire(Event.SHRUNK, "shrunk")
                self.capacity = settings.kv_tokens
                self._until = now_ns + int(settings.draft.load_ns)
            elif machine.state is Residency.LOADING:
                machine.fire(Event.LOADED, "loaded")
                self._to_catch_up = -1

    def _catch_up(self, lag: np.ndarray) -> float:
        """One chunk of catching up; its ns."""
        moves, fixed = self._settings.draft, 0.0
        if self._to_catch_up < 0:
            fixed = moves.catch_up_ns
            self._to_catch_up = int(lag.sum())
        chunk = min(self._to_catch_up, moves.catch_up_chunk)
        self._to_catch_up -= chunk
        return fixed + chunk * moves.catch_up_token_ns
