"""The policy process ends, hangs or loses its socket: it is back by itself, and no request notices."""

from collections.abc import Iterator

import pytest
from helpers.processes import is_steered, policy_processes, sockets_folder
from helpers.serving import Server
from helpers.waiting import eventually

pytestmark = pytest.mark.server


def text(server: Server) -> str:
    return server.generate("Once upon a time", max_new_tokens=48, ignore_eos=True)["text"]


@pytest.fixture(autouse=True)
def same_text(steered: Server) -> Iterator[str]:
    eventually(lambda: is_steered(steered), 30)
    before = text(steered)
    yield before
    eventually(lambda: is_steered(steered), 30)
    assert text(steered) == before


def test_killed(steered: Server, same_text: str) -> None:
    before = steered.get("/nightjar/status")["counters"]
    for kill in (1, 2):
        policy_processes(steered)[0].kill()
        assert text(steered) == same_text
        eventually(lambda: is_steered(steered), 30)
        after = steered.get("/nightjar/status")["counters"]
        assert after["policy_restarts"] >= before["policy_restarts"] + kill
        assert after["fallbacks"] >= before["fallbacks"] + kill
    assert "policy process ended (killed by SIGKILL)" in steered.log.read_text()


def test_frozen(steered: Server, same_text: str) -> None:
    frozen = policy_processes(steered)[0]
    frozen.suspend()
    try:
        eventually(lambda: steered.get("/nightjar/status")["policy"]["state"] == "restarting", 30)
        status = steered.get("/nightjar/status")
        assert "static" in status["policy"]["name"] and "no answer" in status["policy"]["detail"]
        assert status["ranks"][0]["gamma"] >= 0
        assert text(steered) == same_text
    finally:
        frozen.resume()


def test_killed_without_a_path_to_its_socket(steered: Server) -> None:
    """The folder's path is all that new connections have; nobody else can look into it."""
    folder, restarts = sockets_folder(steered), steered.get("/nightjar/status")["counters"]["policy_restarts"]
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "policy.sock").unlink()
    policy_processes(steered)[0].kill()
    eventually(lambda: steered.get("/nightjar/status")["counters"]["policy_restarts"] > restarts, 10)
