"""The agent's end of the protocol, over a real socket."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.router import Router, make_plan

from sglang_nightjar.agent.client import BACKLOG, PolicyClient
from sglang_nightjar.agent.link import Link, LinkState
from sglang_nightjar.core.messages import Ack, Arrivals, Hello, HelloWanted, Plan, Telemetry
from sglang_nightjar.core.wire import encode
from sglang_nightjar.errors import ConfigError


def hello(sender: str, seq: int) -> Hello:
    return Hello(sender, seq, "server", 0, 1, 1, "target", "draft", "cpu", (0, 1, 3), 3, 64, 1000, 1000, 0)


def record(number: int) -> Telemetry:
    return Telemetry(number, number, 1, 1, 0, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy"


@pytest.fixture
def client(path: Path) -> Iterator[PolicyClient]:
    client = PolicyClient(Link(f"ipc://{path}"), "server/dp0/x", hello, stale_after_s=0.3)
    yield client
    client.close()


def collect_until(client: PolicyClient, what, timeout_s: float = 5.0) -> list[Plan]:
    """Run the client's side of iterations until ``what()``; return the plans it found."""
    found = []
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        if (plan := client.collect()) is not None:
            found.append(plan)
        client.flush()
        time.sleep(0.001)
    return found


def test_hello_comes_first_and_frames_are_numbered(path: Path, client: PolicyClient) -> None:
    client.post(record(1))
    with Router(path) as router:
        collect_until(client, router.records)
        client.acknowledge(4, 17)
        collect_until(client, lambda: router.of(Ack))
    assert isinstance(router.received[0], Hello)
    assert [message.seq for message in router.received] == [1, 2, 3]
    assert (router.of(Ack)[0].plan_id, router.of(Ack)[0].iteration) == (4, 17)


def test_without_a_policy_process_nothing_waits_and_the_oldest_goes_first(path: Path, client: PolicyClient) -> None:
    for number in range(1, BACKLOG + 101):
        started = time.monotonic()
        client.collect()
        client.post(record(number))
        assert time.monotonic() - started < 0.1
    assert client.dropped == 100
    assert client.state is LinkState.CONNECTING
    with Router(path) as router:
        collect_until(client, lambda: len(router.records()) == BACKLOG)
    assert [found.iteration for found in router.records()] == list(range(101, BACKLOG + 101))
    assert router.received[-1].dropped == 100


def test_a_full_pipe_holds_nothing_up(path: Path, client: PolicyClient) -> None:
    """A process that is there but does not read: what happens under SIGSTOP."""
    import zmq

    context = zmq.Context()
    frozen = context.socket(zmq.ROUTER)
    frozen.rcvhwm = 1
    frozen.linger = 0
    frozen.bind(f"ipc://{path}")
    try:
        collect_until(client, lambda: client.link.connected)
        slowest = 0.0
        for number in range(1, 30_000):
            started = time.monotonic()
            client.post(record(number))
            slowest = max(slowest, time.monotonic() - started)
            if client.dropped > 1000:
                break
        assert client.dropped > 1000
        assert slowest < 0.1
    finally:
        frozen.close(0)
        context.term()


def test_the_newest_plan_counts_and_older_ones_are_replays(path: Path, client: PolicyClient) -> None:
    older, newer = make_plan(1), make_plan(3)
    with Router(path) as router:
        collect_until(client, lambda: router.of(Hello))
        router.send(encode(older), encode(newer))
        assert collect_until(client, lambda: client.life_ns and client._newest_plan == newer.plan_id)[-1] == newer
        router.send(encode(older))
        collect_until(client, lambda: client.replayed == 1)
        router.send(encode(newer))
        assert collect_until(client, lambda: client.state is LinkState.UP) is not None


def test_after_a_reconnect_the_hello_comes_again_and_ids_may_start_anew(path: Path, client: PolicyClient) -> None:
    with Router(path) as router:
        collect_until(client, lambda: router.of(Hello))
        first, second = make_plan(1), make_plan(2)
        router.send(encode(second))
        collect_until(client, lambda: client._newest_plan == second.plan_id)
    collect_until(client, lambda: client.state is LinkState.CONNECTING)
    with Router(path) as router:
        collect_until(client, lambda: router.of(Hello))
        router.send(encode(first))
        collect_until(client, lambda: client._newest_plan == first.plan_id)
    assert client.replayed == 0
    assert client.link.connections == 2


def test_silence_is_judged_by_what_the_plan_says_and_not_by_our_own_config(path: Path, client: PolicyClient) -> None:
    """The fixture's own limit is 0.3 s; a policy process that allows more also repeats its plans less often."""
    patient, hasty = make_plan(1, valid_for_ms=60_000), make_plan(1, valid_for_ms=50)
    with Router(path) as router:
        collect_until(client, lambda: router.of(Hello))
        router.send(encode(patient))
        collect_until(client, lambda: client._newest_plan == patient.plan_id)
        time.sleep(0.5)
        assert client.state is LinkState.UP
        router.send(encode(hasty))
        collect_until(client, lambda: client._newest_plan == hasty.plan_id)
        time.sleep(0.15)
        assert client.state is LinkState.STALE


def test_hello_is_repeated_on_request(path: Path, client: PolicyClient) -> None:
    with Router(path) as router:
        collect_until(client, lambda: router.of(Hello))
        router.send(encode(HelloWanted("another")))
        collect_until(client, lambda: len(router.of(Hello)) == 2)


def test_who_has_nothing_to_report_says_hello_now_and_then(
    path: Path, client: PolicyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang_nightjar.agent.client.HELLO_AGAIN_NS", 50_000_000)
    with Router(path) as router:
        started = time.monotonic()
        collect_until(client, lambda: len(router.of(Hello)) == 4)
        assert time.monotonic() - started > 0.15


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00\xff" * 50,
        encode(make_plan(1))[:-5],
        encode(make_plan(1)).replace(b'"v":1', b'"v":2'),
        b'{"v":1,"type":"plan"}',
        b"[" * 100_000,
        b"x" * 300_000,
        encode(Arrivals("s", 1, "s", 1, 1, 1, 1)),
    ],
    ids=["empty", "bytes", "truncated", "version", "keys", "deep", "oversized", "not for us"],
)
def test_rubbish_is_counted_and_dropped(path: Path, client: PolicyClient, frame: bytes) -> None:
    with Router(path) as router:
        collect_until(client, lambda: router.of(Hello))
        router.send(*[frame] * 20)
        plans = collect_until(client, lambda: client.rejected == 20)
        assert plans == []
        good = make_plan(2)
        router.send(encode(good))
        assert collect_until(client, lambda: client._newest_plan == good.plan_id) == [good]


def test_a_flood_of_rubbish_is_no_sign_of_life(path: Path, client: PolicyClient) -> None:
    with Router(path) as router:
        collect_until(client, lambda: router.of(Hello))
        collect_until(client, lambda: client.state is LinkState.STALE)
        deadline = time.monotonic() + 30
        slowest, sent = 0.0, 0
        while client.rejected < 5000:
            assert time.monotonic() < deadline
            # A router drops what its pipe does not hold.
            if client.rejected == sent:
                router.send(*[b"rubbish"] * 500)
                sent += 500
            started = time.monotonic()
            client.collect()
            slowest = max(slowest, time.monotonic() - started)
            assert client.state is LinkState.STALE
        # Bounded work in each iteration, whatever arrives.
        assert slowest < 0.1


def test_tcp_needs_keys() -> None:
    with pytest.raises(ConfigError, match="keys"):
        Link("tcp://127.0.0.1:39017")
