"""Prometheus series of one scheduler, made from its entry of ``GET /nightjar/status``; docs/metrics.md lists them.

The agent keeps plain numbers and never touches Prometheus; `exporter` reads them from a thread every few seconds.
"""

from collections.abc import Callable
from typing import Any

from sglang_nightjar.core.messages import Residency

Status = dict[str, Any]


class Growth:
    """A Prometheus counter that follows a total which somebody else counts."""

    def __init__(self, counter: Any):
        self._counter = counter
        self._seen: dict[tuple[str, ...], float] = {}

    def follow(self, total: float, *labels: str) -> None:
        """``total`` is what it has grown to. One that fell was started again, from 0."""
        before = self._seen.get(labels, 0.0)
        child = self._counter.labels(*labels) if labels else self._counter
        child.inc(total - before if total >= before else total)
        self._seen[labels] = total


class RankMetrics:
    """The series of one scheduler. Import of prometheus_client must come after PROMETHEUS_MULTIPROC_DIR is set."""

    def __init__(self, read: Callable[[], Status], registry: Any = None):
        """``read`` gives the scheduler's entry of ``ranks``; ``registry`` is Prometheus' own by default."""
        from prometheus_client import REGISTRY, Counter, Gauge

        registry = registry or REGISTRY

        def gauge(name: str, text: str, *labels: str) -> Any:
            return Gauge(f"nightjar:{name}", text, ["rank", *labels], registry=registry, multiprocess_mode="mostrecent")

        def counter(name: str, text: str, *labels: str) -> Growth:
            return Growth(Counter(f"nightjar:{name}", text, ["rank", *labels], registry=registry))

        self._read = read
        self._gamma = gauge("gamma", "Tokens drafted per request and step, in the last decode iteration.")
        self._batch = gauge("batch_size", "Requests decoded together in the last decode iteration.")
        self._steered = gauge("steered", "1 if a policy's plan decides, 0 if the fallback does.")
        self._link = gauge("link_up", "1 if the policy process is connected and shows signs of life.")
        self._round_trip = gauge(
            "policy_round_trip_seconds", "From a result until the plan made of it was read.", "quantile"
        )
        self._overhead = gauge(
            "agent_overhead_seconds", "Time of the agent on the scheduler's thread, per iteration.", "quantile"
        )
        self._capacity = gauge(
            "kv_capacity_tokens", "Tokens of the KV cache, the draft's place included while it is away."
        )
        self._draft_bytes = gauge("draft_device_bytes", "What the draft's own weights take on the device.")
        self._residency = gauge("residency", "1 for the state that the draft is in.", "state")
        self._offloads = counter("offloads", "How often the draft's memory was given back.")
        self._reloads = counter("reloads", "How often the draft came back.")
        self._moved = counter("kv_tokens_moved", "Tokens of KV that moved to make room for the draft's return.")
        self._transition_failures = counter("residency_failures", "Steps of the draft's going and coming that failed.")
        self._iterations = counter("iterations", "Decode iterations.")
        self._seconds = counter("seconds_by_gamma", "Duration of the decode iterations with this γ.", "gamma")
        self._switches = counter(
            "gamma_switches", "Changes of γ from one iteration to the next.", "from", "to", "source", "reason"
        )
        self._verified = counter(
            "verified_requests", "Requests in decode iterations, summed: the target's verifications."
        )
        self._proposed = counter("draft_tokens", "Tokens proposed by the draft.")
        self._accepted = counter("accepted_draft_tokens", "Of these, those that the target accepted.")
        self._fallbacks = counter("fallbacks", "How often a policy lost its say and the fallback took over.")
        self._errors = counter("agent_errors", "Exceptions caught in the agent.")
        self._sent = counter("link_frames_sent", "Frames handed to the link.")
        self._dropped = counter("telemetry_dropped", "Telemetry records that were never sent.")
        self._rejected = counter("frames_rejected", "Frames from the policy process that were no message for us.")

    def update(self) -> None:
        """Bring all series up to date; about a millisecond."""
        status = self._read()
        rank, link, counters = str(status["rank"]), status["link"], status["counters"]
        drafts = status["draft_tokens"]
        self._gamma.labels(rank).set(status["gamma"])
        self._batch.labels(rank).set(status["batch_size"])
        self._steered.labels(rank).set(status["source"] == "policy")
        self._link.labels(rank).set(link["state"] == "up")
        for quantile, key in (("0.5", "p50"), ("0.99", "p99")):
            if "round_trip_us" in link:
                self._round_trip.labels(rank, quantile).set(link["round_trip_us"][key] / 1e6)
            self._overhead.labels(rank, quantile).set(status["overhead_us"][key] / 1e6)
        for gamma, seconds in status["seconds_by_gamma"].items():
            self._seconds.follow(seconds, rank, gamma)
        for switch in status["switches"]:
            gammas = str(switch["from"]), str(switch["to"])
            self._switches.follow(switch["count"], rank, *gammas, switch["source"], switch["reason"])
        self._capacity.labels(rank).set(status["kv"]["capacity"])
        self._draft_bytes.labels(rank).set(status["draft"]["device_bytes"])
        for state in Residency:
            self._residency.labels(rank, state.name).set(status["residency"] == state.name)
        for growth, total in (
            (self._offloads, counters["offloads"]),
            (self._reloads, counters["reloads"]),
            (self._moved, counters.get("moved_tokens", 0)),
            (self._transition_failures, counters.get("residency_failures", 0) + counters.get("refused_growths", 0)),
            (self._iterations, status["iterations"]),
            (self._verified, drafts["verified"]),
            (self._proposed, drafts["proposed"]),
            (self._accepted, drafts["accepted"]),
            (self._fallbacks, counters["fallbacks"]),
            (self._errors, counters["errors"]),
            (self._sent, link["sent"]),
            (self._dropped, link["dropped"]),
            (self._rejected, link["rejected"] + link["replayed"]),
        ):
            growth.follow(total, rank)
