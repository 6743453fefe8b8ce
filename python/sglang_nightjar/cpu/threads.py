"""What the kernels get of the machine: one thread per physical core that this process may really use, huge pages."""

import math
import os
from pathlib import Path

import torch

# With libgomp's default, idle threads spin for milliseconds. On a machine shared with other work every parallel region
# then waits for a spinning thread to lose its time slice: steps of 30 ms took over a second. 10,000 turns (some 30 us)
# keep the full speed of a quiet machine. libgomp reads it when it is loaded, so it counts for child processes.
SPIN_COUNT = "10000"


def physical_cores() -> int:
    """Physical cores among the CPUs that this process may run on; hyperthreads of a core count once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    return len(cores)


def cgroup_cpus(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """CPUs' worth of time that the container may use; infinity without a limit."""
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)


def thread_count() -> int:
    """``$OMP_NUM_THREADS`` if set, else the physical cores within the container's limit, at least one."""
    if asked := os.environ.get("OMP_NUM_THREADS"):
        return int(asked.split(",")[0])
    return max(1, min(physical_cores(), math.ceil(min(cgroup_cpus(), 1e6))))


def configure() -> None:
    """Set this process's thread count, and what libgomp and torch read when its children load them."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    # Large tensors, the KV cache among them, on huge pages (c10/core/impl/alloc_cpu.cpp): attention reads a token's row
    # here and a row there, and gains 5 to 10% from fewer page table walks.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.set_num_threads(thread_count())
