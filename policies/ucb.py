"""``ucb``: UCBSpec of BanditSpec, each γ an arm, without any context.

Follows Hou et al., BanditSpec (arXiv 2505.15141, ICML 2025), algorithm UCBSpec, in the form of its released code for
speculation lengths: the arms are lengths, the reward of a round is its throughput, every arm is tried a few times
first, then the arm of the largest mean + width · sqrt(log t / n) runs.

Departs: the paper's rounds are of one generation, so its bandit starts anew with each; a server's batch is many
generations, so this one goes on for as long as the server runs, one for each scheduler. γ=0 is an arm, too.
Throughput is divided by the largest mean of any arm, so that ``width`` means the same on every machine.
``reward: accepted`` takes the paper's own reward, accepted tokens per round, which knows no cost and prefers long γ.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from sglang_nightjar.core import gammas
from sglang_nightjar.core.messages import LONGEST_ITERATION_NS, Hello, Telemetry
from sglang_nightjar.core.policy import Decision, Policy

#: A reward so many times the best mean is a broken clock's.
_ABSURD = 10.0


@dataclass(frozen=True)
class UcbParams:
    """Attributes:
    reward: ``throughput``, tokens per second of the round; ``accepted``, tokens per request of the round.
    width: of the confidence bound, in shares of the best mean.
    first: rounds that each arm gets before bounds count.
    """

    reward: str = field(default="throughput", metadata={"choices": ("throughput", "accepted")})
    width: float = field(default=0.5, metadata={"min": 0.0, "max": 100.0})
    first: int = field(default=2, metadata={"min": 1, "max": 1000})


class _Bandit:
    """The arms of one scheduler: rounds and mean reward of each, and the one that runs."""

    def __init__(self, candidates: tuple[int, ...], start: int) -> None:
        self.rounds = dict.fromkeys(candidates, 0)
        self.means = dict.fromkeys(candidates, 0.0)
        self.total = 0
        self.arm = start

    def add(self, gamma: int, reward: float) -> None:
        # A round that took no time would be the best arm's for ever.
        if self.total > 10 and reward > _ABSURD * max(self.means.values()):
            return
        self.total += 1
        self.rounds[gamma] += 1
        self.means[gamma] += (reward - self.means[gamma]) / self.rounds[gamma]

    def next(self, params: UcbParams) -> int:
        for gamma, rounds in self.rounds.items():
            if rounds < params.first:
                return gamma
        scale = max(self.means.values()) or 1.0
        log = math.log(self.total)
        return max(
            self.means, key=lambda gamma: self.means[gamma] / scale + params.width * math.sqrt(log / self.rounds[gamma])
        )


class Ucb(Policy):
    """See the module."""

    name = "ucb"
    Params = UcbParams
    estimates_of = "mean reward"

    def __init__(self, params: Any = None, seed: int = 0) -> None:
        super().__init__(params, seed)
        self.bandits: dict[str, _Bandit] = {}

    def hello(self, hello: Hello) -> Decision:
        bandit = self.bandits.get(hello.sender)
        if bandit is None or tuple(bandit.means) != hello.candidates:
            bandit = self.bandits[hello.sender] = _Bandit(hello.candidates, hello.start_gamma)
        return Decision(gammas.constant(bandit.arm), "joined")

    def telemetry(self, sender: str, record: Telemetry) -> Decision | None:
        bandit = self.bandits.get(sender)
        if bandit is None or record.gamma not in bandit.means or record.prefill_tokens:
            return None
        if not (record.batch_size >= 1 and 0 < record.iteration_ns <= LONGEST_ITERATION_NS):
            return None
        if not 0 < record.committed <= record.batch_size * (record.gamma + 1):
            return None
        per = record.iteration_ns if self.params.reward == "throughput" else record.batch_size
        bandit.add(record.gamma, record.committed / per)
        before, bandit.arm = bandit.arm, bandit.next(self.params)
        if bandit.arm == before:
            return None
        return Decision(gammas.constant(bandit.arm), f"round {bandit.total}: {before} -> {bandit.arm}")

    def goodbye(self, sender: str) -> None:
        self.bandits.pop(sender, None)

    def estimates(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean reward by scheduler and γ, all batch sizes together ("any")."""
        return {
            sender: {"any": {str(gamma): mean for gamma, mean in bandit.means.items()}}
            for sender, bandit in self.bandits.items()
        }
