"""``nightjar doctor``: what this machine is, which engine it gets, and whether serving would work.

Each check returns findings; a finding that is amiss says what to do about it.
"""

import importlib.metadata
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sglang_nightjar import __version__
from sglang_nightjar.agent import process
from sglang_nightjar.defaults import free_memory_bytes

State = Literal["ok", "note", "bad"]

# CPU features that decide which kernels run, in the words of /proc/cpuinfo.
CPU_FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX"}
# The demo pair needs about 1.5 GB of weights and program besides its KV cache.
NEEDED_MEMORY_GB = 3.0
NEEDED_DISK_GB = 1.2


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        topic: group that it is printed in.
        name: what was looked at.
        state: "bad" if serving would not work because of it, "note" if it is worth knowing.
        text: what was found.
        todo: what to do about it, if anything is amiss.
    """

    topic: str
    name: str
    state: State
    text: str
    todo: str | None = None


@dataclass(frozen=True)
class SeamState:
    """One SGLang name that we rely on, and what is wrong with it (None: nothing)."""

    target: str
    kind: str
    why: str
    problem: str | None


@dataclass(frozen=True)
class Diagnosis:
    version: str
    findings: list[Finding]
    seams: list[SeamState]

    @property
    def ok(self) -> bool:
        return all(finding.state != "bad" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True)
class Pair:
    """Models of the user's: folders with checkpoints, and how many tokens of KV cache are served with both loaded."""

    target: Path | None
    draft: Path
    kv_tokens: int | None = None


def diagnose(pair: Pair | None = None) -> Diagnosis:
    """Look at everything. Takes some seconds: SGLang is imported to look at its names.

    With ``pair`` also at what its draft's memory is worth.
    """
    process.role = "doctor"
    findings = [*machine(), *software()]
    seams: list[SeamState] = []
    if all(finding.state != "bad" for finding in findings):
        findings += engine()
        finding, seams = sglang_names()
        findings.append(finding)
    findings += models()
    if pair is not None:
        findings.append(_memory_of(pair))
    return Diagnosis(__version__, findings, seams)


def machine() -> Iterator[Finding]:
    cpu = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith("model name")), "unknown"
    )
    flags = set(next((line.split(":", 1)[1].split() for line in cpu.splitlines() if line.startswith("flags")), []))
    features = [shown for flag, shown in CPU_FEATURES.items() if flag in flags]
    cores = len(os.sched_getaffinity(0))
    text = f"{model}, {cores} cores usable, {' '.join(features) or 'no AVX2'}"
    if "avx2" in flags:
        yield Finding("machine", "CPU", "ok", text)
    else:
        yield Finding("machine", "CPU", "note", text, "the CPU engine is slow without AVX2")

    free = free_memory_bytes() / 1e9
    text = f"{free:.1f} GB free"
    if free >= NEEDED_MEMORY_GB:
        yield Finding("machine", "memory", "ok", text)
    else:
        yield Finding("machine", "memory", "bad", text, f"the demo pair needs {NEEDED_MEMORY_GB:.0f} GB: end something")

    gpus = _run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    yield Finding("machine", "GPU", "ok" if gpus else "note", gpus or "none that nvidia-smi lists")


def software() -> Iterator[Finding]:
    version = sys.version.split()[0]
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        yield Finding("software", "Python", "ok", version)
    else:
        yield Finding(
            "software", "Python", "bad", version, "SGLang's packages are for Python 3.11 and 3.12: use one of these"
        )
    for package in ("torch", "sglang"):
        if found := _installed(package):
            yield Finding("software", package, "ok", found)
        else:
            yield Finding(
                "software", package, "bad", "not installed", "run `make serve`, which sets up the environment"
            )
    yield _plugin()
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    compiler = next((path for name in names if (path := shutil.which(name))), None)
    if compiler:
        yield Finding("software", "compiler", "ok", compiler)
    else:
        yield Finding("software", "compiler", "bad", "none", "install g++, for example: apt install g++")


def _plugin() -> Finding:
    points = importlib.metadata.entry_points(group="sglang.srt.plugins")
    if "nightjar" not in points.names:
        todo = "SGLang finds Nightjar only if it is installed: pip install --no-deps -e ."
        return Finding("software", "plugin", "bad", "not installed as a plugin of SGLang", todo)
    allowed = os.environ.get("SGLANG_PLUGINS")
    if allowed and "nightjar" not in [name.strip() for name in allowed.split(",")]:
        todo = "add nightjar to SGLANG_PLUGINS, or unset it"
        return Finding("software", "plugin", "bad", f"SGLANG_PLUGINS={allowed} leaves it out", todo)
    return Finding("software", "plugin", "ok", "installed; SGLang loads it where Nightjar is turned on")


def engine() -> Iterator[Finding]:
    from sglang_nightjar.cpu import build, kernels
    from sglang_nightjar.cpu.detect import choose_engine

    choice = choose_engine()
    yield Finding("engine", choice.engine, "ok", choice.reason)
    if choice.engine != "nightjar":
        return
    if not kernels.use_native():
        text = f"{kernels.KERNELS_ENV}=torch: plain torch instead of the C++ kernels"
        yield Finding("engine", "CPU kernels", "note", text, f"unset {kernels.KERNELS_ENV}: this is slow")
        return
    library = build.library_path(build.find_compiler())
    if library.exists():
        kernels.load()
        products = "AMX's tile registers" if kernels.use_tiles(kernels.TILE_DEPTH) else "vectors"
        yield Finding("engine", "CPU kernels", "ok", f"compiled, products in {products}: {library}")
    else:
        yield Finding("engine", "CPU kernels", "note", "will be compiled at the first start, in about half a minute")


