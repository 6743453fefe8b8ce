"""A child that is watched: started again when it ends, with growing pauses, and never left behind."""

import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.serving import alive
from observe.fake_policy_process import FakePolicyProcess

from sglang_nightjar.core.messages import Reply
from sglang_nightjar.supervise.directory import PrivateDirectory
from sglang_nightjar.supervise.liveness import PATIENCE_CHECKS, Liveness
from sglang_nightjar.supervise.log_lines import forward_lines
from sglang_nightjar.supervise.supervisor import BackOff, Supervisor

CHILD = """
import os, signal, sys, time
print("up", os.getpid(), flush=True)
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "flood" in sys.argv:
    for number in range(5000):
        print("line", number, flush=True)
if "greedy" in sys.argv:
    held = []
    while True:
        held.append(bytearray(256 << 20))
if "fails" in sys.argv:
    sys.exit("ERROR it can't start")
time.sleep(600)
"""


@pytest.fixture
def child_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "trivial_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "trivial_child"


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def running(supervisor: Supervisor) -> int:
    wait_until(lambda: supervisor.pid)
    assert supervisor.pid is not None
    return supervisor.pid


def test_a_killed_child_is_started_again(child_module: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    supervisor = Supervisor("helper", child_module, [])
    supervisor.start()
    try:
        first = running(supervisor)
        wait_until(lambda: f"helper: up {first}" in caplog.text)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: supervisor.restarts == 1)
        wait_until(lambda: supervisor.pid not in (None, first))
        assert "The helper ended (killed by SIGKILL)" in caplog.text
        second = running(supervisor)
    finally:
        supervisor.stop()
    assert not alive(second)
    assert supervisor.pid is None


def test_pauses_grow_and_are_forgotten_after_a_long_run() -> None:
    back_off = BackOff(first=0.1, longest=1, healthy=30)
    pauses = [pause := back_off.next(None, 0)]
    for _ in range(5):
        pauses.append(pause := back_off.next(pause, ran=2))
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 1])
    assert back_off.next(pause, ran=31) == 0.1


def test_a_child_that_can_not_start_costs_little_and_its_words_are_logged(
    child_module: str, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor("helper", child_module, ["fails"], back_off=BackOff(first=0.1, longest=0.4))
    supervisor.start()
    wait_until(lambda: supervisor.restarts >= 3, 60)
    supervisor.stop()
    restarts = supervisor.restarts
    time.sleep(1)
    assert supervisor.restarts == restarts
    assert "ended (exit code 1); requests are served without it" in caplog.text
    assert (
        "sglang_nightjar.supervise.supervisor",
        logging.ERROR,
        "helper: ERROR it can't start",
    ) in caplog.record_tuples


def test_a_child_that_ignores_sigterm_is_killed(child_module: str) -> None:
    supervisor = Supervisor("helper", child_module, ["stubborn"])
    supervisor.start()
    pid = running(supervisor)
    time.sleep(1)
    supervisor.stop(patience=0.5)
    assert not alive(pid)


def test_a_flood_of_output_is_cut(child_module: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    supervisor = Supervisor("helper", child_module, ["flood"])
    supervisor.start()
    wait_until(lambda: "helper: line 5" in caplog.text)
    time.sleep(2)
    supervisor.stop()
    assert 5 < sum("helper: line" in message for message in caplog.messages) < 200


def test_a_child_can_not_eat_the_machine(child_module: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    supervisor = Supervisor("helper", child_module, ["greedy"], back_off=BackOff(first=60))
    supervisor.start()
    wait_until(lambda: "MemoryError" in caplog.text, 60)
    supervisor.stop()


def test_one_that_is_found_broken_is_started_again(child_module: str, caplog: pytest.LogCaptureFixture) -> None:
    reasons = iter([None, "its socket was deleted"])
    supervisor = Supervisor("helper", child_module, [], is_broken=lambda: next(reasons, None))
    supervisor.start()
    first = running(supervisor)
    wait_until(lambda: supervisor.restarts == 1)
    assert not alive(first)
    assert "The helper ended (its socket was deleted)" in caplog.text
    supervisor.stop()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_its_parent(child_module: str, sent: signal.Signals) -> None:
    program = f"""
import time
from sglang_nightjar.supervise.liveness import PATIENCE_CHECKS, Liveness
from sglang_nightjar.supervise.log_lines import forward_lines
from sglang_nightjar.supervise.supervisor import Supervisor
supervisor = Supervisor("helper", {child_module!r}, ["stubborn"])
supervisor.start()
while supervisor.pid is None: time.sleep(0.01)
time.sleep(1)
print(supervisor.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(sent)
        parent.wait(10)
        wait_until(lambda: not alive(pid), 5)


def test_levels_and_times_are_the_logs_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lines = (
        b"2026-11-23 21:24:27,753 nightjar policy WARNING: no space\n2026-11-23 21:24:28,001 x INFO: up\nplain words"
    )
    forward_lines(io.BytesIO(lines), "helper", logging.getLogger("log"))
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.WARNING, "helper: no space"),
        (logging.INFO, "helper: up"),
        (logging.INFO, "helper: plain words"),
    ]


def test_a_process_that_does_not_answer_is_broken_and_one_that_answers_is_not(tmp_path: Path) -> None:
    with FakePolicyProcess(tmp_path / "private", lambda op, args: Reply(0, True)) as process:
        answering = Liveness(process.endpoint, "server")
        for _ in range(PATIENCE_CHECKS + 5):
            assert answering.is_broken() is None
            time.sleep(0.03)
        answering.close()
    silent = Liveness(f"ipc://{tmp_path}/nobody", "server")
    found = [silent.is_broken() for _ in range(PATIENCE_CHECKS)]
    assert found[:-1] == [None] * (PATIENCE_CHECKS - 1)
    assert found[-1] == f"it did not answer for {PATIENCE_CHECKS} s"
    silent.restart()
    assert silent.is_broken() is None
    silent.close()


def test_the_directory_is_private_and_goes_away(tmp_path: Path) -> None:
    directory = PrivateDirectory(tmp_path)
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.close()
    directory.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_is_removed_and_a_running_one_stays(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\nfrom sglang_nightjar.supervise.directory import PrivateDirectory\n"
        "print(PrivateDirectory(pathlib.Path(sys.argv[1])).path)\nsys.stdout.flush()\nos._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    left = Path(done.stdout.strip())
    assert left.is_dir()
    first = PrivateDirectory(tmp_path)
    assert not left.exists()
    second = PrivateDirectory(tmp_path)
    assert first.path.is_dir() and second.path.is_dir()
    first.close()
    second.close()


def test_a_deleted_directory_comes_back_private(tmp_path: Path) -> None:
    directory = PrivateDirectory(tmp_path)
    (directory.path / "owner.lock").unlink()
    directory.path.rmdir()
    directory.ensure()
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.path.chmod(0o755)
    with pytest.raises(OSError, match="no longer private"):
        directory.ensure()
    directory.close()
