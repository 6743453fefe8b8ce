"""A scheduler in a few lines, to drive policies: costs and acceptance that we know, so the best γ is known too."""

from random import Random

from sglang_nightjar.core.messages import Hello, Telemetry
from sglang_nightjar.core.policy import Decision, Policy


def make_hello(sender: str = "s/dp0/a", candidates: tuple[int, ...] = (0, 1, 3, 5), **changes) -> Hello:
    fields = dict(
        sender=sender, seq=1, server="s", dp_rank=0, dp_size=1, tp_size=1, target="t", draft="d", hardware="cpu",
        candidates=candidates, start_gamma=candidates[-1], max_batch_size=64, kv_tokens=10_000,
        kv_tokens_without_draft=11_000, draft_bytes=1_000,
    )  # fmt: skip
    return Hello(**{**fields, **changes})


class Scheduler:
    """Runs iterations of the γ in the last decision, ``delay`` iterations late, as a real one does."""

    def __init__(self, policy: Policy, hello: Hello, seed: int = 0, acceptance: float = 0.8, delay: int = 2) -> None:
        self.policy, self.hello, self.random = policy, hello, Random(seed)
        self.acceptance, self.delay = acceptance, delay
        self.iteration, self.at_ns = 0, 1_000_000_000
        self.decisions: list[Decision] = []
        self.pending: list[tuple[int, Decision]] = []
        self.plan = policy.hello(hello)
        self.gammas: list[int] = []

    def cost_ns(self, batch_size: int, gamma: int) -> int:
        """Memory-bound up to 32 verified tokens, then compute-bound; a draft step costs a tenth of the floor."""
        verified = batch_size * (gamma + 1)
        return int(10e6 * max(1.0, verified / 32) + 1e6 * gamma)

    def count(self, batch_size: int, accepted: list[int]) -> int:
        """Tokens committed."""
        return batch_size + sum(accepted)

    def best_gamma(self, batch_size: int) -> int:
        """By expectation."""

        def loss(gamma: int) -> float:
            tokens = sum(self.acceptance**i for i in range(gamma + 1))
            return self.cost_ns(batch_size, gamma) / (batch_size * tokens)

        return min(self.hello.candidates, key=loss)

    def step(self, batch_size: int, **changes) -> Telemetry:
        while self.pending and self.pending[0][0] <= self.iteration:
            self.plan = self.pending.pop(0)[1]
        self.iteration += 1
        gamma = self.plan.gamma_for(batch_size)
        accepted = [0] * gamma
        for _ in range(batch_size):
            for position in range(gamma):
                if self.random.random() >= self.acceptance:
                    break
                accepted[position] += 1
        took = int(self.cost_ns(batch_size, gamma) * self.random.uniform(0.95, 1.05))
        self.at_ns += took
        record = Telemetry(
            self.iteration,
            self.at_ns,
            took,
            batch_size,
            gamma,
            self.count(batch_size, accepted),
            accepted=tuple(accepted),
        )._replace(**changes)
        self.gammas.append(gamma)
        decision = self.policy.telemetry(self.hello.sender, record)
        if decision is not None:
            self.decisions.append(decision)
            self.pending.append((self.iteration + self.delay, decision))
        return record
