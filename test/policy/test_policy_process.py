"""A real policy process: plans, signs of life, restarts, strangers, garbage."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq
from helpers.policy_peers import Peer, PolicyProcess, alive, bad_frames
from helpers.waiting import eventually

from sglang_nightjar.core.messages import Ack, Arrivals, Plan
from sglang_nightjar.core.wire import encode
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy.endpoint import connect, make_keys


@pytest.fixture
def process(tmp_path):
    started = PolicyProcess(tmp_path / "p", "--policy", "static", "--log", str(tmp_path / "log"))
    yield started
    started.stop()


@pytest.fixture
def agent(process):
    peer = Peer(process.endpoint)
    yield peer
    peer.close()


def test_hello_is_answered_with_a_plan_and_the_ack_is_seen(process, agent):
    agent.hello()
    plan = agent.plan()
    assert plan.gamma_for(7) == 5
    assert plan.policy == "static"
    agent.send(Ack(agent.sender, agent.next_seq(), plan.plan_id, 17))
    agent.send(Arrivals(agent.sender, agent.next_seq(), "s", 1, 1, 3, 300))
    [shown] = agent.status()["agents"]
    assert (shown["applied_plan_id"], shown["plan_id"]) == (plan.plan_id, plan.plan_id)
    agent.send(Ack(agent.sender, agent.next_seq(), plan.plan_id, 0, "γ 5 has no graph"))
    assert agent.status()["agents"][0]["refused"] == "γ 5 has no graph"


def test_the_plan_is_repeated_under_its_id_and_echoes_the_record(process, agent):
    agent.hello()
    first = agent.plan()
    idle = agent.plan()
    assert idle.plan_id == first.plan_id
    sent = set()
    deadline = time.monotonic() + 10
    while agent.plans[-1].echo_ns == 0 and time.monotonic() < deadline:
        sent.add(agent.iterate().at_ns)
        agent.receive(0.02)
    assert agent.plans[-1].echo_ns in sent
    assert {plan.plan_id for plan in agent.plans} == {first.plan_id}


def test_a_frozen_policy_gives_no_sign_of_life(process, agent):
    """Not even on behalf of the process around it, which goes on answering."""
    agent.hello()
    agent.plan()
    [worker] = process.children()
    os.kill(worker, signal.SIGSTOP)
    try:
        for _ in range(20):
            agent.iterate()
        time.sleep(0.6)
        agent.drain()
        seen = len(agent.plans)
        time.sleep(1.0)
        assert agent.status()["policy"]["name"] == "static"
        agent.drain()
        assert len(agent.plans) == seen
    finally:
        os.kill(worker, signal.SIGCONT)
    agent.plan(10)


def test_killed_and_started_again(process, agent):
    agent.hello()
    before = agent.plan()
    workers = process.children()
    process.signal(signal.SIGKILL)
    process.process.wait()
    eventually(lambda: not any(alive(pid) for pid in workers))
    process.start()
    started = time.monotonic()
    while not agent.greetings:
        assert time.monotonic() - started < 20
        agent.receive(0.05)
        if agent.socket.poll(0, zmq.POLLOUT):
            agent.iterate()
    agent.hello()
    after = agent.plan()
    assert after.plan_id > before.plan_id
    assert agent.status()["agents"][0]["sender"] == agent.sender


def test_stops_at_once_and_leaves_nothing(process, agent):
    agent.hello()
    agent.plan()
    workers = process.children()
    began = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - began < 3
    assert not any(alive(pid) for pid in workers)
    assert not Path(process.endpoint.removeprefix("ipc://")).exists()


def test_two_servers_share_an_endpoint(process):
    one, two = Peer(process.endpoint, candidates=(0, 2)), Peer(process.endpoint, candidates=(0, 7))
    for peer in (one, two):
        peer.hello()
    assert (one.plan().gamma_for(1), two.plan().gamma_for(1)) == (2, 7)
    assert len(one.status()["agents"]) == 2
    one.close()
    assert two.plan().gamma_for(1) == 7
    two.close()


def test_a_second_policy_process_is_refused(process, agent, tmp_path):
    agent.hello()
    agent.plan()
    second = subprocess.run(process.command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert "another policy process serves" in second.stderr
    agent.plan()


def test_the_deleted_path_comes_back(process, agent):
    agent.hello()
    agent.plan()
    path = Path(process.endpoint.removeprefix("ipc://"))
    path.unlink()
    eventually(path.exists)
    newcomer = Peer(process.endpoint)
    newcomer.hello()
    newcomer.plan()
    newcomer.close()
    eventually(lambda: agent.socket.poll(0, zmq.POLLOUT))
    agent.iterate()
    agent.plan(10)


def test_ten_thousand_bad_frames(process, agent):
    agent.hello()
    agent.plan()
    stranger = Peer(process.endpoint)
    bad = bad_frames(agent.sender, 10_000)
    for index, (_, frame) in enumerate(bad):
        stranger.send(frame, within=30)
        if index % 500 == 0:
            agent.iterate()
    kinds = ("malformed", "oversized", "version", "replayed")
    counters = eventually(lambda: sum((c := agent.status()["counters"])[kind] for kind in kinds) >= 10_000 and c, 60)
    for kind in kinds:
        assert counters[kind] == sum(found == kind for found, _ in bad)
    agent.plan()
    assert agent.status()["agents"][0]["records"] == agent.iteration
    assert agent.status()["agents"][0]["rejected"] == 2000
    # At most one line a minute for each kind.
    assert process.said().count("A frame was dropped") <= 8
    stranger.close()


def test_multipart_and_plans_from_outside_are_dropped(process, agent):
    agent.hello()
    plan = agent.plan()
    agent.socket.send_multipart([b"a", b"b", b"c"])
    agent.send(encode(Plan(plan.plan_id + 9, "evil", "1", ((1, None, 64),), "device", "", 1000)))
    agent.send(b"")
    assert agent.status()["counters"]["malformed"] == 3
    assert agent.plan().gamma_for(1) == 5


def test_a_replayed_frame_does_not_move_the_route(process, agent):
    """Whoever records an agent's frames and sends them again must not get its plans."""
    agent.hello()
    agent.plan()
    hello = agent.hello_fields
    thief = Peer(process.endpoint, **hello)
    thief.sender = agent.sender
    thief.hello()
    time.sleep(0.6)
    thief.drain()
    assert not thief.plans
    agent.plan()
    thief.close()


