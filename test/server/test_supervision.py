"""The policy process beside a server: started if it is needed, shared, never orphaned."""

import os
import signal
from pathlib import Path

import pytest
from helpers.processes import is_steered, policy_processes
from helpers.serving import Server, alive, run_launcher
from helpers.waiting import eventually

pytestmark = pytest.mark.server


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "nightjar.yaml"
    file.write_text("policy: {name: static, params: {gamma: 2}}\n")
    return file


def test_off_needs_no_policy_process(server: Server) -> None:
    assert policy_processes(server) == []
    policy = server.get("/nightjar/status")["policy"]
    assert (policy["name"], policy["state"]) == ("off", "running")
    assert "the policy is off" in policy["detail"]
    assert "no policy process is started" in server.log.read_text()


def test_two_servers_on_one_policy_process(eagle_flags: list[str], config_file: Path, tmp_path: Path) -> None:
    """It comes back to both when it was killed, and it ends with the server that started it, however that ends."""
    with (
        Server([*eagle_flags, "--nightjar-config", str(config_file)], tmp_path / "first") as first,
        Server(
            [*eagle_flags, "--nightjar-policy-endpoint", first.get("/nightjar/status")["policy"]["endpoint"]],
            tmp_path / "second",
        ) as second,
    ):
        assert policy_processes(second) == []
        for server in (first, second):
            server.generate("Once upon a time", max_new_tokens=32, ignore_eos=True)
            eventually(lambda server=server: is_steered(server), 30)
            assert server.get("/nightjar/status")["ranks"][0]["gamma"] == 2
        policy_processes(first)[0].kill()
        for server in (first, second):
            eventually(lambda server=server: is_steered(server), 30)

        # The worker of the policy, too.
        processes = [process.pid for process in policy_processes(first)]
        assert len(processes) >= 2
        os.kill(first.process.pid, signal.SIGKILL)
        eventually(lambda: not any(map(alive, processes)), 5)
        first.kill()
        eventually(lambda: second.ranks()[0]["source"] == "fallback", 10)
        assert second.generate("Once upon a time", max_new_tokens=32, ignore_eos=True)["text"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("polcy: {name: static}", ["polcy", "policy, shadow, gamma, memory, link, log"]),
        ("policy: {name: static, params: {gamma: lots}}", ["gamma", "lots"]),
        ("policy: {name: static, par", ["no YAML"]),
        ("policy: {name: nosuch}", ["nosuch", "nightjar", "static"]),
        (None, ["there is no such file"]),
    ],
)
def test_a_config_that_can_not_work_is_refused_at_the_start(tmp_path: Path, text: str | None, said: list[str]) -> None:
    file = tmp_path / "nightjar.yaml"
    if text is not None:
        file.write_text(text)
    done = run_launcher("--nightjar-config", str(file))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("python -m sglang_nightjar.launch_server: error: ")
    assert [part for part in said if part not in last] == [], last
    assert "Traceback" not in done.stderr


def test_a_policy_where_nothing_can_be_chosen_is_refused(plain_flags: list[str]) -> None:
    done = run_launcher(*plain_flags, "--nightjar-policy", "static")
    assert done.returncode == 2
    assert "this server does not speculate, so there is nothing to choose" in done.stderr
