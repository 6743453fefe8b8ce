"""The one table of every SGLang name that Nightjar relies on, and the check that each is still what we expect.

Every module that touches SGLang declares the names it relies on as ``SEAMS``; ``table`` collects them. A changed SGLang
then shows up at load, by name, and not as a wrong answer later.
"""

import dataclasses
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

SUPPORTED_SGLANG = "0.5.17"

Kind = Literal["call", "field", "hook"]


@dataclass(frozen=True)
class Seam:
    """One SGLang name that we rely on.

    Attributes:
        target: ``"package.module:qualified.name"``. For a dataclass field, ``"module:Class.field"``.
        params: names of the parameters in order, without a leading ``self``; None if it is not a function or if
            only its presence matters.
        kind: "call" if we call it, "field" if we read or write it, "hook" if we register it in SGLang's
            HookRegistry (then ``plugin.verify`` asserts that SGLang really applied the hook).
        why: what we need it for, or what breaks without it; a clause.
    """

    target: str
    params: tuple[str, ...] | None
    kind: Kind
    why: str

    @property
    def dotted(self) -> str:
        """The form that SGLang's HookRegistry uses."""
        return self.target.replace(":", ".")


# The modules outside this package that rely on SGLang's names.
_OTHER_USERS = (
    "sglang_nightjar.agent.sampler",
    "sglang_nightjar.agent.process",
    "sglang_nightjar.draft.capacity",
    "sglang_nightjar.draft.elastic_memory",
    "sglang_nightjar.draft.extend",
    "sglang_nightjar.draft.fence",
    "sglang_nightjar.draft.plain_decode",
    "sglang_nightjar.draft.inputs",
    "sglang_nightjar.draft.pool_tail",
    "sglang_nightjar.draft.slot_holders",
    "sglang_nightjar.draft.upkeep",
    "sglang_nightjar.launch_server",
    "sglang_nightjar.plugin",
    "sglang_nightjar.preflight",
)


def check(seam: Seam) -> str | None:
    """Return None if SGLang has the name as expected, otherwise what is wrong, as one clause."""
    module_name, _, qualname = seam.target.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:
        return f"module {module_name} can't be imported ({type(error).__name__}: {error})"
    *owners, name = qualname.split(".")
    for part in owners:
        if not hasattr(found, part):
            return f"{module_name} has no {part}"
        found = getattr(found, part)
    if not hasattr(found, name):
        return None if seam.kind == "field" and name in _declared_fields(found) else f"{module_name} has no {qualname}"
    if seam.params is None:
        return None
    got = _parameter_names(getattr(found, name))
    return None if got == seam.params else f"expected parameters {_show(seam.params)}, found {_show(got)}"


def patch_modules(role: str | None = None, is_cpu: bool | None = None) -> list[ModuleType]:
    """The patch modules, by name; with ``role`` and ``is_cpu``, only those meant for that process and engine.

    A module may say where it belongs with ``ROLES`` (see ``agent.process.role``; default: everywhere) and
    ``CPU_ONLY`` (default: False).
    """
    import sglang_nightjar.patches as package

    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name != "seams")
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return [
        module
        for module in modules
        if (role is None or role in getattr(module, "ROLES", (role,)))
        and (is_cpu is not False or not getattr(module, "CPU_ONLY", False))
    ]


def table(modules: Iterable[ModuleType] | None = None) -> list[Seam]:
    """All seams of ``modules`` (default: of all that touch SGLang), sorted by target, each once."""
    if modules is None:
        modules = [*patch_modules(), *map(importlib.import_module, _OTHER_USERS)]
    return sorted({seam for module in modules for seam in module.SEAMS}, key=lambda seam: seam.target)


def problems(seams: Iterable[Seam]) -> dict[Seam, str]:
    """The seams that are not as expected, each with what is wrong."""
    return {seam: problem for seam in seams if (problem := check(seam))}


def report(broken: dict[Seam, str]) -> str:
    """What a person needs when names are broken: the version, every broken name, and what to do."""
    version = importlib.metadata.version("sglang")
    lines = [f"Nightjar does not fit this SGLang ({version}; it was made for {SUPPORTED_SGLANG}). Broken names:"]
    lines += [f"  {seam.target}: {problem} ({seam.why})" for seam, problem in broken.items()]
    lines.append(
        f"What to do: install the version it was made for (pip install --no-deps sglang=={SUPPORTED_SGLANG}), "
        "or a Nightjar made for yours. `nightjar doctor` shows the whole table."
    )
    return "\n".join(lines)


def _declared_fields(owner: object) -> set[str]:
    """Names of a dataclass's fields; those without a default are not attributes of the class."""
    return {field.name for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else set()


def _parameter_names(function: object) -> tuple[str, ...] | None:
    """Parameter names without ``self`` or ``cls``, seen through our own hooks; None if it is not a Python callable."""
    try:
        names = tuple(inspect.signature(inspect.unwrap(function)).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return names[1:] if names[:1] in (("self",), ("cls",)) else names


def _show(names: tuple[str, ...] | None) -> str:
    return "none (not a Python function)" if names is None else f"({', '.join(names)})"
