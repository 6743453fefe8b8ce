"""How the server ends: whatever the moment, the exit code is right and no process is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.serving import LAUNCHER, Server, alive, clean_environment, free_port, gamma_flags

pytestmark = pytest.mark.server


def wait_for_exit(server: Server, children: list[int]) -> int:
    code = server.process.wait(60)
    deadline = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if alive(pid)]
    return code


def test_sigterm_finishes_what_is_running(eagle_flags: list[str], tmp_path: Path) -> None:
    with Server([*eagle_flags, *gamma_flags(3)], tmp_path / "log") as server:
        children = server.children()
        assert len(children) >= 2
        answers: list[dict] = []
        request = threading.Thread(
            target=lambda: answers.append(server.generate("Once upon a time", max_new_tokens=64, ignore_eos=True))
        )
        request.start()
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        request.join(120)
        assert wait_for_exit(server, children) == 0
    assert answers[0]["meta_info"]["completion_tokens"] == 64


def test_ctrl_c_in_a_terminal(plain_flags: list[str], tmp_path: Path) -> None:
    """A terminal sends it to the whole process group."""
    with Server(plain_flags, tmp_path / "log") as server:
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
