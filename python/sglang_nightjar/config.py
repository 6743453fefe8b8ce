"""Nightjar's own command line flags: every one does something, any other ``--nightjar-*`` is refused by name.

Each flag has an environment variable that says the same, for programs that have no command line of ours
(``sglang.Engine``, ``sglang.Runtime``); a flag wins over its variable.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy import config_file
from sglang_nightjar.policy.config_file import Config, PolicySection

PREFIX = "--nightjar-"
STRICT_ENV = "NIGHTJAR_STRICT"
CONFIG_ENV = "NIGHTJAR_CONFIG"
POLICY_ENV = "NIGHTJAR_POLICY"
POLICY_ENDPOINT_ENV = "NIGHTJAR_POLICY_ENDPOINT"
# Set by us, never by the user: where the schedulers find the policy process. Not set: nothing steers them.
ENDPOINT_ENV = "NIGHTJAR_ENDPOINT"
# Set by us: an id of this server that is unique per start; its schedulers and tokenizer processes share it.
SERVER_ENV = "NIGHTJAR_SERVER"

OFF = "off"


@dataclass(frozen=True)
class Options:
    """What the user asked of Nightjar.

    Attributes:
        strict: refuse to start if this SGLang is not the one that Nightjar was made for.
        config: absolute path of the YAML config; None: the defaults.
        policy: name of a policy, or absolute path of a file with one; None: the config's, or the default.
        policy_endpoint: ZMQ endpoint of a policy process that already runs; None: start one of our own.
    """

    strict: bool = False
    config: str | None = None
    policy: str | None = None
    policy_endpoint: str | None = None

    def export(self) -> None:
        """Hand the options to the processes that SGLang starts; they inherit the environment and nothing else."""
        os.environ[STRICT_ENV] = "1" if self.strict else "0"
        for name, value in (
            (CONFIG_ENV, self.config),
            (POLICY_ENV, self.policy),
            (POLICY_ENDPOINT_ENV, self.policy_endpoint),
        ):
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def from_environment(environment: Mapping[str, str] = os.environ) -> Options:
    """The options that the environment variables set. Raises ConfigError for what can't work."""
    return _checked(
        Options(
            strict=environment.get(STRICT_ENV) == "1",
            config=environment.get(CONFIG_ENV) or None,
            policy=environment.get(POLICY_ENV) or None,
            policy_endpoint=environment.get(POLICY_ENDPOINT_ENV) or None,
        ),
        {"config": CONFIG_ENV, "policy": POLICY_ENV, "policy_endpoint": POLICY_ENDPOINT_ENV},
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add Nightjar's flags to ``parser``, as a group of their own in ``--help``."""
    group = parser.add_argument_group("Nightjar")
    group.add_argument(
        "--nightjar-strict",
        action="store_true",
        help="Refuse to start if this SGLang lacks a name that Nightjar relies on, instead of serving as plain SGLang.",
    )
    group.add_argument(
        "--nightjar-config",
        metavar="FILE",
        help=f"YAML file with Nightjar's settings (docs/configuration.md); also {CONFIG_ENV}.",
    )
    group.add_argument(
        "--nightjar-policy",
        metavar="NAME|PATH",
        help="The policy that chooses how many tokens are drafted: a name (`nightjar policy list`) or a Python file; "
        f"wins over the config. 'off': nothing is chosen, plain SGLang. Also {POLICY_ENV}.",
    )
    group.add_argument(
        "--nightjar-policy-endpoint",
        metavar="ENDPOINT",
        help="Use the policy process that already runs at this ZMQ endpoint (`nightjar policy serve`) instead of "
        f"starting one; several servers may share it. Also {POLICY_ENDPOINT_ENV}.",
    )


def split(argv: list[str]) -> tuple[Options, list[str]]:
    """Take Nightjar's flags out of ``argv``; return them and the rest, which is SGLang's.

    What no flag says, its environment variable may. Raises ConfigError for a ``--nightjar-*`` flag that does not
    exist, and for values that can't work.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_flags(parser)
    known, rest = parser.parse_known_args(argv)
    for word in rest:
        if word.startswith(PREFIX):
            allowed = ", ".join(sorted(flag for action in parser._actions for flag in action.option_strings))
            raise ConfigError(f"there is no flag {word.split('=')[0]}; Nightjar's flags are: {allowed}")
    given = {name: getattr(known, f"nightjar_{name}") for name in ("config", "policy", "policy_endpoint")}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in (STRICT_ENV, *(_ENV[field] for field in given if given[field] is not None))
    }
    from_env = from_environment(environment)
    merged = {name: value if value is not None else getattr(from_env, name) for name, value in given.items()}
    return _checked(Options(strict=known.nightjar_strict, **merged), _FLAGS), rest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(message)


_ENV = {"config": CONFIG_ENV, "policy": POLICY_ENV, "policy_endpoint": POLICY_ENDPOINT_ENV}
_FLAGS = {name: PREFIX + name.replace("_", "-") for name in _ENV}
_OTHERS_POLICY = (
    "the policy process at {} has a policy of its own, which other servers may share. Leave this out, and use "
    "`nightjar policy set` to change it"
)


def _checked(options: Options, names: Mapping[str, str]) -> Options:
    """``options`` with absolute paths; ``names`` says how the user knows each option."""
    config, policy, endpoint = options.config, options.policy, options.policy_endpoint
    if config is not None:
        if not Path(config).is_file():
            raise ConfigError(f"{names['config']} {config}: there is no such file")
        config = str(Path(config).resolve())
    if policy is not None and is_path(policy):
        if not Path(policy).is_file():
            raise ConfigError(f"{names['policy']} {policy}: there is no such file")
        policy = str(Path(policy).resolve())
    if endpoint is not None:
        if not endpoint.startswith(("ipc://", "tcp://")):
            raise ConfigError(f"{names['policy_endpoint']} {endpoint}: an endpoint starts with ipc:// or tcp://")
        if policy not in (None, OFF):
            raise ConfigError(f"{names['policy']} {policy}: {_OTHERS_POLICY.format(endpoint)}")
    return Options(options.strict, config, policy, endpoint)


def load_file(path: str | None) -> Config:
    """The YAML config at ``path``, or the defaults. Raises ConfigError."""
    return Config() if path is None else config_file.load(Path(path))


def shared_endpoint(options: Options, settings: Config) -> str | None:
    """Endpoint of the policy process that already runs; None: one of our own is wanted.

    Raises ConfigError if a policy was named by flag or variable, too: `_checked` has not seen the file's endpoint.
    """
    if options.policy_endpoint is not None:
        return options.policy_endpoint
    endpoint = settings.link.endpoint
    if endpoint is not None and options.policy not in (None, OFF):
        raise ConfigError(
            f"{_FLAGS['policy']} ({POLICY_ENV}) {options.policy}: {_OTHERS_POLICY.format(endpoint)}; or leave "
            f"link.endpoint out of {options.config} to have a policy process of this server's own"
        )
    return endpoint


def wanted_policy(options: Options, settings: Config) -> str:
    """Name or path of the policy that was asked for."""
    return options.policy or settings.policy.path or settings.policy.name or ""


def policy_section(options: Options, settings: Config) -> PolicySection:
    """The policy that a policy process of our own has at its start: the config's, unless an option names another."""
    name = options.policy
    if name is None or name in (settings.policy.name, settings.policy.path):
        return settings.policy
    return PolicySection(path=name) if is_path(name) else PolicySection(name=name)


def is_path(policy: str) -> bool:
    """Whether this names a policy by its file and not by its name."""
    return policy.endswith(".py") or "/" in policy
