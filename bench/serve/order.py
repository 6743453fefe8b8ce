"""In which order the runs are made, so that what else the machine does falls on all arms alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.serve.arms import Arm

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Run:
    """One measurement: a load, an arm, and which repetition."""

    scenario: str
    arm: Arm
    repetition: int

    @property
    def name(self) -> str:
        """Also the name of its file."""
        return f"{self.scenario}.{self.arm.slug}.{self.repetition}"

    def is_compared_with(self, other: Run) -> bool:
        """Same load, same repetition. Others get new servers: two alike differ by some per cent as long as they live,
        and no two repetitions should share one's luck.
        """
        return (self.scenario, self.repetition) == (other.scenario, other.repetition)


def order(scenarios: Sequence[str], arms: Sequence[Arm], repetitions: int) -> list[Run]:
    """All runs. Every scenario once with every arm, then again: a benchmark that is stopped has as much of each.

    Arms of one kind of server follow each other, forwards and backwards in turn (ABBA: a drift that is linear in time
    cancels out of their difference over two repetitions), starting with another arm every two repetitions. So do kinds
    of servers.
    """
    kinds = list(dict.fromkeys(arm.server for arm in arms))
    runs = []
    for repetition in range(repetitions):
        for scenario in scenarios:
            for kind in _turn(kinds, repetition):
                own = [arm for arm in arms if arm.server == kind]
                runs += [Run(scenario, arm, repetition) for arm in _turn(own, repetition)]
    return runs


def _turn(items: Sequence[_Item], repetition: int) -> list[_Item]:
    turned = _rotated(items, repetition // 2)
    return turned[::-1] if repetition % 2 else turned


def _rotated(items: Sequence[_Item], by: int) -> list[_Item]:
    by %= max(1, len(items))
    return [*items[by:], *items[:by]]
