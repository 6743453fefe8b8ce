"""``nightjar simulate run|fit|servers``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy.config_file import DEFAULT_POLICY

if TYPE_CHECKING:
    from sglang_nightjar.sim.world import Result


def add_simulate(commands: argparse._SubParsersAction) -> None:
    """Adds ``nightjar simulate``."""
    parser = commands.add_parser(
        "simulate", help="policies on a simulated server, in virtual time", description="See docs/simulator.md."
    )
    verbs = parser.add_subparsers(title="simulate commands", required=True)

    run = verbs.add_parser("run", help="a load on a server, once for each policy")
    run.add_argument("--server", default="demo-cpu", metavar="NAME|FILE", help="default: demo-cpu; see `servers`")
    run.add_argument("--load", type=Path, metavar="FILE", help="YAML; without it, one of the following three")
    run.add_argument("--clients", nargs="+", metavar="SECONDS:CLIENTS", help="a closed loop, by phases")
    run.add_argument("--rates", nargs="+", metavar="SECONDS:RATE", help="Poisson arrivals per second, by phases")
    run.add_argument("--trace", metavar="FILE", help="TIMESTAMP,ContextTokens,GeneratedTokens")
    run.add_argument("--time-scale", type=float, default=1.0, help="stretch the trace's time")
    run.add_argument("--rate-scale", type=float, default=1.0, help="how many times each of its requests comes")
    run.add_argument(
        "--policies", nargs="+", default=[DEFAULT_POLICY], metavar="NAME|PATH", help=f"default: {DEFAULT_POLICY}"
    )
    run.add_argument(
        "--params", default="{}", metavar="JSON", help='parameters by policy: \'{"static": {"gamma": 3}}\''
    )
    run.add_argument("--replicas", type=int, default=1, help="servers that share the policy")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--json", action="store_true", help="for scripts")
    run.set_defaults(run=_run)

    fit = verbs.add_parser("fit", help="make a server of a decision log")
    fit.add_argument("log", type=Path, metavar="LOG", help="log.path of the config; .gz is read, too")
    fit.add_argument("-o", "--output", type=Path, metavar="FILE", help="YAML; default: standard output")
    fit.add_argument("--name", default="", help="of the server")
    fit.set_defaults(run=_fit)

    servers = verbs.add_parser("servers", help="the servers that come with Nightjar, and where their figures are from")
    servers.add_argument("--show", metavar="NAME", help="print one as YAML, to be changed")
    servers.set_defaults(run=_servers)


def _run(args: argparse.Namespace) -> int:
    from sglang_nightjar.policy import loader
    from sglang_nightjar.policy.__main__ import policy_flag
    from sglang_nightjar.policy.config_file import PolicySection
    from sglang_nightjar.sim.builtin import find
    from sglang_nightjar.sim.world import simulate

    setup, load = find(args.server), _load(args)
    try:
        params = json.loads(args.params)
    except ValueError as error:
        raise ConfigError(f"--params {args.params}: no JSON: {error}") from None
    if not isinstance(params, dict) or not params.keys() <= set(args.policies):
        raise ConfigError(f"--params {args.params}: must map names of --policies to their parameters")
    if args.replicas < 1:
        raise ConfigError(f"--replicas {args.replicas}: must be at least 1")
    results = {}
    for name in args.policies:
        spec = policy_flag(name, PolicySection())
        policy = loader.make(spec.name, spec.path, params.get(name, {}), args.seed)
        # To the last answer: whose requests pile up would otherwise show the latencies of the first ones only.
        results[name] = simulate(setup, load, policy, args.seed, args.replicas, drain=True)
    if args.json:
        print(json.dumps({name: dataclasses.asdict(result) for name, result in results.items()}))
    else:
        print(_render(results))
    return 0


def _load(args: argparse.Namespace) -> Any:
    from sglang_nightjar.core import strict
    from sglang_nightjar.sim.loads import LoadSettings
    from sglang_nightjar.sim.setup import read_yaml

    given = [flag for flag in ("load", "clients", "rates", "trace") if getattr(args, flag) is not None]
    if len(given) != 1:
        raise ConfigError(f"exactly one of --load, --clients, --rates, --trace must be given, not {given or 'none'}")
    if args.load is not None:
        return strict.build(LoadSettings, read_yaml(args.load), "")
    if args.trace is not None:
        settings = {"trace": args.trace, "seconds": 1e9, "time_scale": args.time_scale, "rate_scale": args.rate_scale}
    else:
        settings = {given[0]: [_phase(text) for text in getattr(args, given[0])]}
    return strict.build(LoadSettings, settings, f"--{given[0]}")


def _phase(text: str) -> list[float]:
    try:
        seconds, value = (float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"{text!r} must be SECONDS:NUMBER, such as 30:4") from None
    return [seconds, value]


def _render(results: dict[str, Result]) -> str:
    lines = ["policy        tokens/s  of oracle's  batch  mean latency  p95 TTFT  p95 TPOT  switches  retracted  γ"]
    for name, r in results.items():
        shares = ", ".join(f"{gamma}: {share:.0%}" for gamma, share in r.shares.items())
        lines.append(
            f"{name[-12:]:12} {r.rate:9.1f} {r.efficiency:12.2%} {r.batch_size:6.1f} {_ms(r.latency_ms, 'mean'):>13} "
            f"{_ms(r.ttft_ms, 'p95'):>9} {_ms(r.tpot_ms, 'p95'):>9} {r.switches:9} {r.retractions:10}  {shares}"
        )
    return "\n".join(lines)


def _ms(spread: dict[str, float], name: str) -> str:
    return f"{spread[name]:.1f} ms" if spread else "none"


def _fit(args: argparse.Namespace) -> int:
    from sglang_nightjar.sim.fit import fit

    found = fit(args.log, args.name)
    text = found.setup.dump()
    print(
        f"# {found.iterations} iterations; error of the cells: median {found.error[0]:.1%}, 95% below "
        f"{found.error[1]:.1%}",
        flush=True,
    )
    if args.output is None:
        print(text)
    else:
        args.output.write_text(text)
        print(f"# written to {args.output}")
    return 0


def _servers(args: argparse.Namespace) -> int:
    from sglang_nightjar.sim.builtin import builtin, names

    if args.show:
        print(builtin(args.show).dump())
    else:
        print("\n".join(f"{name:12} {builtin(name).source}" for name in names()))
    return 0
