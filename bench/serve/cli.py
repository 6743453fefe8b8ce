"""The command: ``nightjar bench``, or ``python -m bench.serve.run``. Docs: bench/serve/README.md."""

from __future__ import annotations

import argparse
import hashlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bench.provenance import provenance
from bench.serve import arms, report
from bench.serve.arrivals import TraceRow, read_trace
from bench.serve.measurement import Measurement
from bench.serve.order import Run, order
from bench.serve.prompts import PromptSource
from bench.serve.reference import Reference
from bench.serve.runner import Bench
from bench.serve.scenarios import MEMORY, Scale, catalogue
from bench.serve.servers import Fleet, Models, ServerFault, saved_state
from bench.serve.settings import Settings
from bench.serve.store import Store
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.observe.client import ServerError

_HERE = Path(__file__).parent
#: Two servers and three runs of 20 s: a look at everything within five minutes, not a result.
_QUICK = {
    "arms": ["none", "static-3", "model"],
    "scenarios": ["surge"],
    "repetitions": 1,
    "time_scale": 0.25,
    "warm_up_s": 4.0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is compared")
    what.add_argument("--quick", action="store_true", help="three arms, one short surge, once: five minutes")
    what.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help="default: all of --list but off and sglang-static-N; +keep in `memory` only",
    )
    what.add_argument("--scenarios", nargs="+", metavar="NAME", help="default: all of --list")
    what.add_argument("--repetitions", type=int, metavar="N", help="default: 5")
    what.add_argument("--list", action="store_true", help="print arms and scenarios, and end")

    load = parser.add_argument_group("the load")
    load.add_argument("--seed", type=int, help="of arrivals, prompts and lengths (0)")
    load.add_argument("--time-scale", type=float, metavar="X", help="scenarios X times as long (1)")
    load.add_argument(
        "--rate-scale",
        type=float,
        metavar="X",
        help="X times the requests and clients (1: two cores with AMX; 0.5 without)",
    )
    load.add_argument("--prompts", metavar="FILE", help='JSONL of {"turns": [...]}, or "lengths": random words (own)')
    load.add_argument("--longest-prompt", type=int, metavar="TOKENS", help="longer ones are left out (256)")
    load.add_argument("--new-tokens", type=int, nargs=2, metavar=("FEWEST", "MOST"), help="of an answer (32 96)")
    load.add_argument("--natural", action="store_true", help="answers end where the model ends them")
    load.add_argument("--temperature", type=float, help="of sampling (0: greedy, and answers are checked)")
    load.add_argument("--trace", type=Path, metavar="CSV", help="TIMESTAMP,ContextTokens,GeneratedTokens: adds `trace`")
    load.add_argument("--warm-up-s", type=float, metavar="S", help="load before every run, not counted (12)")
    load.add_argument("--slo-ttft-s", type=float, metavar="S", help="objective for goodput (2)")
    load.add_argument("--slo-tpot-s", type=float, metavar="S", help="objective for goodput (0.06)")

    server = parser.add_argument_group("the servers")
    server.add_argument("--model-path", help="default: the demo pair")
    server.add_argument("--draft-model-path", help="its draft")
    server.add_argument("--algorithm", default="EAGLE3", help="SGLang's name for the kind of draft (EAGLE3)")
    server.add_argument("--max-running-requests", type=int, help="on every server (32)")
    server.add_argument(
        "--kv-tokens", type=int, help="KV cache beside a draft; without one, that and its memory (8192)"
    )
    server.add_argument(
        "--side-by-side", action="store_true", help="all servers at once, 2.5 GB each for the demo pair"
    )
    server.add_argument("--port", type=int, help="of the first server; default: any free one")
    server.add_argument("--around", default="", metavar="CMD", help="a command to run each load under")
    server.add_argument("--no-check", action="store_true", help="don't compare answers with the target's own")
    server.add_argument("flags", nargs="*", metavar="-- FLAGS", help="SGLang's, for every server")

    parser.add_argument("--out", type=Path, help="results; an interrupted benchmark goes on there")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no run that would not end within N minutes")
    parser.add_argument("--report", action="store_true", help="only write the report of what is in --out")
    parser.add_argument("--retry", action="store_true", help="make runs again that measured the generator or nothing")


