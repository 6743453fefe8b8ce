"""Policies that raise, lie, hang or devour memory, from some moment on."""

from pathlib import Path

HEAD = """
import os, time
from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.policy import Decision, Policy

class Mine(Policy):
    name = "mine"

    def __init__(self, params=None, seed=0):
        super().__init__(params, seed)
        self.seen = 0

    def hello(self, hello):
        return Decision(constant(hello.candidates[-1]), "mine")

    def telemetry(self, sender, record):
        self.seen += 1
        if {when}:
            {deed}
"""
#: Past the rehearsal, which must not find it.
LATE = "self.seen > 100"

#: What it does, and a part of what is said about it.
DEEDS = {
    "raises": ("raise ZeroDivisionError('oops')", r"ZeroDivisionError: oops (mine.py:"),
    "returns a text": ("return 'γ=3'", "instead of a Decision"),
    "returns no candidate": ("return Decision(constant(4), '')", "γ [4] is not among the candidates"),
    "returns half a table": ("return Decision(((1, 4, 1),), '')", "must end with null"),
    "reason with a line break": ("return Decision(constant(1), 'a\\nb')", "one printable line"),
    "sleeps": ("time.sleep(1000)", "busy for more than"),
    "loops": ("while True: pass", "busy for more than"),
    "allocates": ("self.hoard = [bytearray(1 << 20) for _ in range(1 << 20)]", "more memory than"),
    "exits": ("os._exit(3)", "exit code 3"),
    "crashes": ("os.kill(os.getpid(), 11)", "ended by signal 11"),
    "exits politely": ("raise SystemExit(0)", "SystemExit"),
    "recurses": ("return self.telemetry(sender, record)", "RecursionError"),
}


def write(folder: Path, deed: str, when: str = LATE) -> Path:
    """A file with a policy that does ``deed`` with the telemetry that comes when ``when`` is true."""
    file = folder / "mine.py"
    file.write_text(HEAD.format(when=when, deed=deed))
    return file
