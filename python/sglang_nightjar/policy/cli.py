"""``nightjar policy serve|list|keys`` and ``nightjar replay``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy.config_file import DEFAULT_POLICY

if TYPE_CHECKING:
    from sglang_nightjar.policy.replay import Replay


def add_policy_commands(verbs: argparse._SubParsersAction) -> None:
    """Adds ``serve``, ``list`` and ``keys`` to the commands of ``nightjar policy``."""
    from sglang_nightjar.policy.__main__ import add_flags

    serve = verbs.add_parser("serve", help="run a policy process that servers share (--nightjar-policy-endpoint)")
    add_flags(serve)
    serve.set_defaults(run=_serve)

    listing = verbs.add_parser("list", help="the policies that come with Nightjar")
    listing.add_argument("--json", action="store_true", help="for scripts")
    listing.set_defaults(run=_list)

    keys = verbs.add_parser("keys", help="make CURVE keys for a tcp:// endpoint")
    keys.add_argument("directory", type=Path, metavar="DIR")
    keys.set_defaults(run=_keys)


def add_replay(commands: argparse._SubParsersAction) -> None:
    """Adds ``nightjar replay``."""
    replay = commands.add_parser(
        "replay",
        help="run a policy over a decision log",
        description="Runs a policy over the telemetry of a decision log, and says what it would have done. The "
        "telemetry stays that of the policy that was in charge: this shows choices, not what would have come of them.",
    )
    replay.add_argument("log", type=Path, metavar="LOG", help="log.path of the config; rotated files are read too")
    replay.add_argument("--policy", default=DEFAULT_POLICY, metavar="NAME|PATH", help=f"default: {DEFAULT_POLICY}")
    replay.add_argument("--params", default="{}", metavar="JSON", help="the policy's parameters")
    replay.add_argument("--seed", type=int, default=0)
    form = replay.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for scripts")
    form.add_argument(
        "--table",
        choices=("ranges", "vllm", "trtllm"),
        help="print only the last γ table of each scheduler, in this form",
    )
    replay.set_defaults(run=_replay)


def _serve(args: argparse.Namespace) -> int:
    from sglang_nightjar.policy.__main__ import serve

    return serve(args)


def _list(args: argparse.Namespace) -> int:
    from sglang_nightjar.policy.loader import available

    found = available()
    if args.json:
        print(json.dumps([{"name": name, "summary": text} for name, text in found.items()]))
    else:
        print("\n".join(f"{name:10} {text}" for name, text in found.items()))
    return 0


def _keys(args: argparse.Namespace) -> int:
    from sglang_nightjar.policy.endpoint import make_keys

    print("\n".join(str(path) for path in make_keys(args.directory)))
    return 0


def _replay(args: argparse.Namespace) -> int:
    from sglang_nightjar.policy import loader, replay
    from sglang_nightjar.policy.__main__ import policy_flag
    from sglang_nightjar.policy.config_file import PolicySection

    try:
        params = json.loads(args.params)
    except ValueError as error:
        raise ConfigError(f"--params {args.params}: no JSON: {error}") from None
    spec = policy_flag(args.policy, PolicySection())
    result = replay.run(args.log, loader.make(spec.name, spec.path, params, args.seed))
    if not result.iterations:
        raise ConfigError(f"{args.log}: no telemetry in it (log.telemetry must be true)")
    if args.table:
        tables = {sender: _table(ranges, args.table) for sender, ranges in result.table.items()}
        print(json.dumps(tables, indent=1))
    elif args.json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        print(_render(result))
    return 0


def _table(ranges: tuple[tuple[int, int | None, int], ...], form: str) -> object:
    from sglang_nightjar.core import gammas
    from sglang_nightjar.core.messages import MAX_BATCH

    try:
        if form == "vllm":
            return gammas.to_vllm(ranges, MAX_BATCH)
        return gammas.to_trtllm(ranges) if form == "trtllm" else ranges
    except ValueError as error:
        raise ConfigError(f"--table {form}: {error}") from None


def _render(result: Replay) -> str:
    total = result.iterations
    lines = [
        f"{total} iterations, {result.decisions} decisions; the γ that ran in {result.same / total:.1%} of them",
        "γ        wanted     ran",
    ]
    for gamma in sorted(result.shares | result.ran):
        lines.append(f"{gamma:<6} {result.shares.get(gamma, 0) / total:8.1%} {result.ran.get(gamma, 0) / total:7.1%}")
    if result.known:
        lines.append(
            f"where the log knows both costs ({result.known / total:.1%}): "
            f"{result.wanted_ns / 1e6:.3f} ms/token wanted, {result.ran_ns / 1e6:.3f} as it ran"
        )
    if result.skipped:
        lines.append(f"{result.skipped} lines could not be read")
    return "\n".join(lines)
