"""The ``nightjar`` command."""

import argparse
import json
import sys
from pathlib import Path

from sglang_nightjar import __version__, benchmark
from sglang_nightjar.demo import cli as demo
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.observe import cli as observe
from sglang_nightjar.policy import cli as policy
from sglang_nightjar.profile import cli as profile
from sglang_nightjar.sim import cli as sim


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["bench"]:
        # It has options of its own, which are not in this package.
        return benchmark.run(argv[1:])
    parser = argparse.ArgumentParser(prog="nightjar", description="SGLang with adaptive speculative decoding.")
    parser.add_argument("--version", action="version", version=f"nightjar {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    _add_doctor(commands)
    observe.add_status(commands)
    _add_policy(commands)
    policy.add_replay(commands)
    profile.add_profile(commands)
    sim.add_simulate(commands)
    demo.add_parser(commands)
    commands.add_parser("bench", help="compare ways to choose γ under loads that move (nightjar bench --help)")
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except ConfigError as error:
        print(f"nightjar: {error}", file=sys.stderr)
        return 2


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "doctor", help="what this machine is, and whether serving would work (exit code 1: no)"
    )
    parser.add_argument("--json", action="store_true", help="for scripts: the findings and the table of SGLang's names")
    parser.add_argument("-v", "--verbose", action="store_true", help="also list every SGLang name that we rely on")
    own = parser.add_argument_group("what a draft of yours would free by going away, from the shapes alone")
    own.add_argument("--draft", type=Path, metavar="DIR", help="its checkpoint: EAGLE, EAGLE-3 or a complete model")
    own.add_argument("--target", type=Path, metavar="DIR", help="its target's checkpoint (the demo target)")
    own.add_argument("--kv-tokens", type=int, metavar="N", help="size of the KV cache with the draft there (32768)")
    parser.set_defaults(run=_doctor)


def _add_policy(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("policy", help="the policies, and which one is in charge of a running server")
    policy_commands = parser.add_subparsers(title="policy commands", required=True)
    observe.add_policy_commands(policy_commands)
    policy.add_policy_commands(policy_commands)


def _doctor(args: argparse.Namespace) -> int:
    from sglang_nightjar import doctor

    if args.draft is None and (args.target or args.kv_tokens):
        raise ConfigError("--target and --kv-tokens say where a draft would be used: add --draft")
    pair = doctor.Pair(args.target, args.draft, args.kv_tokens) if args.draft else None
    diagnosis = doctor.diagnose(pair)
    if args.json:
        print(json.dumps(diagnosis.as_json(), indent=2))
    else:
        print(doctor.render(diagnosis, args.verbose, colour=sys.stdout.isatty()))
    return 0 if diagnosis.ok else 1


if __name__ == "__main__":
    sys.exit(main())
