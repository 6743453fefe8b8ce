"""Refuse at the start what the policy process would refuse later, out of sight: a policy, its parameters, its endpoint.

``python -m sglang_nightjar.policy_check`` is the part that runs a user's policy file, which must not run in the server.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import zmq

from sglang_nightjar import config
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy import endpoint as endpoints
from sglang_nightjar.policy import loader
from sglang_nightjar.policy.config_file import Config, PolicySection

# Seconds for a user's file to be imported and its policy to be made.
_PATIENCE = 20.0


def check(options: config.Options) -> None:
    """Raise ConfigError for what in the options and their config can't work."""
    settings = config.load_file(options.config)
    policy = config.wanted_policy(options, settings)
    if policy == config.OFF:
        return
    if endpoint := config.shared_endpoint(options, settings):
        _check_endpoint(endpoint, settings)
        return
    for section in (config.policy_section(options, settings), *settings.shadow):
        if section.path is None:
            loader.make(section.name, None, section.params, section.seed)
        else:
            _check_file(section)


def check_steerable(options: config.Options, args: Any) -> None:
    """Raise ConfigError if a policy was named for a server on which no policy can choose γ.

    ``args`` is anything with the attributes of SGLang's ServerArgs, as the user gave them.
    """
    if options.policy in (None, config.OFF):
        return
    if args.speculative_algorithm is None:
        raise ConfigError(
            f"--nightjar-policy {options.policy}: this server does not speculate, so there is nothing to choose; add "
            "--speculative-algorithm and a draft"
        )
    if args.speculative_adaptive:
        raise ConfigError(
            f"--nightjar-policy {options.policy} and --speculative-adaptive both choose γ: leave one of them out"
        )


def _check_endpoint(endpoint: str, settings: Config) -> None:
    context = zmq.Context()
    try:
        endpoints.connect(context, endpoint, Path(settings.link.keys) if settings.link.keys else None).close(0)
    finally:
        context.term()


def _check_file(section: PolicySection) -> None:
    command = [sys.executable, "-m", "sglang_nightjar.policy_check"]
    given = json.dumps([section.path, section.params, section.seed])
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"policy.path: {section.path} is not loaded within {_PATIENCE:g} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(said[-1])


def _main() -> None:
    path, params, seed = json.load(sys.stdin)
    try:
        loader.make(None, path, params, seed)
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    except Exception as error:
        raise SystemExit(f"policy.path: {path} makes no policy: {type(error).__name__}: {error}") from None


if __name__ == "__main__":
    _main()