def test_control_requests_are_checked(process, agent):
    eventually(lambda: agent.ask("policy_get").body["state"] == "running")
    listed = [p["name"] for p in agent.ask("policy_list").body["policies"]]
    assert listed == sorted(listed) and {"ema", "nightjar", "off", "static", "table"} <= set(listed)
    for op, args, said in (
        ("stauts", {}, "op: 'stauts' must be one of"),
        ("status", {"x": 1}, "status takes none"),
        ("decisions", {"n": 0}, "decisions.n: 0 must be an integer from 1 to 1000"),
        ("policy_set", {}, "exactly one of name and path"),
        ("policy_set", {"path": "relative.py"}, "must be absolute"),
        ("policy_set", {"path": "/no/such.py"}, "must be a Python file"),
        ("policy_set", {"name": "static", "params": {"gama": 1}}, "policy.params.gama: there is no such setting"),
        ("policy_set", {"name": "static", "params": {"gamma": 65}}, "policy.params.gamma: 65 must be an integer"),
    ):
        reply = agent.ask(op, **args)
        assert not reply.ok and said in reply.error
        if op == "policy_set":
            assert reply.body["name"] == "static" and reply.body["state"] == "running"


def test_decisions_are_listed(process, agent):
    agent.hello()
    agent.plan()
    assert agent.ask("policy_set", name="off").ok
    agent.plan(matching=lambda plan: plan.policy == "off")
    last, only = agent.ask("decisions").body["decisions"][-2:]
    assert (last["policy"], only["policy"]) == ("static", "off")
    assert only["gammas"] == [[1, None, 0]]
    assert only["sender"] == agent.sender


