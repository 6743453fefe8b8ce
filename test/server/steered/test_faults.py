"""Faults on a running server under load: of its policy, its config, its log, its socket and its neighbours.

One load goes on all the time. Whatever happens, no request fails, every answer is the target's own greedy text, and the
config's policy can be put in charge again. (kill -9, SIGSTOP and deleted sockets: test_restarts.py and
../test_control_loop.py, which also has bad frames on the scheduler's socket.)
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_policies import DEEDS, write
from helpers.load import Load
from helpers.lossless import Referee
from helpers.policy_peers import Peer, bad_frames
from helpers.processes import is_steered
from helpers.serving import Server
from helpers.waiting import eventually

pytestmark = pytest.mark.server

CLIENTS = 3
STATIC = {"name": "static", "params": {"gamma": 2, "trim": False}}


@pytest.fixture(scope="module")
def load(steered: Server, referee: Referee) -> Iterator[Load]:
    with Load(steered, referee.prompts()[:4], clients=CLIENTS, new_tokens=24) as going:
        yield going
    going.check(referee)


@pytest.fixture(autouse=True)
def unharmed(steered: Server, load: Load, referee: Referee, config_file: Path) -> Iterator[None]:
    """Around each deed: afterwards the config and its policy are back, and every request was served well."""
    eventually(lambda: is_steered(steered), 30)
    before, config = status(steered), config_file.read_text()
    yield
    if not config_file.exists() or config_file.read_text() != config:
        config_file.write_text(config)
    eventually(lambda: status(steered)["config"]["error"] == status(steered)["log"]["error"] == "", 20)
    if not in_charge(steered).items() >= STATIC.items():
        code, answer = steered.put_policy(STATIC)
        assert code == 200, answer
    eventually(lambda: is_steered(steered), 30)
    answered = len(load.answers)
    eventually(lambda: load.errors or len(load.answers) >= answered + 2 * CLIENTS, 120)
    load.check(referee)
    after = status(steered)
    assert after["policy"].items() >= {**STATIC, "state": "running"}.items()
    [rank] = after["ranks"]
    assert (rank["gamma"], rank["source"], rank["residency"], rank["link"]["state"]) == (2, "policy", "RESIDENT", "up")
    assert rank["counters"]["errors"] == rank["counters"]["residency_failures"] == 0
    assert rank["iterations"] > before["ranks"][0]["iterations"]


def status(server: Server) -> dict[str, Any]:
    return server.get("/nightjar/status")


def in_charge(server: Server) -> dict[str, Any]:
    return status(server)["policy"]


@pytest.mark.parametrize("kind", ["raises", "returns a text", "sleeps", "allocates"])
def test_a_policy_that(kind: str, steered: Server, tmp_path: Path) -> None:
    """It turns bad in charge, and does so again whenever it is started again."""
    deed, said = DEEDS[kind]
    trigger = tmp_path / "now"
    file = write(tmp_path, deed, when=f"os.path.exists({str(trigger)!r})")
    code, answer = steered.put_policy({"path": str(file)})
    assert code == 200, answer
    eventually(lambda: status(steered)["ranks"][0]["gamma"] == 5, 20)
    trigger.touch()
    eventually(lambda: said in in_charge(steered)["detail"], 30)


def test_twenty_swaps_in_a_row(steered: Server) -> None:
    before = status(steered)["counters"]["policy_swaps"]
    bodies = [{"name": "ema"}, {"name": "static", "params": {"gamma": 5}}, {"name": "off"}, {"name": "nightjar"}]
    for body in itertools.islice(itertools.cycle(bodies), 20):
        code, answer = steered.put_policy(body)
        assert (code, answer["policy"]["name"]) == (200, body["name"])
    assert status(steered)["counters"]["policy_swaps"] == before + 20


SAVES = {
    "half-written": ("policy: {name: static, par", "no YAML"),
    "unknown key": ("polcy: {name: static}\n", "polcy"),
    "wrong type": ("policy: {name: static}\nlink: {stale_after: soon}\n", "soon"),
    "wrong parameter": ("policy: {name: static, params: {gamma: lots}}\n", "lots"),
    "removed": (None, "No such file"),
}


@pytest.mark.parametrize("text, said", SAVES.values(), ids=SAVES)
def test_a_config_that_can_not_work(steered: Server, config_file: Path, text: str | None, said: str) -> None:
    if text is None:
        config_file.unlink()
    else:
        config_file.write_text(text)
    eventually(lambda: said in status(steered)["config"]["error"], 20)
    assert in_charge(steered).items() >= {**STATIC, "state": "running"}.items()


def test_no_space_left_for_the_log(steered: Server, config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + "log: {path: /dev/full}\n")
    error = eventually(lambda: status(steered)["log"].get("error"), 20)
    assert "No space left" in error
    assert status(steered)["config"]["error"] == ""


@pytest.mark.parametrize("whose", ["nobody", "wrong", "user"])
def test_a_change_of_policy_with_a_key_of(whose: str, steered: Server) -> None:
    key = {"nobody": None, "wrong": "wrong", "user": steered.key}[whose]
    assert steered.put_policy({"name": "off"}, key)[0] == 401
    assert in_charge(steered).items() >= STATIC.items()


@pytest.fixture
def stranger(steered: Server) -> Iterator[Peer]:
    """Somebody else on the policy process' socket, with γ that our scheduler does not run."""
    peer = Peer(in_charge(steered)["endpoint"], candidates=(0, 7))
    yield peer
    peer.close()


def test_ten_thousand_bad_frames(stranger: Peer) -> None:
    """In the name of the scheduler, so that replays look like its own frames."""
    before = stranger.status()
    [ours] = before["agents"]
    bad = bad_frames(ours["sender"], 10_000)
    for _, frame in bad:
        stranger.send(frame, within=30)
    kinds = ("malformed", "oversized", "version", "replayed")

    def counted() -> dict[str, int]:
        return {kind: stranger.status()["counters"][kind] - before["counters"][kind] for kind in kinds}

    eventually(lambda: sum(counted().values()) >= len(bad), 60)
    assert counted() == {kind: sum(kind == its for its, _ in bad) for kind in kinds}
    [ours] = stranger.status()["agents"]
    assert ours["rejected"] - before["agents"][0]["rejected"] == 2000
    assert ours["records"] > before["agents"][0]["records"]


def test_another_scheduler_on_the_socket(steered: Server, stranger: Peer) -> None:
    stranger.hello()
    assert stranger.plan(20).gamma_for(1) in (0, 7)
    for _ in range(300):
        stranger.iterate(batch_size=64, gamma=7, iteration_ns=1)
    assert sorted(agent["candidates"] for agent in stranger.status()["agents"])[0] == [0, 1, 2, 3, 4, 5]
    assert len(stranger.status()["agents"]) == 2 and len(status(steered)["ranks"]) == 1
