"""``nightjar profile`` against a server that answers by the book: what it asks, prints, and puts back."""

import json
from typing import Any

import pytest

from sglang_nightjar import cli
from sglang_nightjar.observe.client import ServerError
from sglang_nightjar.profile import cli as profile


class FakeServer:
    """Every request makes two returns, of the lag and batch size that were asked for, at 10 µs a position."""

    url, key = "http://fake", None

    def __init__(self) -> None:
        self.policies: list[dict[str, Any]] = []
        self.recent: list[list[int]] = []
        self.candidates = [0, 1, 3]
        self.stays = ""
        self.trips: list[str] = []

    def status(self) -> dict[str, Any]:
        catch_up = {
            "returns": len(self.recent), "recent": self.recent[-32:], "fixed_us": 100.0, "us_per_token": 10.0
        }  # fmt: skip
        steps = {"load": {"ms": 31.25, "busy_ms": 20.0}} if self.trips else {}
        draft = {"catch_up": catch_up, "stays": self.stays, "steps": steps}
        return {
            "policy": {"name": "nightjar", "params": {"bin_iterations": 8}, "path": None},
            "ranks": [{"candidates": self.candidates, "residency": self.residency(), "draft": draft}],
        }

    def residency(self) -> str:
        return "OFFLOADED" if self.trips and self.trips[-1] == "host" else "PARKED"

    def set_policy(self, body: dict[str, Any]) -> None:
        if wanted := body["params"].get("residency"):
            self.trips.append(wanted)
        else:
            self.policies.append(body)

    def generate(self, _client: Any, texts: list[str], tokens: int) -> None:
        lag = self.policies[-1]["params"]["iterations"][0]
        # The first return of a batch that is not complete yet does not count.
        self.recent += [[1, 5]] + [[lag * len(texts), 10 * lag * len(texts)]] * 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    made = FakeServer()
    monkeypatch.setattr(profile.Client, "at", lambda *_: made)
    monkeypatch.setattr(profile, "_generate", made.generate)
    return made


def test_it_measures_each_case_and_puts_the_policy_back(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "--lags", "4", "32", "--batches", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(row["lag"], row["positions"], row["ms"], row["returns"]) for row in said["measured"]] == [
        (4, 8, 0.08, 2),
        (32, 64, 0.64, 2),
    ]
    assert said["us_per_token"] == 10.0
    assert [body["params"]["gammas"] for body in server.policies[:-1]] == [[0, 3]] * 2
    assert server.policies[-1] == {"name": "nightjar", "params": {"bin_iterations": 8}}


def test_people_get_lines(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "--lags", "4", "--batches", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 requests,     4 tokens behind" in out and "a return costs 0.10 ms and 10.0 µs a token" in out
    assert "the draft's way out and back, ms: load 31.2" in out
    assert server.trips == ["host", "device"] * 5


def test_a_draft_that_stays_is_not_sent_away(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.stays = "memory.mode is keep"
    assert cli.main(["profile", "--lags", "4", "--batches", "1"]) == 0
    assert "never given back: memory.mode is keep" in capsys.readouterr().out
    assert server.trips == []


def test_the_policy_comes_back_when_something_fails(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise ServerError("no")

    monkeypatch.setattr(profile, "_generate", refuse)
    assert cli.main(["profile", "--lags", "4", "--batches", "1"]) == 1
    assert "nightjar: no" in capsys.readouterr().err
    assert server.policies[-1]["name"] == "nightjar"


def test_a_server_without_a_switchable_draft_is_refused(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.candidates = [0]
    assert cli.main(["profile"]) == 1
    assert "no draft that is switched on and off" in capsys.readouterr().err
