"""What a scheduler says about itself is plain JSON, and what the metrics are made of."""

import json
from types import SimpleNamespace as Fake

import pytest
from observe import examples
from prometheus_client import CollectorRegistry

from sglang_nightjar.agent import status
from sglang_nightjar.agent.collector import Collector
from sglang_nightjar.agent.decision import fallback
from sglang_nightjar.agent.link import LinkState
from sglang_nightjar.agent.regimes import RegimeLog
from sglang_nightjar.agent.selector import GammaSelector, Launch
from sglang_nightjar.agent.steering import Steering
from sglang_nightjar.observe.rank_metrics import RankMetrics


def test_the_metrics_read_what_the_scheduler_says(monkeypatch: pytest.MonkeyPatch) -> None:
    selector, regimes = GammaSelector((0, 3), 3), RegimeLog(0)
    for gamma in (3, 0):
        regimes.note(Launch(gamma, fallback(3, "no plan yet", 0)), 1, 1)
    client = Fake(state=LinkState.UP, link=Fake(sent=1, connections=1), dropped=0, rejected=0, replayed=0)
    steering = Steering(client, selector)  # type: ignore[arg-type]
    steering.round_trips.note(3_000_000)
    example = examples.rank()
    memory = {key: example[key] for key in ("residency", "kv", "draft", "counters")}
    monkeypatch.setattr(status.draft_status, "memory", lambda *_: memory)
    agent = Fake(
        selector=selector, collector=Collector(), regimes=regimes, client=client, steering=steering,
        place=Fake(dp_rank=0), scheduler=None, draft_bytes=0, errors=0,
    )  # fmt: skip
    said = status.rank_status(agent)  # type: ignore[arg-type]
    assert json.loads(json.dumps(said)) == said
    assert example.keys() <= said.keys()
    registry = CollectorRegistry()
    RankMetrics(lambda: said, registry).update()
    trip = registry.get_sample_value("nightjar:policy_round_trip_seconds", {"rank": "0", "quantile": "0.99"})
    assert trip == pytest.approx(0.003)
    labels = {"rank": "0", "from": "3", "to": "0", "source": "fallback", "reason": "none_yet"}
    assert registry.get_sample_value("nightjar:gamma_switches_total", labels) == 1
