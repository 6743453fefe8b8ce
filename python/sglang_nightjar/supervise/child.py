"""``python -m sglang_nightjar.supervise.child PARENT MODULE ARGS...``: run a module that must not outlive its parent.

Only Linux's parent-death signal reaches a child whose parent was killed with SIGKILL, and only the child itself can ask
for it without ``preexec_fn``, which is unsafe in a program with threads.
"""

import contextlib
import ctypes
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1

# Whoever allocates without end gets a MemoryError long before the machine runs out. Address space, not resident memory:
# it counts what libraries map, too, so it is generous. A soft limit: the child may set one that it knows to be right.
ADDRESS_SPACE_BYTES = 4 << 30


def main(argv: list[str]) -> None:
    """Bind this process to its parent, then become ``MODULE``."""
    parent, module = int(argv[0]), argv[1]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended before the signal was asked for.
        raise SystemExit(1)
    # A terminal's Ctrl-C is for the server: it finishes its requests, and this process is needed until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > ADDRESS_SPACE_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, hard))
    with contextlib.suppress(OSError):
        # If the machine does run out of memory, the kernel is to end this process and not the server.
        Path("/proc/self/oom_score_adj").write_text("1000")
    sys.argv = [module, *argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
