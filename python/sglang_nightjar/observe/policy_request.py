"""The body of ``PUT /nightjar/policy``, checked before the policy process sees it."""

from dataclasses import dataclass, field
from typing import Any

import orjson

_KEYS = ("name", "path", "params")
_EXAMPLE = '{"name": "static", "params": {"gamma": 3}}'


class BadRequest(ValueError):
    """The body can't be used. The text is a sentence that says what is allowed."""


@dataclass(frozen=True)
class PolicyRequest:
    """A policy by ``name``, or by the ``path`` of a file on the server's machine, with its parameters."""

    name: str | None = None
    path: str | None = None
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: bytes) -> "PolicyRequest":
        """Raises BadRequest."""
        try:
            given = orjson.loads(body)
        except ValueError as error:
            raise BadRequest(f"The body is not JSON ({error}); send for example {_EXAMPLE}.") from None
        if not isinstance(given, dict):
            raise BadRequest(f"The body must be a JSON object, for example {_EXAMPLE}.")
        if unknown := sorted(given.keys() - set(_KEYS)):
            raise BadRequest(f"Unknown key {unknown[0]!r}; allowed are {', '.join(_KEYS)}.")
        name, path, params = given.get("name"), given.get("path"), given.get("params", {})
        if (name is None) == (path is None):
            raise BadRequest(f"Exactly one of name and path is needed, for example {_EXAMPLE}.")
        which, given_text = ("path", path) if name is None else ("name", name)
        if not isinstance(given_text, str) or not given_text:
            raise BadRequest(f"{which} must be a non-empty text.")
        if path is not None and not path.startswith("/"):
            raise BadRequest(f"path={path!r} must be absolute: it is a file on the server's machine.")
        if not isinstance(params, dict):
            raise BadRequest(f"params={params!r} must be an object, for example {_EXAMPLE}.")
        return cls(name, path, params)

    def as_args(self) -> dict[str, Any]:
        """The arguments of the control request ``policy_set``."""
        where = {"name": self.name} if self.name is not None else {"path": self.path}
        return {**where, "params": self.params}
