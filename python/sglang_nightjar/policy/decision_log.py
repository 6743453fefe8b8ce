"""The decision log: JSON lines, rotated by size, written by a thread of its own.

A disk that is slow or full costs lines of the log, which are counted, and nothing else. A line is

    {"at": Unix ns, "frame": a hello, telemetry, arrivals or ack as it came}
    {"at": ..., "to": sender, "shadow": false, "frame": a plan as it went}         # a shadow's plan has plan_id 0
    {"at": ..., "event": "in charge" | "failed" | ..., ...}
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

import orjson

from sglang_nightjar.core import wire
from sglang_nightjar.core.messages import Plan
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy.config_file import LogSection

logger = logging.getLogger(__name__)

_MAX_QUEUED_BYTES = 1 << 24
_FLUSH_EVERY = 0.2


class DecisionLog:
    """Takes lines at once, and writes them soon.

    Attributes:
        dropped: lines that were lost.
        error: why lines are being lost now; "" if they are not.
        bytes: size of the current file.
    """

    def __init__(self, section: LogSection) -> None:
        """Raises ConfigError if the file can't be opened."""
        if section.path is None:
            raise ValueError("a log needs a path")
        self.section, self.path = section, Path(section.path)
        self.dropped, self.error, self.bytes = 0, "", 0
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._wake = threading.Event()
        self._closing = False
        self._file = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise ConfigError(f"log.path: {self.path}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue a line (with its line feed)."""
        if self._queued > _MAX_QUEUED_BYTES:
            self.dropped += 1
            return
        # deque.append is atomic, the counter only approximate; neither needs a lock.
        self._queue.append(line)
        self._queued += len(line)

    def close(self) -> None:
        """Write what is queued, as far as it goes within two seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(_FLUSH_EVERY)
            self._drain()
        self._drain()
        if self._file >= 0:
            os.close(self._file)

    def _drain(self) -> None:
        lines = [self._queue.popleft() for _ in range(len(self._queue))]
        if not lines:
            return
        data = b"".join(lines)
        self._queued = max(0, self._queued - len(data))
        try:
            if self._file < 0:
                self._open()
            self._write_whole(data)
        except OSError as error:
            self.dropped += len(lines)
            if not self.error:
                logger.warning("Decision log %s: %s; lines are lost until that ends", self.path, error.strerror)
            self.error = str(error.strerror)
            return
        if self.error:
            logger.warning("Decision log %s: writing again; %d lines were lost so far", self.path, self.dropped)
            self.error = ""
        if self.bytes >= self.section.max_mb * 1e6:
            self._rotate()

    def _write_whole(self, data: bytes) -> None:
        """All of ``data`` or nothing: half a line would be no JSON."""
        start, view = self.bytes, memoryview(data)
        try:
            while view:
                written = os.write(self._file, view)
                view = view[written:]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, start)
            raise
        self.bytes = start + len(data)

    def _rotate(self) -> None:
        os.close(self._file)
        self._file = -1
        try:
            for number in range(self.section.files - 1, 0, -1):
                older = self.path.with_name(f"{self.path.name}.{number}")
                newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
                if newer.exists():
                    newer.replace(older)
            if self.section.files == 1:
                self.path.unlink()
            self._open()
        except OSError as error:
            logger.warning("Decision log %s can't be rotated: %s", self.path, error.strerror)

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):
            self.bytes = os.fstat(self._file).st_size


class LogSwitch:
    """The decision log that is in use, if any; it can be replaced while lines come.

    Attributes:
        log: None if there is none.
        telemetry: telemetry records are wanted.
    """

    def __init__(self, section: LogSection) -> None:
        """Raises ConfigError like `DecisionLog`."""
        self.log = DecisionLog(section) if section.path is not None else None
        self.telemetry = self.log is not None and section.telemetry

    def change(self, section: LogSection) -> None:
        """Log as ``section`` says from now on. Raises ConfigError, and then logs on as before."""
        old = self.log
        if old is not None:
            # Not both at once: they may be the same file.
            old.close()
            self.log = None
        try:
            self.log = DecisionLog(section) if section.path is not None else None
        except ConfigError:
            self.log = DecisionLog(old.section) if old is not None else None
            raise
        self.telemetry = self.log is not None and section.telemetry

    def frame(self, frame: bytes, at: int) -> None:
        """A frame as it came, at Unix time ``at`` (ns)."""
        if self.log is not None:
            if b"\n" in frame:
                frame = orjson.dumps(orjson.loads(frame))
            self.log.write(b'{"at":%d,"frame":%s}\n' % (at, frame))

    def plan(self, to: str, plan: Plan, shadow: bool) -> None:
        """A plan as it went to ``to``, or would have gone."""
        if self.log is not None:
            flag = b"true" if shadow else b"false"
            parts = (time.time_ns(), orjson.dumps(to), flag, wire.encode(plan))
            self.log.write(b'{"at":%d,"to":%s,"shadow":%s,"frame":%s}\n' % parts)

    def event(self, event: str, **details: object) -> None:
        """Anything else."""
        if self.log is not None:
            self.log.write(orjson.dumps({"at": time.time_ns(), "event": event, **details}, default=str) + b"\n")

    def close(self) -> None:
        """Write what is queued."""
        if self.log is not None:
            self.log.close()
