"""Which policy is in charge: replacing it while servers run, restarting it when it fails, and its shadows."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sglang_nightjar.policy.config_file import PolicySection
from sglang_nightjar.policy.host import START_TIMEOUT, Host

logger = logging.getLogger(__name__)

_BACK_OFF = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
#: This many failures in a row without `_HEALTHY` seconds between, and the policy counts as down (still retried).
_DOWN_AFTER = 5
_HEALTHY = 30.0
_WARM_TIMEOUT = 10.0

#: Called with the policy that is now in charge, and why the wanted one is not ("" if it is).
Done = Callable[["Slot", str], None]
#: Offers a new host the known schedulers, and, if the flag says so, the recent telemetry.
Warm = Callable[[Host, bool], None]


class Slot:
    """A policy that is to run, in charge or as a shadow: its host, and a new one after a failure.

    Attributes:
        spec: what is to run.
        host: the present worker; None while waiting to start another.
        error: why it last failed, or "".
        restarts: how often it was started again.
    """

    def __init__(self, spec: PolicySection, host: Host | None = None) -> None:
        self.spec = spec
        self.host: Host | None = host if host is not None else Host(spec)
        self.error = ""
        self.restarts = 0
        self._failures = 0
        self._retry_at = 0.0
        self._failed_at = 0.0
        self._last = self.host

    @property
    def state(self) -> str:
        """``running``, ``restarting`` or ``down``."""
        if self.host is not None and self.host.ready:
            return "running"
        return "down" if self._failures >= _DOWN_AFTER else "restarting"

    def failed(self, now: float) -> str | None:
        """If the host failed since the last call: why. It is restarted later, see `due`."""
        if self.host is None or self.host.error is None:
            return None
        if now - self._failed_at > _HEALTHY:
            self._failures = 0
        self.error = self.host.error
        self._retry_at = now + _BACK_OFF[min(self._failures, len(_BACK_OFF) - 1)]
        self._failures += 1
        self._failed_at = now
        self.host.close()
        self._last, self.host = self.host, None
        return self.error

    def due(self, now: float) -> bool:
        """True once when it was time to start again, which has been done. The new host knows nothing yet."""
        if self.host is not None or now < self._retry_at:
            return False
        # After two failures perhaps its state is what it can't take.
        self.host = Host(self.spec, cold=not self.may_warm)
        self.restarts += 1
        return True

    @property
    def may_warm(self) -> bool:
        """After two failures in a row it starts cold: perhaps the recent telemetry is what it can't take."""
        return self._failures < 2

    def as_json(self) -> dict[str, Any]:
        """For status, see docs/wire-protocol.md."""
        known = self.host or self._last
        assert known is not None
        return {
            "name": known.name,
            "version": known.version,
            "params": known.params,
            "path": self.spec.path,
            "state": self.state,
            "error": self.error,
            "since_s": round(time.time() - known.since, 3),
            "records": known.records,
            "plans": known.decisions,
            "estimates": known.estimates,
            "estimates_of": known.estimates_of,
        }

    def close(self) -> None:
        """End its worker."""
        if self.host is not None:
            self.host.close()
            self._last, self.host = self.host, None


@dataclass
class _Swap:
    """A policy on its way to be in charge."""

    spec: PolicySection
    host: Host
    done: Done | None
    deadline: float
    mark: int


class Charge:
    """The policy in charge, one that may be about to replace it, and shadows.

    Attributes:
        current: the one in charge.
        wanted: what was last asked to be; another one stays in charge if that fails.
        shadows: those that get everything and decide nothing.
        swaps, failures: how often a policy was replaced, and failed.
    """

    def __init__(self, spec: PolicySection, shadows: Iterable[PolicySection], warm: Warm) -> None:
        """Start the workers."""
        self._warm = warm
        self.wanted = spec
        self.current = Slot(spec)
        self._warm_slot(self.current)
        self.shadows: list[Slot] = []
        self._swap: _Swap | None = None
        self.swaps = self.failures = 0
        self.set_shadows(shadows)

    def hosts(self) -> list[Host]:
        """All workers that are alive: they get every message."""
        found = [slot.host for slot in (self.current, *self.shadows) if slot.host is not None]
        return [*found, self._swap.host] if self._swap is not None else found

    def slots(self) -> list[Slot]:
        """In charge first, then the shadows."""
        return [self.current, *self.shadows]

    def set(self, spec: PolicySection, done: Done | None = None) -> None:
        """Put another policy in charge, once it is loaded, rehearsed and warm; ``done`` hears how it went."""
        if self._swap is not None:
            self._end_swap("replaced by a later change")
        self.wanted = spec
        # By the time that the new one reads it, it is there: two policies may share what they learn.
        self.save()
        host = Host(spec)
        self._warm(host, True)
        self._swap = _Swap(spec, host, done, time.monotonic() + START_TIMEOUT + _WARM_TIMEOUT, host.mark)

    def set_shadows(self, specs: Iterable[PolicySection]) -> None:
        """Make ``specs`` the shadows; one that was already there goes on as it is."""
        old = list(self.shadows)
        self.shadows = []
        for spec in specs:
            kept = next((slot for slot in old if slot.spec == spec), None)
            if kept is not None:
                old.remove(kept)
            else:
                kept = Slot(spec)
                self._warm_slot(kept)
            self.shadows.append(kept)
        for slot in old:
            slot.close()

    def tick(self, now: float) -> tuple[list[tuple[Slot, str]], bool]:
        """Watch over all workers. Returns what failed and why, and whether another policy was put in charge."""
        failed = []
        for host in self.hosts():
            host.check(now)
        for slot in self.slots():
            if (why := slot.failed(now)) is not None:
                self.failures += 1
                failed.append((slot, why))
            elif slot.due(now):
                self._warm_slot(slot)
        return failed, self._advance_swap(now)

    def save(self) -> None:
        """Have what the policy in charge learnt written to disk. Shadows read states and write none."""
        if self.current.host is not None:
            self.current.host.ask_save()

    def _saves(self) -> bool:
        return self.current.host is not None and self.current.host.saving

    def close(self) -> None:
        """Save, and end all workers."""
        if self.current.host is not None:
            self.current.host.save_and_wait()
        for host in self.hosts():
            host.close()

    def _warm_slot(self, slot: Slot) -> None:
        if slot.host is not None:
            self._warm(slot.host, slot.may_warm)

    def _advance_swap(self, now: float) -> bool:
        swap = self._swap
        if swap is None:
            return False
        if swap.host.error is not None:
            self._end_swap(swap.host.error)
        elif now > swap.deadline:
            self._end_swap("it was not warm in time")
        elif swap.host.ready and swap.host.reached(swap.mark) and not self._saves():
            self.current.close()
            self.current = Slot(swap.spec, swap.host)
            swap.host.since = time.time()
            self.swaps += 1
            self._swap = None
            if swap.done is not None:
                swap.done(self.current, "")
            return True
        return False

    def _end_swap(self, why: str) -> None:
        swap, self._swap = self._swap, None
        assert swap is not None
        swap.host.close()
        if swap.done is not None:
            swap.done(self.current, why)
