"""Which threads of a server take the CPU, from ``/proc/PID/task/*/schedstat``."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

from helpers.serving import Server

from bench.serve import tables
from bench.serve.servers import roles


def cpu_ms(server: Server) -> Counter[str]:
    """Since their start, by ``process: thread``: its first thread, those with a name of their own, the others."""
    found: Counter[str] = Counter()
    for role, pids in roles(server).items():
        for pid in pids:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                process = "policy worker" if b"policy.worker" in command else role
                own = Path(f"/proc/{pid}/comm").read_text()
                for task in Path(f"/proc/{pid}/task").iterdir():
                    name = (task / "comm").read_text()
                    thread = "first" if task.name == str(pid) else "others" if name == own else name.strip()
                    ran_ns = int((task / "schedstat").read_text().split()[0])
                    found[f"{process}: {thread}"] += ran_ns / 1e6
    return found


def table(by_kind: dict[str, list[Counter[str]]], least_ms: float = 0.05) -> str:
    """Means of what each kind of server took for a step, in Markdown; rows below ``least_ms`` of all are left out."""
    means = {kind: _mean(counts) for kind, counts in by_kind.items()}
    shown = sorted({row for counts in means.values() for row in counts if counts[row] >= least_ms})
    rows = ([row, *(f"{counts[row]:.2f}" for counts in means.values())] for row in shown)
    return tables.table(["CPU, ms a step", *means], rows) + "\n"


def _mean(counts: list[Counter[str]]) -> Counter[str]:
    total = sum(counts, Counter())
    return Counter({row: value / len(counts) for row, value in total.items()})
