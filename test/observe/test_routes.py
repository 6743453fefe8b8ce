"""The HTTP routes against a policy process that answers, refuses, is silent, or is not there."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from observe.examples import answer, policy, rank
from observe.fake_policy_process import FakePolicyProcess

from sglang_nightjar.core.messages import Reply
from sglang_nightjar.observe import server_side
from sglang_nightjar.observe.routes import make_router
from sglang_nightjar.observe.server_side import ServerSide
from sglang_nightjar.supervise.policy_process import PolicySetup


def obey(op: str, args: dict[str, Any]) -> Reply:
    if op == "status":
        return Reply(0, True, body=answer("static"))
    if op == "decisions":
        return Reply(0, True, body={"decisions": [{"reason": "one"}] * args["n"]})
    if op == "policy_set" and args.get("name") == "ema":
        return Reply(0, True, body=policy("ema"))
    if op == "policy_set":
        return Reply(0, False, "policy.name: 'nosuch' must be one of ema, static", policy("static"))
    raise AssertionError(op)


async def one_rank() -> list[dict[str, Any]]:
    return [{"nightjar": rank()}]


def client_of(setup: PolicySetup, admin: Any = lambda request: None, states: Any = one_rank) -> TestClient:
    app = FastAPI()
    app.include_router(make_router(ServerSide(setup, states), admin))
    return TestClient(app)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[FakePolicyProcess]:
    with FakePolicyProcess(tmp_path / "private", obey) as running:
        yield running


@pytest.fixture
def client(process: FakePolicyProcess) -> Iterator[TestClient]:
    with client_of(PolicySetup(process.endpoint, "server", "static")) as made:
        yield made


def test_status(client: TestClient) -> None:
    status = client.get("/nightjar/status").json()
    assert (status["policy"]["name"], status["policy"]["state"]) == ("static", "running")
    assert status["ranks"][0]["gamma"] == 3


def test_decisions(client: TestClient) -> None:
    assert len(client.get("/nightjar/decisions?n=3").json()["decisions"]) == 3
    assert len(client.get("/nightjar/decisions").json()["decisions"]) == 20
    for wrong in ("0", "1001", "-1", "many", ""):
        refused = client.get(f"/nightjar/decisions?n={wrong}")
        assert refused.status_code == 400
        assert f"n={wrong}: an integer from 1 to 1000" in refused.json()["error"]


def test_the_page_has_no_outside_parts(client: TestClient) -> None:
    page = client.get("/nightjar").text
    assert "<title>Nightjar" in page
    assert "http://" not in page and "https://" not in page and "src=" not in page


def test_a_policy_is_replaced(client: TestClient, process: FakePolicyProcess) -> None:
    done = client.put("/nightjar/policy", json={"name": "ema", "params": {"a": 1}})
    assert (done.status_code, done.json()["policy"]["name"]) == (200, "ema")
    assert process.asked[-1].args == {"name": "ema", "params": {"a": 1}}


def test_a_refused_policy_leaves_the_old_one_and_says_why(client: TestClient) -> None:
    refused = client.put("/nightjar/policy", json={"name": "nosuch"})
    assert refused.status_code == 400
    assert refused.json()["error"] == "policy.name: 'nosuch' must be one of ema, static"
    assert refused.json()["policy"]["name"] == "static"


def test_a_wrong_body_never_reaches_the_policy_process(client: TestClient, process: FakePolicyProcess) -> None:
    refused = client.put("/nightjar/policy", content=b'{"nmae": "ema"}')
    assert refused.status_code == 400
    assert "Unknown key 'nmae'" in refused.json()["error"]
    assert refused.json()["policy"]["name"] == "static"
    assert [request.op for request in process.asked] == ["status"]


def test_who_may_not_is_refused_before_anything_is_read(process: FakePolicyProcess) -> None:
    setup = PolicySetup(process.endpoint, "server", "static")
    client = client_of(setup, admin=lambda request: (403, "no admin key"))
    refused = client.put("/nightjar/policy", json={"name": "ema"})
    assert (refused.status_code, refused.json()) == (403, {"error": "no admin key"})
    assert process.asked == []
    assert client.get("/nightjar/status").status_code == 200


def test_without_a_policy_process_everything_still_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_side, "SWAP_TIMEOUT", 1.0)
    setup = PolicySetup(f"ipc://{tmp_path}/nobody", "server", "nightjar")
    with client_of(setup) as client:
        began = time.monotonic()
        status = client.get("/nightjar/status").json()
        assert time.monotonic() - began < 3
        assert (status["policy"]["name"], status["policy"]["state"]) == ("nightjar", "down")
        assert "no answer within 1 s" in status["policy"]["detail"]
        assert len(status["ranks"]) == 1
        silent = client.get("/nightjar/decisions")
        assert (silent.status_code, "no answer" in silent.json()["error"]) == (503, True)


def test_a_change_that_was_reported_as_failed_does_not_happen_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang_nightjar.observe.routes.SWAP_TIMEOUT", 0.5)
    directory = tmp_path / "private"
    setup = PolicySetup(f"ipc://{directory}/sock", "server", "static")
    with client_of(setup) as client:
        failed = client.put("/nightjar/policy", json={"name": "ema"})
        assert (failed.status_code, failed.json()["policy"]["state"]) == (503, "down")
        with FakePolicyProcess(directory, obey) as process:
            assert client.get("/nightjar/status").json()["policy"]["state"] == "running"
            time.sleep(1)
            assert {request.op for request in process.asked} == {"status"}


def test_a_server_that_nobody_steers(tmp_path: Path) -> None:
    with client_of(PolicySetup(None, "server", "off", "the policy is off")) as client:
        policy_part = client.get("/nightjar/status").json()["policy"]
        assert (policy_part["name"], policy_part["state"], policy_part["detail"]) == (
            "off",
            "running",
            "the policy is off",
        )
        refused = client.put("/nightjar/policy", json={"name": "ema"})
        assert refused.status_code == 409
        assert "the policy is off. Start it with another --nightjar-policy" in refused.json()["error"]
        assert client.get("/nightjar/decisions").status_code == 409


def test_a_scheduler_in_a_long_step_is_asked_once(process: FakePolicyProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_side, "SCHEDULER_TIMEOUT", 0.2)
    asked = 0

    async def slow() -> list[dict[str, Any]]:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.sleep(1)
        return [{"nightjar": rank()}]

    with client_of(PolicySetup(process.endpoint, "server", "static"), states=slow) as client:
        status = client.get("/nightjar/status").json()
        assert (status["ranks"], status["ranks_detail"]) == ([], "the schedulers did not answer within 0.2 s")
        client.get("/nightjar/status")
        assert asked == 1
        time.sleep(1)
        assert len(client.get("/nightjar/status").json()["ranks"]) == 1
