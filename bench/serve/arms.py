"""What is compared: ways to choose γ, and which kind of server each of them needs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from sglang_nightjar.config import is_path
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy.config_file import Config
from sglang_nightjar.policy.loader import available, find

#: Kinds of server. ``steered`` runs any policy, ``keep`` too but never gives the draft's memory away; ``static-N`` has
#: γ=N from SGLang's own flags.
PLAIN, ADAPTIVE, STEERED, KEEP = "plain", "adaptive", "steered", "keep"

#: Arms that everything is compared with.
NONE, SGLANG_ADAPTIVE = "none", "sglang-adaptive"
#: Policies that claim something; the others are there to be compared with.
OURS = ("model", "nightjar")
_STATIC = (1, 2, 3, 5)
_NOT_ARMS_BY_THEMSELVES = ("off", "static", "table")
_KEEP = "+keep"


@dataclass(frozen=True)
class Arm:
    """One way to choose γ.

    Attributes:
        name: as on the command line.
        label: as in reports.
        server: the kind of server that it runs on. Arms with equal kinds share one.
        policy: what to put in charge of that server first: ``{"name" | "path", "params"}``; None if there is nothing.
    """

    name: str
    label: str
    server: str
    policy: dict[str, Any] | None = None

    @property
    def slug(self) -> str:
        """The name, fit for the name of a file."""
        return "".join(c if c.isalnum() or c in "-_" else "_" for c in self.name)


def default_names() -> list[str]:
    """No speculation, each static γ, SGLang's own rule, and each policy of ours that learns or adapts; those that claim
    something also with a draft that stays on the device."""
    policies = [name for name in available() if name not in _NOT_ARMS_BY_THEMSELVES]
    # Those that claim something come last.
    policies.sort(key=lambda name: (name in OURS, name))
    kept = [name + _KEEP for name in OURS if KEEP in kinds_of_policies()]
    return [NONE, *(f"static-{gamma}" for gamma in _STATIC), SGLANG_ADAPTIVE, *policies, *kept]


def describe() -> dict[str, str]:
    """Every name that `make` takes, and what it is."""
    named = {
        NONE: "SGLang without speculation",
        "off": "γ=0 on a server with a draft",
        "static-N": "γ=N (from 1) on the same server as the policies",
        "sglang-static-N": "γ=N by SGLang's own flags, on a server of its own",
        SGLANG_ADAPTIVE: "SGLang's own rule, --speculative-adaptive",
    }
    policies = {name: text for name, text in available().items() if name not in _NOT_ARMS_BY_THEMSELVES}
    forms = {"FILE.py": "a policy of yours", "NAME:key=value,...": "a policy with parameters"}
    return named | policies | forms | {"POLICY+keep": "a policy whose draft never leaves the device"}


def make(name: str) -> Arm:
    """The arm called ``name``. Raises ConfigError with what is allowed."""
    if name == NONE:
        return Arm(name, "no speculation", PLAIN)
    if name == SGLANG_ADAPTIVE:
        return Arm(name, "`--speculative-adaptive`", ADAPTIVE)
    if (gamma := _gamma(name, "sglang-static-")) is not None:
        return Arm(name, f"SGLang, γ={gamma}", f"static-{gamma}")
    if (gamma := _gamma(name, "static-")) is not None:
        return Arm(name, f"static γ={gamma}", STEERED, {"name": "static", "params": {"gamma": gamma}})
    if name == "off":
        return Arm(name, "γ=0, draft loaded", STEERED, {"name": "off", "params": {}})
    if name.endswith(_KEEP) and KEEP in kinds_of_policies():
        arm = make(name.removesuffix(_KEEP))
        if arm.server == STEERED:
            return replace(arm, name=name, label=f"{arm.label}, draft kept", server=KEEP)
    policy, _, given = name.partition(":")
    where = "path" if is_path(policy) else "name"
    try:
        find(*((None, policy) if where == "path" else (policy, None)))
    except ConfigError:
        raise ConfigError(f"--arms {name}: no such arm; there are {', '.join(describe())}, N from 1") from None
    return Arm(name, name, STEERED, {where: policy, "params": _params(name, given)})


def kinds_of_policies() -> tuple[str, ...]:
    """Kinds of server that have a policy process."""
    return (STEERED, KEEP) if any(field.name == "memory" for field in fields(Config)) else (STEERED,)


def _gamma(name: str, prefix: str) -> int | None:
    number = name.removeprefix(prefix)
    return int(number) if number != name and number.isdigit() and int(number) > 0 else None


def _params(name: str, given: str) -> dict[str, Any]:
    params = {}
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--arms {name}: write NAME:key=value,key=value")
        params[key] = yaml.safe_load(value)
    return params
