"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import Any


def eventually(condition: Callable[[], Any], within: float = 10.0) -> Any:
    """The first true value of ``condition``; fails if there is none in time (s)."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {condition}"
        time.sleep(0.05)
    return value


def seconds_until(condition: Callable[[], Any], within: float) -> float:
    """How long it took until ``condition`` was true; fails if it was not in time."""
    started = time.monotonic()
    eventually(condition, within)
    return time.monotonic() - started
