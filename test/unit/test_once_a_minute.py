"""Warnings that would flood the log: one a minute, with the number of those left out."""

import logging

import pytest

from sglang_nightjar.once_a_minute import OnceAMinute


def test_each_kind_is_said_once_and_then_how_many_were_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    said = OnceAMinute(logging.getLogger("test"))
    for number in range(5):
        said.warning("failed: %d", number)
        said.warning("dropped (%s)", "size", kind="size")
        said.warning("dropped (%s)", "version", kind="version")
    assert caplog.messages == ["failed: 0", "dropped (size)", "dropped (version)"]
    now = 161.0
    said.warning("failed: %d", 5)
    assert caplog.messages[3:] == ["failed: 5 (and 4 more before)"]