def run(args: argparse.Namespace) -> int:
    """Returns the exit code: 0, 1 if something could not be run, 130 after Ctrl-C."""
    if args.quick:
        for name, value in _QUICK.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    settings = _settings(args)
    trace, trace_id = _trace(args.trace)
    scenarios = catalogue(Scale(settings.time_scale, settings.rate_scale), trace)
    if args.list:
        _print_list(scenarios)
        return 0
    chosen = {name: _chosen(scenarios, name) for name in args.scenarios or scenarios}
    runs = _runs(list(chosen), args.arms, args.repetitions or 5)
    store = Store(args.out or _HERE / "results" / ("quick" if args.quick else "full"))
    if args.report:
        print(f"written: {report.write(store)}")
        return 0

    models, is_demo = _models(args)
    served = {"models": "demo pair"} if is_demo else {"model": models.target, "draft": models.draft}
    if is_demo:
        # It is trained anew now and then.
        weights = (Path(models.draft) / "model.safetensors").read_bytes()
        served["draft_sha256"] = hashlib.sha256(weights).hexdigest()[:16]
    how = {"algorithm": models.algorithm, "flags": " ".join(models.flags), "around": args.around}
    here = provenance()
    made = {"side_by_side": args.side_by_side, "saved_state": saved_state(), "machine": _machine(here["machine"])}
    store.open({**settings.as_json(), **served, **how, "trace": trace_id, **made, "versions": here["versions"]})
    if args.retry:
        _set_aside(store)
    check = not args.no_check and settings.temperature == 0 and is_demo
    reference = Reference(Path(models.target), store.folder / "agreed.json") if check else None
    source = PromptSource(settings.prompts, Path(models.target), settings.longest_prompt)
    # What is wrong with the prompts shows before a server is started.
    source.draw(1, "")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    within_s = None if args.minutes is None else args.minutes * 60
    code = 0
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as folder:
        fleet = Fleet(models, settings, Path(folder), args.side_by_side, args.port)
        bench = Bench(store, chosen, Measurement(settings, source, fleet, reference, args.around), _say)
        try:
            with fleet:
                bench.run(runs, within_s)
        except KeyboardInterrupt:
            _say("interrupted; the same command goes on from here")
            code = 130
        except (ServerFault, ServerError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            print(f"nightjar bench: {error}", file=sys.stderr)
            code = 1
    if bench.left_out:
        _say(f"could not be made: {', '.join(bench.left_out)}; the same command tries again")
        code = code or 1
    if any(store.all()):
        _say(f"written: {report.write(store)}")
    return code


def _machine(found: dict[str, Any]) -> str:
    """Runs that another kind of machine made can't be compared with those of this one."""
    return f"{found['cpu']}, {found['cores']} cores, {' '.join(found['vector'])}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nightjar bench", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except ConfigError as error:
        print(f"nightjar bench: {error}", file=sys.stderr)
        return 2


def _settings(args: argparse.Namespace) -> Settings:
    given = {f.name: getattr(args, f.name, None) for f in fields(Settings)}
    given["new_tokens"] = tuple(args.new_tokens) if args.new_tokens else None
    given["forced"] = False if args.natural else None
    settings = replace(Settings(), **{name: value for name, value in given.items() if value is not None})
    for name in ("time_scale", "rate_scale", "slo_ttft_s", "slo_tpot_s"):
        if getattr(settings, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must be above 0")
    fewest, most = settings.new_tokens
    if not 2 <= fewest <= most:
        raise ConfigError(f"--new-tokens {fewest} {most}: must be at least 2, and the most no less than the fewest")
    if settings.prompts not in ("own", "lengths") and not Path(settings.prompts).is_file():
        raise ConfigError(f"--prompts {settings.prompts}: no such file")
    return settings


def _trace(path: Path | None) -> tuple[list[TraceRow] | None, str]:
    if path is None:
        return None, ""
    return read_trace(path), hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _models(args: argparse.Namespace) -> tuple[Models, bool]:
    """What is served, and whether it is the demo pair."""
    if bool(args.model_path) != bool(args.draft_model_path):
        raise ConfigError("--model-path and --draft-model-path: name both, or neither for the demo pair")
    if args.model_path:
        target, draft = _folder(args.model_path), _folder(args.draft_model_path)
        return Models(target, draft, args.algorithm, tuple(args.flags)), False
    from sglang_nightjar.demo.pair import ensure_pair

    pair = ensure_pair()
    return Models(str(pair.target), str(pair.draft), args.algorithm, tuple(args.flags)), True


def _folder(model: str) -> str:
    """Where the model is, fetched if need be: its shape says how much KV cache a server without a draft gets."""
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model)
    except Exception as error:
        raise ConfigError(f"{model} is no folder, and can't be fetched as a model's name: {error}") from None


def _runs(scenarios: list[str], names: list[str] | None, repetitions: int) -> list[Run]:
    runs = order(scenarios, [arms.make(name) for name in names or arms.default_names()], repetitions)
    if names:
        return runs
    # Elsewhere the draft never has to leave, and the same policy would be measured twice.
    return [run for run in runs if run.arm.server != arms.KEEP or run.scenario == MEMORY]


def _chosen(scenarios: dict[str, Any], name: str) -> Any:
    if name not in scenarios:
        hint = " (it needs --trace)" if name == "trace" else ""
        raise ConfigError(f"--scenarios {name}: no such scenario{hint}; there are {', '.join(scenarios)}")
    return scenarios[name]


def _set_aside(store: Store) -> None:
    for result in list(store.all()):
        kinds = {fault["kind"] for fault in result["faults"]}
        if kinds == {"measurement"}:
            store.set_aside(result["run"])


def _print_list(scenarios: dict[str, Any]) -> None:
    print("arms")
    for name, text in arms.describe().items():
        print(f"  {name:<20}{text}")
    print("scenarios")
    for scenario in scenarios.values():
        print(f"  {scenario.name:<20}{scenario.question} ({scenario.seconds:.0f} s)")


def _say(text: str) -> None:
    print(f"nightjar bench: {text}", flush=True)
