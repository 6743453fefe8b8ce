"""Prometheus series of the policy process, made from the answer to its control request ``status``."""

import asyncio
from typing import Any

from sglang_nightjar.core.policy import NS_PER_TOKEN
from sglang_nightjar.observe.exporter import every_few_seconds
from sglang_nightjar.observe.rank_metrics import Growth
from sglang_nightjar.observe.server_side import ServerSide
from sglang_nightjar.observe.status import PolicySide, build


def export(server: ServerSide) -> None:
    """Keep the series of ``server``'s policy process up to date from now on."""
    metrics = PolicyMetrics()

    async def update() -> None:
        side = await server.policy_side()
        metrics.update(side, build(side, [])["counters"])

    every_few_seconds(lambda: asyncio.run(update()), "policy process")


class PolicyMetrics:
    """The series that the server's HTTP process exports about its policy process; docs/metrics.md lists them."""

    def __init__(self, registry: Any = None):
        from prometheus_client import REGISTRY, Counter, Gauge

        registry = registry or REGISTRY

        def gauge(name: str, text: str, *labels: str) -> Any:
            return Gauge(f"nightjar:{name}", text, labels, registry=registry, multiprocess_mode="mostrecent")

        def counter(name: str, text: str) -> Growth:
            return Growth(Counter(f"nightjar:{name}", text, registry=registry))

        self._up = gauge("policy_up", "1 if the policy process answered within a second.")
        self._in_charge = gauge(
            "policy_in_charge", "1 for the policy in charge, 0 for earlier ones.", "policy", "version"
        )
        self._estimate = gauge(
            "estimated_seconds_per_token",
            "What the policy in charge expects a token to take, by batch-size bucket and γ.",
            *("policy", "pool", "bucket", "gamma"),
        )
        self._swaps = counter("policy_swaps", "Changes of the policy in a running policy process.")
        self._restarts = counter("policy_restarts", "How often the policy, or its process, was started again.")
        self._errors = counter("policy_errors", "Faults of policies: exceptions, wrong answers, answers too late.")
        self._seen: set[tuple[str, str]] = set()

    def update(self, side: PolicySide, counters: dict[str, Any]) -> None:
        """Bring all series up to date; ``counters`` are those of the status."""
        self._up.set(bool(side.answer))
        policy = side.answer.get("policy")
        if policy is None:
            return
        name, version = policy["name"], policy["version"]
        self._seen.add((name, version))
        for known in self._seen:
            self._in_charge.labels(*known).set(known == (name, version))
        known_ns = policy["estimates"] if policy.get("estimates_of") == NS_PER_TOKEN else {}
        for pool, buckets in known_ns.items():
            for bucket, by_gamma in buckets.items():
                for gamma, nanoseconds in by_gamma.items():
                    self._estimate.labels(name, pool, bucket, gamma).set(nanoseconds / 1e9)
        self._swaps.follow(counters["policy_swaps"])
        self._restarts.follow(counters["policy_restarts"])
        self._errors.follow(side.answer.get("counters", {}).get("policy_errors", 0))
