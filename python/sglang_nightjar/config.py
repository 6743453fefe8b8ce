"""Nightjar's own command line flags: every one does something, any other ``--nightjar-*`` is refused by name."""

import argparse
import os
from dataclasses import dataclass

from sglang_nightjar.errors import ConfigError

PREFIX = "--nightjar-"
STRICT_ENV = "NIGHTJAR_STRICT"


@dataclass(frozen=True)
class Options:
    """What the user asked of Nightjar.

    Attributes:
        strict: refuse to start if this SGLang is not the one that Nightjar was made for.
    """

    strict: bool = False

    def export(self) -> None:
        """Hand the options to the processes that SGLang starts; they inherit the environment and nothing else."""
        os.environ[STRICT_ENV] = "1" if self.strict else "0"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add Nightjar's flags to ``parser``, as a group of their own in ``--help``."""
    group = parser.add_argument_group("Nightjar")
    group.add_argument(
        "--nightjar-strict",
        action="store_true",
        help="Refuse to start if this SGLang lacks a name that Nightjar relies on, instead of serving as plain SGLang.",
    )


def split(argv: list[str]) -> tuple[Options, list[str]]:
    """Take Nightjar's flags out of ``argv``; return them and the rest, which is SGLang's.

    Raises ConfigError for a ``--nightjar-*`` flag that does not exist.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser)
    known, rest = parser.parse_known_args(argv)
    for word in rest:
        if word.startswith(PREFIX):
            allowed = ", ".join(sorted(flag for action in parser._actions for flag in action.option_strings))
            raise ConfigError(f"there is no flag {word.split('=')[0]}; Nightjar's flags are: {allowed}")
    return Options(strict=known.nightjar_strict), rest