class TestEndpoints:
    def run(self, *flags):
        command = [sys.executable, "-m", "sglang_nightjar.policy", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def test_tcp_needs_keys_at_both_ends(self):
        refused = self.run("--endpoint", "tcp://127.0.0.1:5999")
        assert refused.returncode == 2
        assert "needs link.keys" in refused.stderr
        with pytest.raises(ConfigError, match=r"needs link\.keys"):
            connect(zmq.Context.instance(), "tcp://127.0.0.1:5999")

    def test_tcp_with_right_and_wrong_keys(self, tmp_path):
        with zmq.Context.instance().socket(zmq.ROUTER) as probe:
            port = probe.bind_to_random_port("tcp://127.0.0.1")
        ours, others = tmp_path / "ours", tmp_path / "others"
        make_keys(ours)
        make_keys(others)
        # A wrong client key, and the right server key.
        (others / "server.key").write_bytes((ours / "server.key").read_bytes())
        endpoint = f"tcp://127.0.0.1:{port}"
        process = PolicyProcess(tmp_path / "p", "--keys", str(ours), "--policy", "static", endpoint=endpoint)
        try:
            friend = Peer(endpoint, keys=ours)
            friend.hello()
            friend.plan(10)
            stranger = connect(zmq.Context.instance(), endpoint, others)
            assert not stranger.poll(1500, zmq.POLLOUT)
            plain = zmq.Context.instance().socket(zmq.DEALER)
            plain.linger, plain.immediate = 0, True
            plain.connect(endpoint)
            assert not plain.poll(500, zmq.POLLOUT)
            assert len(friend.status()["agents"]) == 1
            for socket in (stranger, plain, friend):
                socket.close()
        finally:
            process.stop()

    def test_keys(self, tmp_path):
        made = make_keys(tmp_path / "k")
        assert {path.stat().st_mode & 0o777 for path in made if path.suffix == ".key_secret"} == {0o600}
        with pytest.raises(ConfigError, match="there already"):
            make_keys(tmp_path / "k")
        (tmp_path / "k" / "client.key_secret").chmod(0o644)
        with pytest.raises(ConfigError, match="others can read"):
            connect(zmq.Context.instance(), "tcp://127.0.0.1:1", tmp_path / "k")
        with pytest.raises(ConfigError, match="No such file"):
            connect(zmq.Context.instance(), "tcp://127.0.0.1:1", tmp_path / "none")

    @pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
    def test_a_directory_that_others_can_write_to_is_refused(self, tmp_path, mode):
        open_to_all = tmp_path / "open"
        open_to_all.mkdir()
        open_to_all.chmod(mode)
        refused = self.run("--endpoint", f"ipc://{open_to_all}/policy")
        assert refused.returncode == 2
        assert "others can write" in refused.stderr

    def test_the_directory_is_made_private(self, tmp_path):
        directory = tmp_path / "new"
        process = PolicyProcess(tmp_path, endpoint=f"ipc://{directory}/policy")
        try:
            eventually((directory / "policy").exists)
            assert directory.stat().st_mode & 0o777 == 0o700
        finally:
            process.stop()

    @pytest.mark.parametrize(
        "endpoint, said",
        [("ipc://relative", "absolute path"), ("udp://x", "must be ipc:"), ("", "must be ipc:"),
         ("ipc:///" + "x" * 120, "absolute")],
    )  # fmt: skip
    def test_wrong_endpoints(self, endpoint, said):
        with pytest.raises(ConfigError, match=said):
            connect(zmq.Context.instance(), endpoint)


def test_it_is_light():
    code = "import sglang_nightjar.policy.server, sglang_nightjar.policy.worker, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "sglang", "numpy", "transformers"} & set(loaded)


def test_a_full_disk_does_not_stop_it(tmp_path):
    process = PolicyProcess(tmp_path / "p", "--policy", "static", "--log", "/dev/full")
    agent = Peer(process.endpoint)
    try:
        agent.hello()
        agent.plan()
        for _ in range(50):
            agent.iterate()
        status = eventually(lambda: (s := agent.status())["counters"]["log_dropped"] >= 50 and s)
        assert status["log"]["error"] == "No space left on device"
        assert process.said().count("lines are lost") == 1
        agent.plan()
    finally:
        agent.close()
        process.stop()


def test_a_pause_of_the_whole_machine_is_not_blamed_on_the_policy(tmp_path):
    process = PolicyProcess(tmp_path / "p", config="policy: {name: static, timeout: 0.5}\n")
    agent = Peer(process.endpoint)
    try:
        agent.hello()
        agent.plan(20)
        stopped = [*process.children(), process.process.pid]
        for _ in range(20):
            agent.iterate()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        for _ in range(20):
            agent.iterate()
        time.sleep(1.5)
        # The policy process first: it must not judge before its worker had a chance.
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)
        agent.plan(10)
        status = eventually(lambda: (s := agent.status())["policy"]["records"] == 40 and s)
        assert status["counters"]["policy_errors"] == 0
    finally:
        agent.close()
        process.stop()
