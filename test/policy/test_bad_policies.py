"""Policies that raise, lie, hang or devour memory: the process around them goes on, says so, and another can be set."""

import os
import time

import pytest
from helpers.bad_policies import DEEDS, HEAD, LATE, write
from helpers.policy_peers import Peer, PolicyProcess, alive
from helpers.waiting import eventually


@pytest.fixture
def process(tmp_path):
    started = PolicyProcess(tmp_path / "p", config="policy: {name: static, timeout: 1, memory_mb: 256}\n")
    yield started
    started.stop()


@pytest.mark.parametrize("deed, said", DEEDS.values(), ids=DEEDS)
def test_in_charge(process, agent, tmp_path, deed, said):
    file = write(tmp_path, deed)
    reply = agent.ask("policy_set", path=str(file))
    assert reply.ok, reply.error
    agent.plan(matching=lambda plan: plan.policy == "mine")
    deadline = time.monotonic() + 15
    error = ""
    while not error and time.monotonic() < deadline:
        agent.iterate(gamma=1)
        asked = time.monotonic()
        error = agent.status()["policy"]["error"]
        assert time.monotonic() - asked < 2.0
        time.sleep(0.005)
    assert said in error
    assert said in process.said()
    # With it, signs of life end too, or come from a restarted one; another policy is in charge at once.
    assert agent.ask("policy_set", name="off").ok
    assert agent.plan(matching=lambda plan: plan.policy == "off").gamma_for(1) == 0
    status = agent.status()
    assert status["policy"]["state"] == "running" and status["policy"]["error"] == ""
    assert status["counters"]["policy_errors"] >= 1
    eventually(lambda: len([pid for pid in process.children() if alive(pid)]) == 1)


def test_one_that_always_fails_is_down_and_gives_no_sign_of_life(process, agent, tmp_path):
    # The rehearsal's γ candidates tell it from the real scheduler.
    file = tmp_path / "mine.py"
    file.write_text(HEAD.format(when=LATE, deed="pass") + "    def arrivals(self, arrivals): pass\n")
    assert agent.ask("policy_set", path=str(file)).ok
    elsewhere = '"mine") if hello.server == "rehearsal" else 1 / 0'
    file.write_text(HEAD.format(when=LATE, deed="pass").replace('"mine")', elsewhere, 1))
    [worker] = [pid for pid in process.children() if alive(pid)]
    os.kill(worker, 9)
    state = eventually(lambda: (p := agent.status()["policy"])["state"] == "down" and p, within=60)
    assert "ZeroDivisionError" in state["error"]
    agent.drain()
    seen = len(agent.plans)
    for _ in range(20):
        agent.iterate(gamma=1)
        time.sleep(0.05)
    agent.drain()
    assert len(agent.plans) == seen
    # Mended, it comes back by itself.
    write(tmp_path, "pass")
    eventually(lambda: agent.status()["policy"]["state"] == "running", within=20)
    agent.plan(20)


IMPORT = "from sglang_nightjar.core.policy import Policy\n"
CANNOT_LOAD = {
    "syntax": ("def (:", "can't be imported: SyntaxError"),
    "import": ("import no_such_module", "can't be imported: ModuleNotFoundError"),
    "no class": ("x = 1", "must define one class"),
    "two classes": (f"{IMPORT}class A(Policy): name='a'\nclass B(Policy): name='b'", "not A, B"),
    "no name": (f"{IMPORT}class A(Policy): pass", "must be a text of 1 to 64"),
    "no hello": (f"{IMPORT}class A(Policy): name='a'", "NotImplementedError"),
    "exit": ("raise SystemExit(1)", "SystemExit"),
    "memory": ("x = bytearray(1 << 30)", "can't be imported: MemoryError"),
    "wrong at once": (HEAD.format(when="True", deed="return 7"), "it returned 7 instead of a Decision"),
    "estimates": (HEAD.format(when=LATE, deed="pass") + "    def estimates(self): return {'a': object()}", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("text, said", CANNOT_LOAD.values(), ids=CANNOT_LOAD)
def test_what_cannot_work_never_gets_in_charge(process, agent, tmp_path, text, said):
    file = tmp_path / "mine.py"
    file.write_text(text)
    reply = agent.ask("policy_set", path=str(file))
    assert not reply.ok
    assert said in reply.error
    assert reply.body["name"] == "static" and reply.body["state"] == "running"
    assert agent.plan().policy == "static"
    assert process.children() and agent.status()["counters"]["policy_swaps"] == 0


def test_one_that_never_loads_is_given_up(process, agent, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import time\ntime.sleep(1000)\n")
    reply = agent.ask("policy_set", path=str(file), within=60)
    assert "did not load within" in reply.error
    assert agent.plan().policy == "static"


def test_one_that_fails_on_the_recent_telemetry_never_gets_in_charge(process, agent, tmp_path):
    for _ in range(150):
        agent.iterate(gamma=1)
    reply = agent.ask("policy_set", path=str(write(tmp_path, "raise KeyError('late')")))
    assert not reply.ok
    assert "KeyError: 'late'" in reply.error
    assert agent.plan().policy == "static"


def test_a_bad_shadow_harms_nobody(tmp_path):
    write(tmp_path, "while True: pass")
    config = f"policy: {{name: static}}\nshadow: [{{path: {tmp_path}/mine.py, timeout: 0.5}}, {{name: ema}}]\n"
    process = PolicyProcess(tmp_path / "p", config=config)
    agent = Peer(process.endpoint)
    try:
        agent.hello()
        agent.plan(20)
        eventually(lambda: all(s["state"] == "running" for s in agent.status()["shadow"]))
        for _ in range(150):
            agent.iterate(gamma=1)
        bad, good = eventually(lambda: (s := agent.status()["shadow"])[0]["error"] and s)
        assert "busy for more than 0.5 s" in bad["error"]
        assert good["state"] == "running" and good["records"] >= 100
        assert agent.status()["policy"]["state"] == "running"
        agent.plan()
    finally:
        agent.close()
        process.stop()
