"""Carry a child process's output into the server's log, line by line and not too much of it."""

import logging
import re
import time
from typing import IO

# What the child's own logging puts before a message; the server's log says the time itself.
_HEAD = re.compile(r"^[\d-]{10} [\d:,]{12} [\w ]*?(DEBUG|INFO|WARNING|ERROR|CRITICAL): ")
_LEVEL = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")
# A user's policy may print on each of some hundred decisions a second.
LINES_PER_SECOND = 20
LONGEST_LINE = 2000


def forward_lines(stream: IO[bytes], name: str, log: logging.Logger) -> None:
    """Log every line of ``stream`` with ``name`` before it, until it ends; drop and count what exceeds the rate."""
    window, logged, dropped = 0.0, 0, 0
    while line := stream.readline(LONGEST_LINE):
        now = time.monotonic()
        if now - window >= 1:
            if dropped:
                log.warning("%s: %d more lines in one second, not shown", name, dropped)
            window, logged, dropped = now, 0, 0
        if logged >= LINES_PER_SECOND:
            dropped += 1
            continue
        logged += 1
        text = line.decode(errors="replace").rstrip()
        found = _HEAD.match(text) or _LEVEL.search(text[:60])
        level = logging.getLevelNamesMapping()[found[1]] if found else logging.INFO
        log.log(level, "%s: %s", name, _HEAD.sub("", text))
