"""A scheduler that is gone: its telemetry warms no policy up any more."""

import time
from typing import Any

import orjson
import pytest
import zmq
from helpers.policy_load import make_hello

from sglang_nightjar.core.messages import Arrivals, Telemetry, TelemetryBatch
from sglang_nightjar.core.wire import encode
from sglang_nightjar.policy import server as server_module
from sglang_nightjar.policy.config_file import parse
from sglang_nightjar.policy.server import Server


class NewHost:
    """A worker that was just started, and gets what warms it up."""

    def __init__(self) -> None:
        self.senders: list[str] = []

    def offer(self, frame: bytes, *_: Any) -> None:
        self.senders.append(orjson.loads(frame)["sender"])


@pytest.fixture
def server(tmp_path):
    (tmp_path / "p").mkdir(mode=0o700)
    made = Server(zmq.Context.instance(), parse("policy: {name: static}"), f"ipc://{tmp_path}/p/policy")
    yield made
    made.close()


def test_what_is_learnt_is_saved_by_the_minute(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(server.charge, "save", lambda: asked.append(1.0))
    began = time.monotonic()
    for second in range(0, 150, 5):
        server._tick(began + second)
    assert len(asked) == 2


def test_a_new_policy_hears_of_known_schedulers_only(server: Server) -> None:
    """docs/policies.md's example looks its senders up: the record of one that was never introduced is a KeyError."""

    def speak(sender: str, now: float) -> None:
        server._take(b"r", encode(make_hello(sender)), 1, now, 0)
        server._take(b"r", encode(TelemetryBatch(sender, 2, (Telemetry(1, 1, 1, 1, 0, 1),))), 1, now, 0)

    began = time.monotonic()
    speak("s/dp0/old", began)
    server._take(b"r", encode(Arrivals("s/tokenizer0/old", 1, "s", 1, 1, 1, 1)), 1, began, 0)
    speak("s/dp0/young", began + server_module._FORGET_AFTER)
    server._slow_tick(began + server_module._FORGET_AFTER + 1)
    new = NewHost()
    server._warm(new, True)  # type: ignore[arg-type]
    assert new.senders == ["s/dp0/young"] * 2
