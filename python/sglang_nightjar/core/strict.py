"""Settings from YAML or JSON into dataclasses: strict keys, types and ranges, and errors that say all three."""

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from sglang_nightjar.errors import ConfigError

T = TypeVar("T")


def build(kind: type[T], value: Any, where: str) -> T:
    """An instance of the dataclass ``kind`` from the mapping ``value``; None counts as an empty one.

    Fields may be bool, int, float, str, a dataclass, ``X | None``, ``tuple[X, ...]``, ``dict[str, Any]`` or Any, and
    may carry ``metadata={"min": ..., "max": ...}``. ``where`` is the key of ``value``, "" for the whole file.

    Raises ConfigError with the key, its value and what is allowed.
    """
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'the config'}: {show(value)} must be a mapping of settings")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            allowed = ", ".join(fields) or "none"
            raise ConfigError(f"{_join(where, key)}: there is no such setting; allowed are: {allowed}")
    made = {}
    for key, item in value.items():
        made[key] = _convert(hints[key], item, _join(where, key), fields[key].metadata)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in made:
            raise ConfigError(f"{_join(where, name)}: it must be set")
    try:
        return kind(**made)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def show(value: Any) -> str:
    """``value`` for an error message, not too long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str, limits: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        [inner] = [argument for argument in arguments if argument is not type(None)]
        return _convert(inner, value, where, limits)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {show(value)} must be a list")
        return tuple(_convert(arguments[0], item, f"{where}[{index}]", limits) for index, item in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {show(value)} must be a mapping")
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    return _scalar(hint, value, where, limits)


_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def _scalar(hint: Any, value: Any, where: str, limits: Any) -> Any:
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise ConfigError(f"{where}: {show(value)} must be {_WORDS[hint]}{_range(limits)}")
    if not limits.get("min", value) <= value <= limits.get("max", value):
        raise ConfigError(f"{where}: {show(value)} must be {_WORDS[hint]}{_range(limits)}")
    if (choices := limits.get("choices")) and value not in choices:
        raise ConfigError(f"{where}: {show(value)} must be one of {', '.join(map(str, choices))}")
    return value


def _range(limits: Any) -> str:
    low, high = limits.get("min"), limits.get("max")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" from {low}"
    return f" up to {high}" if high is not None else ""
