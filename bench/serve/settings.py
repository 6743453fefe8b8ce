"""The conditions of a whole benchmark: what must be the same in every run for their figures to be compared."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from bench.serve.job import Job, Request
from bench.serve.prompts import PromptSource
from bench.serve.scenarios import Scenario

#: Requests that a closed loop has to choose from.
_CLOSED_SUPPLY = 512


@dataclass(frozen=True)
class Settings:
    """Attributes:
    seed: of arrivals, lengths and prompts; repetition r of a scenario has the same ones in every arm.
    prompts: as in `PromptSource`.
    longest_prompt: tokens.
    new_tokens: (fewest, most) tokens of an answer, drawn uniformly; a trace brings its own, at most the most, and a
        scenario may have others.
    forced: answers have exactly the length that was drawn; else at most, and the model may end before.
    temperature: 0 is greedy.
    time_scale, rate_scale: as in `Scale`.
    max_running_requests: on every server.
    kv_tokens: KV cache on a server with a draft; one without gets what the draft would take on top.
    slo_ttft_s, slo_tpot_s: objectives; goodput counts the requests that meet both.
    warm_up_s: load before every run, which is not counted and which a policy learns from.
    """

    seed: int = 0
    prompts: str = "own"
    longest_prompt: int = 256
    new_tokens: tuple[int, int] = (32, 96)
    forced: bool = True
    temperature: float = 0.0
    time_scale: float = 1.0
    rate_scale: float = 1.0
    max_running_requests: int = 32
    kv_tokens: int = 8192
    slo_ttft_s: float = 2.0
    slo_tpot_s: float = 0.06
    warm_up_s: float = 12.0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "new_tokens": list(self.new_tokens)}


def make_job(
    scenario: Scenario, repetition: int, settings: Settings, source: PromptSource, url: str, key: str = ""
) -> Job:
    """The load of one repetition: a function of the scenario, the settings and the repetition, never of the arm."""
    seed = f"{settings.seed} {scenario.name} {repetition}"
    draw = random.Random(f"arrivals {seed}")
    fewest, most = scenario.new_tokens or settings.new_tokens
    if scenario.arrive is None:
        times, lengths = [0.0] * _CLOSED_SUPPLY, []
        new = [draw.randint(fewest, most) for _ in times]
    else:
        arriving = scenario.arrive(draw)
        times, lengths = [a.at for a in arriving], [a.prompt_tokens for a in arriving if a.prompt_tokens]
        new = [min(a.new_tokens, most) or draw.randint(fewest, most) for a in arriving]
    prompts = source.draw(len(times), seed, lengths)
    requests = [Request(*row) for row in zip(times, prompts, new, strict=True)]
    return Job(
        url=url,
        key=key,
        requests=requests,
        seconds=scenario.seconds,
        clients=list(scenario.clients),
        temperature=settings.temperature,
        forced=settings.forced,
    )
