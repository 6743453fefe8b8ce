"""Nightjar's HTTP routes and series on a running server."""

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import Server
from helpers.waiting import eventually

from sglang_nightjar import cli

pytestmark = pytest.mark.server

BROKEN_POLICY = """
from sglang_nightjar.core.policy import Policy
class Broken(Policy):
    name = "broken"
    def __init__(self, params, seed):
        raise RuntimeError("not today")
"""


def test_status_has_everything_that_scripts_rely_on(steered: Server) -> None:
    status = steered.get("/nightjar/status")
    params = {"gamma": 2, "trim": False}
    assert status["policy"].items() >= {"name": "static", "params": params, "state": "running"}.items()
    assert status["shadow"] == ["ema"]
    [rank] = status["ranks"]
    assert (rank["rank"], rank["gamma"], rank["source"], rank["residency"]) == (0, 2, "policy", "RESIDENT")
    assert rank["plan_id"] > 0 and rank["plan_age_s"] >= 0
    assert rank["kv"]["capacity"] == rank["kv"]["base"] + rank["kv"]["extra"] > 0
    assert rank["draft"]["device_bytes"] > 0
    assert rank["link"]["state"] == "up" and rank["link"]["sent"] > 0
    assert rank["overhead_us"]["p99"] >= rank["overhead_us"]["p50"] > 0
    assert status["counters"].keys() == {
        *("gamma_switches", "offloads", "reloads", "policy_swaps", "policy_restarts", "fallbacks", "log_dropped")
    }


def test_the_users_key_is_wanted(steered: Server) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(steered.url + "/nightjar/status", timeout=10)


def test_a_change_of_policy_changes_gamma_and_is_counted(steered: Server) -> None:
    swaps = steered.get("/nightjar/status")["counters"]["policy_swaps"]
    code, answer = steered.put_policy({"name": "static", "params": {"gamma": 4}})
    assert (code, answer["policy"]["params"]) == (200, {"gamma": 4, "trim": False})
    steered.generate("Once upon a time", max_new_tokens=32, ignore_eos=True)
    status = steered.get("/nightjar/status")
    assert (status["ranks"][0]["gamma"], status["counters"]["policy_swaps"]) == (4, swaps + 1)
    decisions = steered.get("/nightjar/decisions?n=1000")["decisions"]
    assert any(decision["gammas"] == [[1, None, 4]] and not decision["shadow"] for decision in decisions)
    assert steered.put_policy({"name": "static", "params": {"gamma": 2}})[0] == 200


@pytest.mark.parametrize("whose", ["nobody", "wrong", "user"])
def test_without_the_admin_key_nothing_changes(steered: Server, whose: str) -> None:
    key = {"nobody": None, "wrong": "wrong", "user": steered.key}[whose]
    code, answer = steered.put_policy({"name": "static", "params": {"gamma": 5}}, key)
    assert code == 401 and answer["error"]
    assert steered.get("/nightjar/status")["policy"]["params"]["gamma"] == 2


@pytest.mark.parametrize(
    "body, said",
    [
        ({"name": "nosuch"}, "'nosuch' must be one of"),
        ({"name": "static", "params": {"gama": 1}}, "gama"),
        ({"name": "static", "params": {"gamma": "many"}}, "many"),
        ({"path": "/no/such/policy.py"}, "/no/such/policy.py"),
        ({"nmae": "static"}, "allowed are name, path, params"),
        (b'{"name": "sta', "not JSON"),
        (None, "must be a JSON object"),
    ],
)
def test_what_can_not_work_leaves_the_old_policy(steered: Server, body: Any, said: str) -> None:
    code, answer = steered.put_policy(body)
    assert code == 400 and said in answer["error"]
    assert (answer["policy"]["name"], answer["policy"]["params"]) == ("static", {"gamma": 2, "trim": False})
    assert steered.get("/nightjar/status")["policy"]["state"] == "running"


def test_a_policy_that_can_not_be_made_leaves_the_old_one(steered: Server, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_POLICY)
    code, answer = steered.put_policy({"path": str(tmp_path / "broken.py")})
    assert code == 400 and "not today" in answer["error"]
    assert (answer["policy"]["name"], answer["policy"]["state"]) == ("static", "running")


def test_the_commands(steered: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--url", steered.url, "--key", steered.key]) == 0
    assert "policy    static 1 (gamma=2, trim=False), running" in capsys.readouterr().out
    arguments = ["policy", "set", "static", "--param", "gamma=3", "--url", steered.url, "--key"]
    assert cli.main([*arguments, steered.key]) == 1
    assert "key" in capsys.readouterr().err
    assert cli.main([*arguments, steered.admin_key]) == 0
    assert "now in charge: static 1 (gamma=3, trim=False)" in capsys.readouterr().out
    assert (
        cli.main(["policy", "set", "static", "--param", "gamma=2", "--url", steered.url, "--key", steered.admin_key])
        == 0
    )


def test_series(steered: Server) -> None:
    steered.generate("Once upon a time", max_new_tokens=32, ignore_eos=True)

    def metrics() -> dict[str, float]:
        with urllib.request.urlopen(steered.url + "/metrics", timeout=30) as response:
            lines = [line for line in response.read().decode().splitlines() if line.startswith("nightjar:")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    def value(name: str, **labels: str) -> float | None:
        wanted = {f'{key}="{text}"' for key, text in labels.items()}
        found = [v for line, v in metrics().items() if line.partition("{")[0] == f"nightjar:{name}" and
                 all(label in line for label in wanted)]  # fmt: skip
        return found[0] if found else None

    def totals() -> dict[str, int]:
        return steered.get("/nightjar/status")["ranks"][0]["draft_tokens"]

    # The agent may take up the last iteration after the answer has gone.
    eventually(lambda: value("verified_requests_total") == totals()["verified"] > 0)
    assert value("accepted_draft_tokens_total", rank="0") == totals()["accepted"]
    assert value("gamma", rank="0") == 2
    assert value("seconds_by_gamma_total", gamma="2")
    assert value("link_up") == 1
    assert value("policy_in_charge", policy="static") == 1
    assert value("policy_up") == 1
    agent = value("agent_overhead_seconds", quantile="0.99")
    assert agent is not None and 0 < agent < 0.01


def test_the_page_is_served(steered: Server) -> None:
    request = urllib.request.Request(steered.url + "/nightjar", headers={"Authorization": f"Bearer {steered.key}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/html")
        assert b"Requests decoded together" in response.read()
