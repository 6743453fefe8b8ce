"""Compile the C++ kernels once per machine, with nothing but the system's compiler and torch's headers.

The result is cached in the user's cache folder under a name that holds everything it depends on: sources, torch,
compiler, flags and CPU. It is written under a temporary name and renamed, so a half-written library is never loaded,
and a file lock lets only one process compile.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sglang_nightjar.cache import cache_dir

SOURCES = Path(__file__).parent / "csrc"
MAIN_SOURCE = SOURCES / "bindings.cpp"
# No -ffast-math: results must not depend on how the compiler groups additions (see tile.h).
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fopenmp", "-shared", "-fPIC", "-DNDEBUG")
HOW_TO_INSTALL = "install g++ (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or name a compiler in CXX"


class KernelBuildError(RuntimeError):
    """The kernels can't be compiled here. The message says why and what to do."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its path and the first line of ``--version``."""

    path: str
    version: str


def find_compiler() -> Compiler:
    """The compiler in ``$CXX``, else g++, else c++. Raises KernelBuildError if there is none."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    path = next((found for name in wanted if (found := shutil.which(name))), None)
    if path is None:
        raise KernelBuildError(f"no C++ compiler found (looked for {', '.join(wanted)}): {HOW_TO_INSTALL}")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return Compiler(path, version.partition("\n")[0])


def cpu_features() -> str:
    """What ``-march=native`` depends on: the CPU's model and its instruction set flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def library_path(compiler: Compiler) -> Path:
    """Where the library for these sources, this torch, this compiler and this CPU is or will be."""
    key = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        key.update(source.name.encode() + b"\0" + source.read_bytes())
    for part in (torch.__version__, compiler.version, *FLAGS, platform.machine(), cpu_features()):
        key.update(part.encode() + b"\0")
    return cache_dir() / "kernels" / f"nightjar_{key.hexdigest()[:20]}.so"


def build() -> Path:
    """Return the compiled library, compiling it first if this machine has not yet (about half a minute).

    Raises KernelBuildError without a compiler or if it fails.
    """
    compiler = find_compiler()
    library = library_path(compiler)
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another process may have compiled it while this one waited for the lock.
        if not library.exists():
            print("Nightjar: compiling the CPU kernels, once for this machine ...", file=sys.stderr, flush=True)
            start = time.monotonic()
            _compile(compiler, library)
            print(f"Nightjar: CPU kernels ready after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return library


def _compile(compiler: Compiler, library: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    includes = [f"-I{torch_folder / 'include'}", f"-I{torch_folder / 'include/torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        unfinished = Path(folder) / library.name
        link = ["-o", str(unfinished), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        command = [compiler.path, *FLAGS, abi, *includes, str(MAIN_SOURCE), *link]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise KernelBuildError(
                f"{compiler.path} ({compiler.version}) could not compile the CPU kernels; g++ 11 or newer is needed, "
                f"or NIGHTJAR_CPU_KERNELS=torch serves without them, slowly.\n{result.stderr[-4000:]}"
            )
        os.replace(unfinished, library)
