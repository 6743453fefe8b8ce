"""From a name or a path to the one policy class in it."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path

import sglang_nightjar.policies
from sglang_nightjar.core import strict
from sglang_nightjar.core.policy import Policy
from sglang_nightjar.errors import ConfigError


def available() -> dict[str, str]:
    """Our policies by name, each with the first line of its module; imports none of them."""
    found = {}
    for module in pkgutil.iter_modules(sglang_nightjar.policies.__path__):
        spec = importlib.util.find_spec(f"sglang_nightjar.policies.{module.name}")
        text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        summary = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        found[module.name] = summary.partition(": ")[2] or summary
    return found


def find(name: str | None, path: str | None) -> None:
    """Raises ConfigError if there is no such policy; looks no further."""
    if path is None:
        if name not in available():
            raise ConfigError(f"policy.name: {strict.show(name)} must be one of {', '.join(available())}")
    elif not path.endswith(".py") or not Path(path).is_file():
        raise ConfigError(f"policy.path: {strict.show(path)} must be a Python file (.py) that is there")


def load_class(name: str | None, path: str | None) -> type[Policy]:
    """The policy class. Raises ConfigError; whatever a user's file raises while it is imported becomes one, too."""
    find(name, path)
    if path is None:
        return _only_class(importlib.import_module(f"sglang_nightjar.policies.{name}"), str(name))
    file = Path(path)
    spec = importlib.util.spec_from_file_location(f"nightjar_user_policy_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    try:
        # Compiled here, not by the loader: its cache is keyed by whole seconds, and misses a second save.
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    except Exception as error:
        raise ConfigError(f"policy.path: {path} can't be imported: {type(error).__name__}: {error}") from None
    return _only_class(module, path)


def make(name: str | None, path: str | None, params: dict[str, object], seed: int) -> Policy:
    """The policy, with its parameters checked. Raises ConfigError, and whatever its constructor raises."""
    kind = load_class(name, path)
    return kind(strict.build(kind.Params, params, "policy.params"), seed=seed)


def _only_class(module: object, where: str) -> type[Policy]:
    own = getattr(module, "__name__", "")
    found = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Policy) and kind is not Policy and kind.__module__ == own
    ]
    if len(found) != 1:
        names = ", ".join(kind.__name__ for kind in found) or "none"
        raise ConfigError(f"policy: {where} must define one class that derives from Policy, not {names}")
    [kind] = found
    if not isinstance(kind.name, str) or not kind.name.isprintable() or not 1 <= len(kind.name) <= 64:
        raise ConfigError(f"policy: {where}: {kind.__name__}.name must be a text of 1 to 64 printable characters")
    return kind
