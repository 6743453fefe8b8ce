"""The decision log: whole lines, rotated, and a full disk costs lines and nothing else."""

import json
import logging
import os
import shutil

import pytest
from helpers.waiting import eventually

from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy.config_file import LogSection
from sglang_nightjar.policy.decision_log import DecisionLog, LogSwitch


def test_lines_arrive_and_rotate(tmp_path):
    path = tmp_path / "deep" / "log"
    log = DecisionLog(LogSection(path=str(path), max_mb=0.01, files=3))
    lines = [b'{"number":%d,"pad":"%s"}\n' % (number, b"x" * 50) for number in range(1500)]
    for start in range(0, 1500, 50):
        for line in lines[start : start + 50]:
            log.write(line)
        eventually(lambda: not log._queue)
    log.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["log", "log.1", "log.2"]
    kept = b"".join((path.parent / name).read_bytes() for name in ("log.2", "log.1", "log"))
    assert kept == b"".join(lines)[-len(kept) :]
    assert len(kept) > 15_000
    assert log.dropped == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_counted_said_once_and_survived(tmp_path, caplog):
    path = tmp_path / "log"
    log = DecisionLog(LogSection(path=str(path)))
    good, full = log._file, os.open("/dev/full", os.O_WRONLY)
    log._file = full
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            log.write(b'{"lost":%d}\n' % number)
            eventually(lambda count=number + 1: log.dropped == count)
        assert log.error == "No space left on device"
        assert len(caplog.records) == 1
        log._file = good
        log.write(b'{"kept":1}\n')
        eventually(lambda: not log.error)
    assert "5 lines were lost" in caplog.records[-1].getMessage()
    log.close()
    assert path.read_bytes() == b'{"kept":1}\n'
    os.close(full)


def test_no_half_lines(tmp_path, monkeypatch):
    """A disk that fills up within a write leaves none of it."""
    path = tmp_path / "log"
    log = DecisionLog(LogSection(path=str(path)))
    log.write(b'{"whole":1}\n')
    eventually(lambda: path.stat().st_size)
    write, calls = os.write, []

    def some(handle, data):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(handle, data[:5])

    monkeypatch.setattr(os, "write", some)
    log.write(b'{"torn":1}\n')
    eventually(lambda: log.dropped)
    monkeypatch.undo()
    log.close()
    assert path.read_bytes() == b'{"whole":1}\n'


def test_a_slow_disk_costs_lines_not_memory(tmp_path, monkeypatch):
    log = DecisionLog(LogSection(path=str(tmp_path / "log")))
    monkeypatch.setattr(log, "_drain", lambda: None)
    for _ in range(200):
        log.write(b"x" * 1_000_000)
    assert log.dropped > 150
    assert sum(map(len, log._queue)) < 20_000_000


def test_a_log_that_cannot_be_opened_leaves_the_old_one(tmp_path):
    switch = LogSwitch(LogSection(path=str(tmp_path / "log")))
    switch.event("first")
    with pytest.raises(ConfigError, match=r"log\.path"):
        switch.change(LogSection(path="/proc/nowhere/log"))
    switch.event("second")
    switch.frame(b'{"pretty":\n1}', 5)
    switch.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line.get("event") for line in lines] == ["first", "second", None]
    assert lines[2] == {"at": 5, "frame": {"pretty": 1}}


def test_where_neither_the_new_log_nor_the_old_one_opens_there_is_none(tmp_path):
    folder = tmp_path / "logs"
    switch = LogSwitch(LogSection(path=str(folder / "log")))
    shutil.move(folder, tmp_path / "elsewhere")
    folder.write_text("a file in its place")
    with pytest.raises(ConfigError, match=r"log\.path"):
        switch.change(LogSection(path="/proc/nowhere/log"))
    assert switch.log is None
    switch.event("nobody hears it")
    switch.close()
