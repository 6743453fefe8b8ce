"""The real policy process, started by hand as an operator would."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class PolicyProcess:
    """``python -m sglang_nightjar.policy`` at ``path``; use it in a ``with`` block.

    Attributes:
        process: the running process; another one after `start`.
    """

    def __init__(self, path: Path, gamma: int, log: Path):
        config = path.with_name("policy.yaml")
        config.write_text(f"policy: {{name: static, params: {{gamma: {gamma}}}}}\n")
        self._command = [
            *(sys.executable, "-m", "sglang_nightjar.policy"),
            *("--endpoint", f"ipc://{path}", "--config", str(config)),
        ]
        self._log = log

    def __enter__(self) -> "PolicyProcess":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)

    def start(self) -> None:
        with open(self._log, "a") as output:
            self.process = subprocess.Popen(self._command, stdout=output, stderr=output)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(20)
