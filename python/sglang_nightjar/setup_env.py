"""Makes the virtual environment that `make serve` and `make test` use. Run by the system's Python, any 3.7 or newer.

Only the standard library is used here, and nothing of this package is imported: it is not installed yet. What can go
wrong is looked for before minutes and gigabytes are spent; every failure ends in one sentence and exit code 1.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
SUPPORTED = ((3, 11), (3, 12))

# The CPU build of torch 2.13 has this name where an index or a folder of wheels offers it. It brings no triton, which
# SGLang imports even where nothing runs it. The build that everybody offers serves a CPU as well, but brings gigabytes
# of CUDA, and its own triton: with another one pinned, pip would exchange torch.
CPU_TORCH = ["torch==2.13.0+cpu", "triton==3.6.0"]
ANY_TORCH = "torch==2.13.0"

# Disk that the set-up needs in GB: the environment plus pip's temporary files, with some room (measured: see
# docs/compatibility.md), and the converted demo model in the user's cache.
NEEDED_GB = {"cpu": 4.5, "cpu with the usual torch": 12.0, "cuda": 16.0}
MODEL_GB = 1.2


class SetupError(Exception):
    """The set-up can't go on. The message is the sentence that the user reads."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up .venv for `make serve` or `make test`.")
    parser.add_argument("--engine", choices=["auto", "cpu", "cuda"], default="auto", help="which SGLang to install")
    parser.add_argument("--torch-index", help="a package index that has the CPU build of torch")
    parser.add_argument("--test", action="store_true", help="also install what the tests need")
    parser.add_argument("--bench", action="store_true", help="also install what the benchmarks need")
    parser.add_argument("--port", type=int, help="check that this port is free")
    args = parser.parse_args()
    try:
        if args.port is not None:
            check_port(args.port)
        check_compiler()
        extras = [name for name in ("test", "bench") if getattr(args, name)]
        set_up(find_engine(args.engine), args.torch_index, extras)
    except SetupError as error:
        print(f"nightjar: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nightjar: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


def set_up(engine: str, torch_index: str | None, extras: list[str]) -> None:
    """Bring .venv up to date; a stamp written last, and made of what was asked for, tells what is already there."""
    with open(ROOT / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        steps = [("serve", serving_steps(engine, torch_index))]
        steps += [(name, [["-r", f"requirements/{name}.txt"]]) for name in extras]
        todo = [
            (name, commands, key(engine, commands)) for name, commands in steps if not is_done(name, engine, commands)
        ]
        if not todo:
            return
        if not works(PYTHON):
            python = find_python()
            check_disk(engine)
            make_venv(python)
        started = time.monotonic()
        for name, commands, stamp in todo:
            say(f"installing what `{name}` needs for the {engine} engine (log: {LOG.relative_to(ROOT)})")
            for command in commands:
                pip_install(command)
            stamp_file(name).write_text(stamp)
        say(f"set-up done in {time.monotonic() - started:.0f} s")


def serving_steps(engine: str, torch_index: str | None) -> list[list[str]]:
    """Arguments of `pip install`, in order; a step that may fail names its alternative after "or"."""
    steps = [["pip>=26,<27", "setuptools>=77"]]
    if engine == "cpu":
        steps.append(torch_step(torch_index))
    steps.append(["-r", f"requirements/{engine}.txt"])
    steps.append(["--no-deps", "-r", f"requirements/nodeps-{engine}.txt"])
    steps.append(["--no-deps", "--no-build-isolation", "-e", "."])
    return steps


def torch_step(torch_index: str | None) -> list[str]:
    """The CPU build from the index that the user named; else from where pip looks anyway, or the usual build."""
    if torch_index:
        return [*CPU_TORCH, "--extra-index-url", torch_index]
    return [*CPU_TORCH, "or", ANY_TORCH]


def find_engine(asked: str) -> str:
    """cuda where the NVIDIA driver reports a GPU, else cpu."""
    if asked != "auto":
        return asked
    listed = run(["nvidia-smi", "-L"])
    return "cuda" if listed is not None and "GPU 0" in listed else "cpu"


def find_python() -> str:
    """A Python that SGLang's packages exist for: this one if it will do, else one by its name."""
    for python in (sys.executable, "python3.12", "python3.11"):
        version = run([python, "-c", "import sys; print(*sys.version_info[:2])"])
        if version and tuple(int(number) for number in version.split()) in SUPPORTED:
            if python != sys.executable:
                say(f"{sys.executable} is {this_version()}; using {python} instead")
            return python
    raise SetupError(
        f"Python 3.11 or 3.12 is needed, but {sys.executable} is {this_version()} and neither python3.12 nor "
        "python3.11 can be run. Install one of them, or name it: make serve PYTHON=/path/to/python3.12"
    )


def this_version() -> str:
    return "Python {}.{}.{}".format(*sys.version_info[:3])


def check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SetupError(
                f"port {port} can't be used ({error.strerror}). Choose another: make serve PORT=30001"
            ) from None
        except OverflowError:
            raise SetupError(f"port {port} does not exist: choose one from 1024 to 65535") from None


def check_compiler() -> None:
    """SGLang and torch compile small kernels at run time, on a CPU and on a GPU."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    if not any(shutil.which(name) for name in names):
        raise SetupError(
            f"no C++ compiler found (looked for {' and '.join(names)}). Install one, for example: apt install g++"
        )


def check_disk(what: str) -> None:
    """``what`` is a key of NEEDED_GB."""
    # As sglang_nightjar/cache.py decides; it can't be imported yet.
    own = os.environ.get("NIGHTJAR_CACHE")
    cache = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    needs: dict[int, tuple[Path, float]] = {}
    for folder, gigabytes in ((ROOT, NEEDED_GB[what]), (cache, MODEL_GB)):
        while not folder.exists():
            folder = folder.parent
        device = folder.stat().st_dev
        _, total = needs.get(device, (folder, 0.0))
        needs[device] = (folder, total + gigabytes)
    for folder, gigabytes in needs.values():
        free = shutil.disk_usage(folder).free / 1e9
        if free < gigabytes:
            raise SetupError(
                f"the set-up needs {gigabytes:.1f} GB of disk at {folder}, but only {free:.1f} GB are free"
            )


def make_venv(python: str) -> None:
    say(f"making {VENV.relative_to(ROOT)} with {python}")
    if VENV.exists():
        shutil.rmtree(VENV)
    made = subprocess.run(
        [python, "-m", "venv", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if made.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        if "ensurepip" in made.stdout or "No module named venv" in made.stdout:
            raise SetupError(
                f"{python} can't make virtual environments: its venv module is not installed. "
                "On Debian and Ubuntu: apt install python3-venv (or python3.12-venv for that version)"
            )
        raise SetupError(f"{python} -m venv failed:\n{made.stdout.strip()}")


def pip_install(arguments: list[str]) -> None:
    """Run one step, showing what pip is at; if it fails, its alternative."""
    attempts = [arguments]
    if "or" in arguments:
        split = arguments.index("or")
        attempts = [arguments[:split], arguments[split + 1 :]]
    for attempt in attempts:
        if ANY_TORCH in attempt:
            say("pip finds no CPU build of torch, so the usual one is installed, with its CUDA packages")
            check_disk("cpu with the usual torch")
        if run_pip(attempt):
            return
    tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:])
    raise SetupError(f"pip install {' '.join(attempts[-1])} failed. The end of {LOG}:\n{tail}")


def run_pip(arguments: list[str]) -> bool:
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    with open(LOG, "a") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        progress = Progress(" ".join(arguments))
        for line in process.stdout:
            log.write(line)
            progress.show(line.strip())
        progress.end()
    return process.wait() == 0


class Progress:
    """One line that changes on a terminal; elsewhere a line every few seconds."""

    def __init__(self, title: str):
        self.title = title
        self.started = time.monotonic()
        self.next_line = self.started
        self.live = sys.stdout.isatty()
        self.seen = 0

    def show(self, line: str) -> None:
        if not line.startswith(("Collecting", "Downloading", "Using cached", "Installing", "Building", "Processing")):
            return
        self.seen += line.startswith(("Collecting", "Processing"))
        now = time.monotonic()
        text = f"  {self.title}: {now - self.started:4.0f} s, {self.seen} packages, {line}"
        if self.live:
            width = shutil.get_terminal_size().columns
            print("\r" + text[: width - 1].ljust(width - 1), end="", flush=True)
        elif now >= self.next_line or line.startswith("Installing collected"):
            print(text[:160], flush=True)
            self.next_line = now + 10

    def end(self) -> None:
        if self.live:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1), end="\r", flush=True)
        print(f"  {self.title}: {time.monotonic() - self.started:.0f} s", flush=True)


def is_done(name: str, engine: str, commands: list[list[str]]) -> bool:
    file = stamp_file(name)
    return file.is_file() and file.read_text() == key(engine, commands) and works(PYTHON)


def key(engine: str, commands: list[list[str]]) -> str:
    """Changes with everything that the result of ``commands`` depends on."""
    parts = [engine, repr(commands), str(ROOT)]
    parts += [(ROOT / word).read_text() for command in commands for word in command if word.endswith(".txt")]
    parts += [(ROOT / file).read_text() for file in ("setup.py", "python/sglang_nightjar/version.py")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def stamp_file(name: str) -> Path:
    return VENV / f"nightjar-{name}.stamp"


def works(python: Path) -> bool:
    """Whether this interpreter starts: an environment whose base Python has gone does not."""
    return run([str(python), "-c", "print(1)"]) is not None


def run(command: list[str]) -> str | None:
    """Output of ``command``, or None if it can't be run or fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def say(text: str) -> None:
    print(f"nightjar: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
