"""How the server ends: whatever the moment, the exit code is right and no process is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.processes import is_steered, policy_processes, sockets_folder
from helpers.serving import LAUNCHER, Server, alive, clean_environment, free_port, gamma_flags
from helpers.waiting import eventually

pytestmark = pytest.mark.server


def wait_for_exit(server: Server, children: list[int]) -> int:
    code = server.process.wait(60)
    eventually(lambda: not any(map(alive, children)), 10)
    return code


def test_sigterm_finishes_what_is_running(eagle_flags: list[str], tmp_path: Path) -> None:
    """And leaves nothing of the policy process, its socket's folder included."""
    with Server([*eagle_flags, *gamma_flags(3)], tmp_path / "log") as server:
        eventually(lambda: is_steered(server), 60)
        children, folder = server.children(), sockets_folder(server)
        # The scheduler, the detokenizer, the policy process and its worker.
        assert len(children) >= 4
        answers: list[dict] = []
        request = threading.Thread(
            target=lambda: answers.append(server.generate("Once upon a time", max_new_tokens=64, ignore_eos=True))
        )
        request.start()
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        request.join(120)
        assert wait_for_exit(server, children) == 0
        assert not folder.exists()
    assert answers[0]["meta_info"]["completion_tokens"] == 64


def test_without_a_draft_there_is_no_policy_process_and_ctrl_c_ends_it(plain_flags: list[str], tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the whole process group."""
    with Server(plain_flags, tmp_path / "log") as server:
        policy = server.get("/nightjar/status")["policy"]
        assert policy_processes(server) == []
        assert (policy["name"], policy["state"]) == ("off", "running")
        assert "does not speculate" in policy["detail"]
        assert server.generate("Hello", max_new_tokens=4)["text"]
        children = server.children()
        os.killpg(server.process.pid, signal.SIGINT)
        assert wait_for_exit(server, children) == 130


@pytest.mark.parametrize("sent, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_while_it_starts(plain_flags: list[str], sent: signal.Signals, code: int) -> None:
    import psutil

    process = subprocess.Popen(
        [sys.executable, "-m", LAUNCHER, *plain_flags, "--port", str(free_port())],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(psutil.Process(process.pid).children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(children) >= 2
    process.send_signal(sent)
    assert process.wait(60) == code
    time.sleep(1)
    assert not [pid for pid in children if alive(pid)]
