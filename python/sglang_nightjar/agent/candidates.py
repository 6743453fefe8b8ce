"""Γ as it travels in SGLang's arguments: the text of an adaptive config that lists all γ for every batch size."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_nightjar.agent.settings import DEFAULT_GAMMA, Settings

_MARK = "nightjar"


@dataclass(frozen=True)
class Candidates:
    """Γ, ascending, and the γ of it that counts while there is no plan."""

    gammas: tuple[int, ...]
    fallback: int

    def dump(self) -> str:
        """The text; SGLang's own reader of such configs takes it too."""
        return json.dumps({"1": {"candidate_steps": list(self.gammas)}, _MARK: {"fallback": self.fallback}})


def parse(text: str | None) -> Candidates | None:
    """What `Candidates.dump` wrote; None for anything else (the path of a config of the user's)."""
    if not text or not text.startswith("{"):
        return None
    config: dict[str, Any] = json.loads(text)
    return Candidates(tuple(config["1"]["candidate_steps"]), config[_MARK]["fallback"])


def choose(settings: Settings, num_steps: int | None) -> Candidates:
    """Γ with the configured fallback, else the user's ``--speculative-num-steps``, else a default, as a member."""
    fallback = settings.fallback_gamma
    if fallback is None:
        fallback = num_steps if num_steps is not None else _nearest(settings.candidates, DEFAULT_GAMMA)
    return Candidates(tuple(sorted({*settings.candidates, fallback})), fallback)


def _nearest(gammas: Sequence[int], wanted: int) -> int:
    return min(gammas, key=lambda gamma: (abs(gamma - wanted), gamma))
