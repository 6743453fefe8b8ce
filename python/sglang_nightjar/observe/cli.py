"""``nightjar status`` and ``nightjar policy show|set``, against a running server.

Exit codes: 0 done; 1 the server is not there or said no; 2 the command itself is wrong.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from sglang_nightjar.config import is_path
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.observe import client, render


def add_status(commands: Any) -> None:
    """Add ``status`` to the ``nightjar`` command."""
    parser = commands.add_parser("status", help="what a running server's speculation does, and why")
    _add_server_options(parser)
    parser.set_defaults(run=_guarded(_status))


def add_policy_commands(commands: Any) -> None:
    """Add ``show`` and ``set`` to ``nightjar policy``."""
    show = commands.add_parser("show", help="the policy in charge of a running server")
    _add_server_options(show)
    show.set_defaults(run=_guarded(_show))
    swap = commands.add_parser("set", help="put another policy in charge of a running server")
    swap.add_argument(
        "policy", metavar="NAME|PATH", help="a name (`nightjar policy list`), or a Python file on the server's machine"
    )
    swap.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the policy, its value written as in YAML: gamma=3; may be given again",
    )
    _add_server_options(swap, "the server's admin key (its --admin-api-key)")
    swap.set_defaults(run=_guarded(_set))


def _add_server_options(parser: argparse.ArgumentParser, key: str = "the server's API key, if it has one") -> None:
    parser.add_argument("--url", help=f"the server (default: {client.URL_ENV}, or {client.DEFAULT_URL})")
    parser.add_argument("--key", help=f"{key} (default: {client.KEY_ENV})")
    parser.add_argument("--json", action="store_true", help="for scripts: the server's answer as it is")


def _guarded(run: Any) -> Any:
    def guarded(args: argparse.Namespace) -> int:
        try:
            run(args, client.Client.at(args.url, args.key))
        except client.ServerError as error:
            if args.json:
                print(json.dumps({"error": str(error), **error.body}, indent=2))
            else:
                stays = error.body.get("policy", {})
                print(f"nightjar: {error}", file=sys.stderr)
                if stays:
                    print(f"nightjar: still in charge: {render.policy_line(stays)}", file=sys.stderr)
            return 1
        return 0

    return guarded


def _status(args: argparse.Namespace, server: client.Client) -> None:
    status = server.status()
    print(json.dumps(status, indent=2) if args.json else render.status(status, server.url))


def _show(args: argparse.Namespace, server: client.Client) -> None:
    policy = server.status()["policy"]
    print(json.dumps(policy, indent=2) if args.json else render.policy_line(policy))


def _set(args: argparse.Namespace, server: client.Client) -> None:
    where = {"path": str(Path(args.policy).absolute())} if is_path(args.policy) else {"name": args.policy}
    policy = server.set_policy({**where, "params": parse_params(args.param)})
    print(json.dumps(policy, indent=2) if args.json else f"now in charge: {render.policy_line(policy)}")


def parse_params(given: list[str]) -> dict[str, Any]:
    """``["gamma=3", ...]`` as a dict. Raises ConfigError."""
    params = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--param {text}: write KEY=VALUE, for example --param gamma=3")
        try:
            params[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--param {text}: {value!r} is no YAML value") from None
    return params