def sglang_names() -> tuple[Finding, list[SeamState]]:
    """Check the table of seams, and that SGLang applies our hooks."""
    from sglang_nightjar.patches import seams

    states = [SeamState(s.target, s.kind, s.why, seams.check(s)) for s in seams.table()]
    broken = [state for state in states if state.problem]
    text = f"{len(states) - len(broken)} of {len(states)} names are as SGLang {seams.SUPPORTED_SGLANG} has them"
    if not broken:
        return Finding("engine", "SGLang's names", "ok", text), states
    lines = "".join(f"\n{state.target}: {state.problem} ({state.why})" for state in broken)
    todo = f"pip install --no-deps sglang=={seams.SUPPORTED_SGLANG}"
    return Finding("engine", "SGLang's names", "bad", text + lines, todo), states


def models() -> Iterator[Finding]:
    from sglang_nightjar.demo.pair import draft_dir
    from sglang_nightjar.demo.target import NAME, find_gguf, is_ready, target_dir
    from sglang_nightjar.errors import ConfigError

    folder = target_dir()
    if is_ready(folder):
        yield Finding("models", "demo target", "ok", f"{NAME} in {folder}")
    else:
        try:
            yield Finding(
                "models", "demo target", "note", f"{NAME} will be converted at the first start, from {find_gguf()}"
            )
        except ConfigError as error:
            yield Finding("models", "demo target", "bad", "not there", str(error))
        yield _disk(folder)
    if (draft_dir() / "config.json").is_file():
        yield Finding("models", "demo draft", "ok", str(draft_dir()))
        if is_ready(folder):
            yield _draft_memory(folder, draft_dir())
    else:
        todo = "reinstall sglang_nightjar: it ships with the package"
        yield Finding("models", "demo draft", "bad", f"{draft_dir()} is missing", todo)


def _memory_of(pair: Pair) -> Finding:
    from sglang_nightjar.demo.target import target_dir

    try:
        return _draft_memory(pair.target or target_dir(), pair.draft, "your draft", pair.kv_tokens)
    except (OSError, KeyError, ValueError) as error:
        todo = "name two folders, each with a config.json and safetensors files"
        return Finding("models", "your draft", "bad", f"can't be read: {type(error).__name__}: {error}", todo)


def _draft_memory(target: Path, draft: Path, name: str = "draft memory", kv_tokens: int | None = None) -> Finding:
    """What policies can gain by sending a draft away, from the shapes alone."""
    from sglang_nightjar.core.capacity import human_bytes
    from sglang_nightjar.cpu.detect import choose_engine
    from sglang_nightjar.defaults import CPU_MAX_KV_TOKENS
    from sglang_nightjar.memory import prediction

    is_cpu = choose_engine().is_cpu
    granularity = mmap.PAGESIZE if is_cpu else prediction.CUDA_GRANULARITY
    weights, both = (
        prediction.predict(target, draft, kv_tokens or CPU_MAX_KV_TOKENS, is_cpu, granularity, reclaims_kv)
        for reclaims_kv in (False, True)
    )
    text = f"{human_bytes(weights.freed_bytes)}: away, it makes room for {weights.tokens} tokens of KV cache"
    text += f" ({weights.bytes_per_token} bytes each)\nwith memory.reclaim: weights+kv {human_bytes(both.freed_bytes)}"
    text += f", {both.tokens} tokens (its own KV: {both.draft_bytes_per_token} bytes each)"
    return Finding("models", name, "ok", text)


def _disk(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free >= NEEDED_DISK_GB:
        return Finding("models", "disk", "ok", f"{free:.0f} GB free at {folder}")
    todo = f"the conversion needs {NEEDED_DISK_GB} GB there; or set NIGHTJAR_CACHE to another folder"
    return Finding("models", "disk", "bad", f"{free:.1f} GB free at {folder}", todo)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def render(diagnosis: Diagnosis, verbose: bool = False, colour: bool = False) -> str:
    """The diagnosis for a terminal; ``verbose`` adds the table of SGLang's names."""
    marks = {"ok": ("✓", "32"), "note": ("·", "33"), "bad": ("✗", "31")}
    lines = [f"Nightjar {diagnosis.version}"]
    topic = None
    for finding in diagnosis.findings:
        if finding.topic != topic:
            topic = finding.topic
            lines += ["", topic]
        mark, code = marks[finding.state]
        mark = f"\033[{code}m{mark}\033[0m" if colour else mark
        first, *more = finding.text.splitlines()
        lines.append(f"  {mark} {finding.name:<15} {first}")
        lines += [f"      {line}" for line in more]
        if finding.todo:
            lines.append(f"      → {finding.todo}")
    if verbose:
        lines += ["", "names of SGLang that Nightjar relies on"]
        lines += [f"  {'✗' if s.problem else '✓'} {s.kind:<5} {s.target}\n          {s.why}" for s in diagnosis.seams]
    bad = sum(finding.state == "bad" for finding in diagnosis.findings)
    lines += ["", "Serving would work: make serve" if not bad else f"Serving would not work: see the {bad} marked ✗."]
    return "\n".join(lines)
