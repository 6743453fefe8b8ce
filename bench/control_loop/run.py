"""The control loop under a load that surges: what γ does, and what it is worth against every fixed choice.

Each round runs the profile once per arm, in another order each time. With ``--side-by-side`` all four servers are up
at once (2.5 GB each) and each round visits all of them; otherwise one is up at a time and runs all its rounds, which
needs a machine that stays as fast as it was. ``--one-server`` needs neither: it changes the policy of one server
between runs, so that what else the machine does falls on all policies alike.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench.control_loop.arms import Arm, arms, arms_of_one_server, log_of, start
from bench.control_loop.load import Load, Phase
from bench.control_loop.report import write_report
from bench.control_loop.timeline import gamma_by_clients, read
from bench.demo_server import Server
from bench.provenance import ROOT, provenance

PROFILE = ("15:1", "5:8", "25:24", "5:8", "15:1")


def measure(arm: Arm, server: Server, folder: Path, number: int, args: argparse.Namespace) -> dict[str, object]:
    """One run of the profile."""
    arm.prepare(server)
    out = folder / f"load{number}.json"
    command = [*shlex.split(args.around), sys.executable, "-m", "bench.control_loop.load", server.url, str(out)]
    command += ["--profile", *args.profile, "--new-tokens", str(args.new_tokens), "--seed", str(args.seed + number)]
    subprocess.run(command, cwd=ROOT, check=True)
    load = Load.read(out)
    result = {
        "arm": arm.name,
        "round": number,
        "began": load.began,
        "phases": [asdict(phase) for phase in load.phases],
        "rate": load.rate,
        "rates": load.rates(),
        "requests": len(load.answers),
        "failed": load.failed,
    }
    shown = ", ".join(f"{p.clients}: {rate:.1f}" for p, rate in zip(load.phases, result["rates"], strict=True))  # type: ignore[call-overload]
    print(f"round {number}, {arm.name}: {load.rate:.1f} tokens/s ({shown}), {load.failed} failed", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gammas", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", nargs="+", default=list(PROFILE), metavar="SECONDS:CLIENTS")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--arms", nargs="+", help="only these, by name")
    parser.add_argument("--side-by-side", action="store_true", help="all servers at once; 2 GB of memory each")
    parser.add_argument("--one-server", action="store_true", help="put all policies in charge of one server, in turn")
    parser.add_argument("--around", default="", help="a command to run each load under, such as 'taskset -c 2'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    available = (arms_of_one_server if args.one_server else arms)(args.gammas)
    chosen = [arm for arm in available if not args.arms or arm.name in args.arms]
    names = list(dict.fromkeys(arm.server for arm in chosen))
    draw, runs = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in names}
        for group in [names] if args.side_by_side else [[name] for name in names]:
            with ExitStack() as stack:
                servers = {}
                for name in group:
                    print(f"starting the server: {name}", flush=True)
                    servers[name] = stack.enter_context(start(name, folders[name]))
                    servers[name].generate("Once upon a time", max_new_tokens=8)
                own = [arm for arm in chosen if arm.server in group]
                for number in range(args.rounds):
                    for arm in draw.sample(own, len(own)):
                        runs.append(measure(arm, servers[arm.server], folders[arm.server], number, args))
                    # After each round: a long run that is cut off still has what it has measured.
                    write(runs, folders.get("nightjar"), args)
    print(f"written to {args.out}")


def write(runs: list[dict], nightjar: Path | None, args: argparse.Namespace) -> None:
    """Results, table and pictures of what has been measured; ``nightjar`` is the folder of that policy's server."""
    own = [run for run in runs if run["arm"] == "nightjar"]
    timelines = [timeline(log_of(nightjar), own)] if nightjar is not None and own else []
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    result = {"provenance": provenance(settings=settings), "runs": runs, "timelines": timelines}
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    write_report(result, args.out)


def timeline(log: Path, runs: list[dict]) -> dict[str, object]:
    """Per run and second what the decision log says."""
    seconds = read(log)
    parts = []
    for run in runs:
        phases = [Phase(**phase) for phase in run["phases"]]
        end = run["began"] + sum(phase.seconds for phase in phases)
        parts.append(
            {
                "round": run["round"],
                "gamma_by_phase": gamma_by_clients(seconds, run["began"], [(p.seconds, p.clients) for p in phases]),
                "seconds": [
                    {
                        "at": at - run["began"],
                        "batch_size": second.batch_size,
                        "gamma": second.gamma,
                        "tokens_per_s": second.committed,
                        "accepted_length": second.accepted_length,
                    }
                    for at, second in sorted(seconds.items())
                    if run["began"] <= at < end
                ],
            }
        )
    return {"arm": "nightjar", "rounds": parts}


if __name__ == "__main__":
    main()
