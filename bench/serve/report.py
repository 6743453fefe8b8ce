"""The report of a benchmark: ``report.md``, ``results.jsonl`` (a line per run) and pictures, beside its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from bench.serve import paper, tables
from bench.serve.arms import NONE
from bench.serve.claim import claim, losses, subjects
from bench.serve.measures import Objectives
from bench.serve.results import Results
from bench.serve.store import Store
from sglang_nightjar.errors import ConfigError

_DIGITS = 6
HOW_TO_READ = (
    "Ratios are geometric means over repetitions, each against the run of the same repetition (same requests, same "
    "times), with 95% confidence intervals; ×1.10 is 10% faster: 10% more tokens per second in a closed loop, a mean "
    "latency 1.10 times smaller in an open one. Gains in per cent are more tokens per second in a closed loop and less "
    "mean latency in an open one, so there ×1.10 is a gain of 9.1%, and +8.3% takes ×1.09: goals are read the stricter "
    "way. Latencies count from when a request was due; means of them are arithmetic, over repetitions too, so they are "
    "not exactly what the ratios say. A phase of a closed loop counts from when those that left before it have their "
    "answers."
)
_LOSSES = (
    "Phases that are worse than without speculation, and those that are more than 2% worse than with SGLang's own "
    "rule, or than with the best static γ of the load:"
)


def write(store: Store) -> Path:
    """Writes it from the runs in the store, or, where they are gone, from its ``results.jsonl``; returns the path of
    ``report.md``. Raises ConfigError if there is neither."""
    lines = store.folder / "results.jsonl"
    conditions = _conditions(store)
    results = Results.of(store.all(), Objectives(conditions["slo_ttft_s"], conditions["slo_tpot_s"]))
    if results.runs:
        lines.write_bytes(b"".join(orjson.dumps(_rounded(run)) + b"\n" for run in results.runs))
    elif lines.exists():
        results = read(store.folder)
    else:
        raise ConfigError(f"{store.folder} holds no runs")
    pictures = _draw(results, store.folder)
    path = store.folder / "report.md"
    path.write_text(render(results, conditions, store.set_aside_count(), pictures))
    return path


def read(folder: Path) -> Results:
    """The results of a folder whose ``results.jsonl`` is there, though its runs may be gone."""
    return Results([orjson.loads(line) for line in (folder / "results.jsonl").read_bytes().splitlines()])


def render(results: Results, conditions: dict[str, Any], set_aside: int, pictures: dict[str, list[str]]) -> str:
    """Markdown. ``pictures`` are paths by scenario."""
    # A benchmark that was interrupted, or extended, has several commands and perhaps commits.
    made = [run["provenance"] for run in sorted(results.runs, key=lambda run: run["began"])]
    first, last = made[0], made[-1]
    commits, commands = (list(dict.fromkeys(found)) for found in (map(_commit, made), (p["command"] for p in made)))
    machine = first["machine"]
    parts = [
        "# Benchmark",
        f"{len(results.runs)} runs from {first['time']} to {last['time']}, commit {', '.join(commits)}, "
        f"{machine['cpu']} ({machine['cores']} cores, {machine['memory_gb']} GB; {', '.join(machine['vector'])}), "
        + ", ".join(f"{name} {version}" for name, version in first["versions"].items())
        + ".\n\n"
        + "\n".join(f"    {command}" for command in commands),
        "Conditions of all runs: "
        + ", ".join(f"{k} {_shown(v)}" for k, v in conditions.items() if v not in ("", None) and k != "versions")
        + ".",
        HOW_TO_READ,
        tables.generator(results),
    ]
    if faults := tables.invalid(results):
        parts += ["## Invalid", "\n".join(faults)]
    if set_aside:
        parts.append(f"{set_aside} runs that measured the generator were set aside and made again (`runs/*.aside*`).")
    if ours := subjects(results):
        parts += [
            "## What was to be shown",
            "± is a 95% interval over repetitions. A goal that the mean reaches, and not the whole interval, is met "
            '"not for certain".',
        ]
        parts += [claim(results, arm) for arm in ours]
        parts += ["## Beside the paper", paper.beside(results, ours), paper.CONDITIONS]
        parts += ["## Where it loses", _LOSSES]
        parts += [f"{arm}\n\n" + ("\n".join(losses(results, arm)) or "- none") for arm in ours]
    for scenario in results.scenarios:
        parts += _section(results, scenario, pictures.get(scenario, []))
    return "\n\n".join(parts) + "\n"


def _section(results: Results, scenario: str, pictures: list[str]) -> list[str]:
    if not results.arms(scenario):
        return [f"## {scenario}", "No run counts."]
    runs = {arm: len(results.counted(scenario, arm)) for arm in results.arms(scenario)}
    counts = sorted(set(runs.values()))
    what = "open loop" if results.is_open(scenario) else "closed loop"
    repetitions = f"{counts[0]} repetitions" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} repetitions"
    apart = f"Runs of one repetition began within {results.apart_s(scenario) / 60:.0f} minutes."
    parts = [f"## {scenario}", f"{what.capitalize()}, {repetitions}. Times in seconds. {apart}"]
    parts += [f"![{Path(path).stem.replace('-', ' ')}]({path})" for path in pictures]
    parts += [tables.against_none(results, scenario), tables.felt(results, scenario)]
    what = "Mean latency" if results.is_open(scenario) else "Tokens per second"
    ratio = ", and the ratio of speeds to no speculation" if NONE in runs else ""
    parts += [f"{what} by phase{ratio}:", tables.phases(results, scenario)]
    return [*parts, "Speculation, and what the server says:", tables.server_side(results, scenario)]


def _draw(results: Results, folder: Path) -> dict[str, list[str]]:
    try:
        from bench.serve import pictures
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("nightjar bench: no pictures: pip install -r requirements/bench.txt")
        return {}
    made: dict[str, list[str]] = {}
    for path in pictures.draw_all(results, folder / "pictures"):
        made.setdefault(path.stem.partition("-")[0], []).append(path.relative_to(folder).as_posix())
    return made


def _conditions(store: Store) -> dict[str, Any]:
    return orjson.loads((store.folder / "conditions.json").read_bytes())


def _commit(provenance: dict[str, Any]) -> str:
    return provenance["commit"] + (" with uncommitted changes" if provenance["uncommitted_changes"] else "")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(str, value))
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if abs(value) < 1e6 else round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
