"""Keep one child process running: started again when it ends, with growing pauses, and stopped with its parent."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from sglang_nightjar.supervise.log_lines import forward_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackOff:
    """Pauses between an end and the next start, in seconds.

    The first is short: serving goes on without the child, but worse. They double up to ``longest``, so that a child
    which can't start costs next to nothing. One that ran for ``healthy`` seconds starts again at ``first``.
    """

    first: float = 0.1
    longest: float = 10.0
    healthy: float = 30.0

    def next(self, last: float | None, ran: float) -> float:
        """The pause after a run of ``ran`` seconds; ``last`` was the pause before it, None for the first run."""
        return self.first if last is None or ran >= self.healthy else min(2 * last, self.longest)


class Supervisor:
    """Runs ``python -m MODULE ARGS`` from a thread of its own. All methods may be called from any thread.

    Attributes:
        restarts: how often it was started again.
    """

    def __init__(
        self,
        name: str,
        module: str,
        args: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        back_off: BackOff | None = None,
        prepare: Callable[[], None] = lambda: None,
        is_broken: Callable[[], str | None] = lambda: None,
        say: logging.Logger = logger,
    ):
        """``name`` is what log lines call it.

        ``prepare`` runs before each start; an OSError counts as a failed start. ``is_broken`` is asked once a second
        while it runs: a reason (a clause) ends it, so that it is started again.
        """
        self.name = name
        self.restarts = 0
        self._command = [sys.executable, "-m", "sglang_nightjar.supervise.child", str(os.getpid()), module, *args]
        self._env = env
        self._back_off = back_off or BackOff()
        self._prepare = prepare
        self._is_broken = is_broken
        self._log = say
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"supervise-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the running child; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def stop(self, patience: float = 2.0) -> None:
        """End the child (SIGTERM, and SIGKILL after ``patience`` seconds) and start it no more."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(patience)
            if self._thread.is_alive():
                if self.pid is not None and self._process is not None:
                    self._process.kill()
                self._thread.join(patience)

    def _run(self) -> None:
        # The child is bound to this thread, not only to this process: Linux sends the parent-death signal when the
        # thread ends that started it. So this one thread starts them all, and ends last.
        pause: float | None = None
        while not self._stopping.is_set():
            began = time.monotonic()
            ending = self._run_once()
            if self._stopping.is_set():
                return
            pause = self._back_off.next(pause, time.monotonic() - began)
            self._log.warning(
                "The %s ended (%s); requests are served without it. Starting it again in %.1f s.",
                self.name,
                ending,
                pause,
            )
            if self._stopping.wait(pause):
                return
            self.restarts += 1

    def _run_once(self) -> str:
        """Start it and wait for its end, which is returned as a clause."""
        try:
            self._prepare()
            process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # Signals of a terminal reach the server's process group; this process is ended by us.
                process_group=0,
            )
        except OSError as error:
            return f"it could not be started: {error}"
        self._process = process
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(process.stdout,), name=f"log-{self.name}", daemon=True)
        reader.start()
        broken = self._wait(process)
        code = process.wait()
        reader.join(1)
        return broken or _ending(code)

    def _read(self, output: IO[bytes]) -> None:
        forward_lines(output, self.name, self._log)
        # The end of its output is most likely its own.
        self._wake.set()

    def _wait(self, process: "subprocess.Popen[bytes]") -> str | None:
        """Wait for the end, or bring it about. Returns why, if it is ours."""
        while process.poll() is None:
            if self._stopping.is_set():
                process.terminate()
                return None
            if broken := self._is_broken():
                process.kill()
                return broken
            self._wake.wait(1)
            self._wake.clear()
        return None


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
