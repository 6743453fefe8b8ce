"""The status object: complete whatever is missing, and the same for scripts and for people."""

from observe.examples import answer, policy, rank

from sglang_nightjar.observe import render
from sglang_nightjar.observe.status import PolicySide, build

# What design fixed from the first version on.
KEYS = {"version", "sglang_version", "policy", "shadow", "ranks", "counters"}
COUNTERS = {"gamma_switches", "offloads", "reloads", "policy_swaps", "policy_restarts", "fallbacks"}


def test_all_parts_are_put_together() -> None:
    states = [{"nightjar": rank(0)}, {"nightjar": rank(1)}, {"another": "scheduler's"}]
    status = build(PolicySide("running", answer(), restarts=2, endpoint="ipc:///x"), states)
    assert status.keys() >= KEYS
    assert status["policy"] == {
        "name": "static",
        "version": "1",
        "params": {"gamma": 3},
        "path": None,
        "state": "running",
        "detail": "",
        "endpoint": "ipc:///x",
    }
    assert status["shadow"] == ["ema"]
    assert [entry["rank"] for entry in status["ranks"]] == [0, 1]
    assert status["counters"] == {
        "gamma_switches": 4,
        "offloads": 6,
        "reloads": 4,
        "fallbacks": 2,
        "policy_swaps": 4,
        "policy_restarts": 3,
        "log_dropped": 0,
    }


def test_without_a_policy_process_it_says_so_and_has_the_same_keys() -> None:
    side = PolicySide("restarting", wanted="nightjar", detail="no answer within 1 s", restarts=1)
    status = build(side, [{"nightjar": rank()}])
    assert status.keys() >= KEYS and status["counters"].keys() >= COUNTERS
    assert (status["policy"]["name"], status["policy"]["state"]) == ("nightjar", "restarting")
    assert status["policy"]["detail"] == "no answer within 1 s"
    assert len(status["ranks"]) == 1


def test_a_failing_policy_shows_its_own_state() -> None:
    body = {**answer(), "policy": policy(state="restarting", error="ZeroDivisionError: division by zero")}
    shown = build(PolicySide("running", body), [])["policy"]
    assert (shown["state"], shown["detail"]) == ("restarting", "ZeroDivisionError: division by zero")


def test_schedulers_without_an_agent_are_explained() -> None:
    status = build(PolicySide("running", wanted="off", detail="the policy is off"), [{"other": 1}])
    assert (status["ranks"], status["ranks_detail"]) == ([], "the policy is off")


def test_for_people() -> None:
    status = build(PolicySide("running", answer()), [{"nightjar": rank()}])
    text = render.status(status, "http://here")
    for part in (
        "policy    static 1 (gamma=3), running",
        "shadow    ema",
        "γ=3 at batch 2 (policy, plan 17, 1.5 s old)",
        "KV 100/16,384 tokens",
        "agent 12 µs, p99 30 µs",
        "gamma switches 2",
        "policy swaps 4",
    ):
        assert part in text
    troubled = {**answer(), "config": {"path": "/c.yaml", "error": "/c.yaml: gama: unknown"}}
    assert "config    /c.yaml: gama: unknown" in render.status(
        build(PolicySide("running", troubled), []), "http://here"
    )
    silent = build(PolicySide("running", answer()), [], "the schedulers did not answer within 5 s")
    assert "the schedulers did not answer" in render.status(silent, "http://here")
