"""The policy process beside a running server: started, restarted, never orphaned, and never needed by a request."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.serving import Server, alive, clean_environment, run_launcher

pytestmark = pytest.mark.server

STATIC = "policy: {name: static, params: {gamma: 2}}\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "nightjar.yaml"
    file.write_text(STATIC)
    return file


def policy_processes(server: Server) -> list[psutil.Process]:
    """The policy process and its workers."""
    found = [
        child
        for child in psutil.Process(server.process.pid).children()
        if any("sglang_nightjar.policy" in word for word in child.cmdline())
    ]
    return [*found, *(grandchild for child in found for grandchild in child.children(recursive=True))]


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def is_steered(server: Server) -> bool:
    status = server.get("/nightjar/status")
    return status["policy"]["state"] == "running" and status["ranks"][0]["source"] == "policy"


def sockets_folder(server: Server) -> Path:
    return Path(server.get("/nightjar/status")["policy"]["endpoint"].removeprefix("ipc://")).parent


def test_a_killed_policy_process_comes_back_and_no_request_notices(
    eagle_flags: list[str], config_file: Path, tmp_path: Path
) -> None:
    with Server([*eagle_flags, "--nightjar-config", str(config_file)], tmp_path / "log") as server:
        assert sockets_folder(server).stat().st_mode & 0o777 == 0o700
        text = server.generate("Once upon a time", max_new_tokens=48, ignore_eos=True)["text"]
        wait_until(lambda: is_steered(server))
        for kill in (1, 2):
            policy_processes(server)[0].kill()
            assert server.generate("Once upon a time", max_new_tokens=48, ignore_eos=True)["text"] == text
            wait_until(lambda: is_steered(server))
            status = server.get("/nightjar/status")
            assert status["counters"]["policy_restarts"] == kill
            assert status["counters"]["fallbacks"] >= kill
        assert "policy process ended (killed by SIGKILL)" in server.log.read_text()

        frozen = policy_processes(server)[0]
        frozen.suspend()
        wait_until(lambda: server.get("/nightjar/status")["policy"]["state"] == "restarting")
        status = server.get("/nightjar/status")
        assert status["policy"]["name"] == "static" and "no answer" in status["policy"]["detail"]
        assert status["ranks"][0]["gamma"] >= 0
        assert server.generate("Once upon a time", max_new_tokens=48, ignore_eos=True)["text"] == text
        frozen.resume()
        wait_until(lambda: is_steered(server))

        # The folder's path is all that new connections have.
        folder = sockets_folder(server)
        (folder / "policy.sock").unlink()
        policy_processes(server)[0].kill()
        wait_until(lambda: is_steered(server))
        left = [*server.children(), *(process.pid for process in policy_processes(server))]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        wait_until(lambda: not any(map(alive, left)), 10)
        assert not folder.exists()


def test_no_orphan_when_the_server_is_killed(eagle_flags: list[str], tmp_path: Path) -> None:
    with Server([*eagle_flags, "--nightjar-policy", "static"], tmp_path / "log") as server:
        wait_until(lambda: len(policy_processes(server)) >= 1)
        # The worker of the policy, too.
        wait_until(lambda: server.get("/nightjar/status")["policy"]["state"] == "running")
        processes = [process.pid for process in policy_processes(server)]
        assert len(processes) >= 2
        os.kill(server.process.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, processes)), 5)
        server.kill()


def test_off_and_no_draft_need_no_policy_process(
    eagle_flags: list[str], plain_flags: list[str], tmp_path: Path
) -> None:
    for flags, why in (
        ([*eagle_flags, "--nightjar-policy", "off"], "the policy is off"),
        (plain_flags, "does not speculate"),
    ):
        with Server(flags, tmp_path / "log") as server:
            assert policy_processes(server) == []
            policy = server.get("/nightjar/status")["policy"]
            assert (policy["name"], policy["state"], why in policy["detail"]) == ("off", "running", True)
            assert "no policy process is started" in server.log.read_text()
            assert server.generate("Hello", max_new_tokens=4)["text"]


def test_two_servers_on_one_policy_process(eagle_flags: list[str], config_file: Path, tmp_path: Path) -> None:
    first_log, second_log = tmp_path / "first", tmp_path / "second"
    with Server([*eagle_flags, "--nightjar-config", str(config_file)], first_log) as first:
        endpoint = first.get("/nightjar/status")["policy"]["endpoint"]
        with Server([*eagle_flags, "--nightjar-policy-endpoint", endpoint], second_log) as second:
            assert policy_processes(second) == []
            for server in (first, second):
                server.generate("Once upon a time", max_new_tokens=32, ignore_eos=True)
                wait_until(lambda server=server: is_steered(server))  # type: ignore[misc]
                assert server.get("/nightjar/status")["ranks"][0]["gamma"] == 2
            policy_processes(first)[0].kill()
            for server in (first, second):
                wait_until(lambda server=server: is_steered(server))  # type: ignore[misc]
        assert second.process.returncode == 0
        assert is_steered(first)


ENGINE_PROGRAM = """
import sglang_nightjar
import sglang as sgl
from sglang_nightjar.supervise import policy_process

def main():
    engine = sgl.Engine(
        model_path={target!r}, speculative_algorithm="EAGLE3", speculative_draft_model_path={draft!r},
        max_total_tokens=8192,
    )
    engine.generate("The capital of France is", {{"temperature": 0, "max_new_tokens": 32, "ignore_eos": True}})
    rank = engine.get_server_info()["internal_states"][0]["nightjar"]
    print("RANK", rank["source"], rank["gamma"])
    setup = policy_process.current()
    pid, folder = setup.supervisor.pid, setup.endpoint.removeprefix("ipc://").rpartition("/")[0]
    print("POLICY", pid, folder, flush=True)
    engine.shutdown()
    print("DONE", policy_process.current())

if __name__ == "__main__":
    main()
"""


def test_an_engine_has_a_policy_process_too(config_file: Path, target: Path, draft: Path) -> None:
    program = ENGINE_PROGRAM.format(target=str(target), draft=str(draft))
    environment = clean_environment(NIGHTJAR_CONFIG=str(config_file))
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("RANK", "POLICY", "DONE")))
    assert (said["RANK"], said["DONE"]) == ("policy 2", "None")
    pid, folder = said["POLICY"].split()
    assert not alive(int(pid))
    assert not Path(folder).exists()


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
