"""Settings into dataclasses: what is refused, and that the message says key, value and what is allowed."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from sglang_nightjar.core.strict import build
from sglang_nightjar.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    size: int = field(default=4, metadata={"min": 1, "max": 9})
    tone: str = field(default="low", metadata={"choices": ("low", "high")})


@dataclass(frozen=True)
class Outer:
    name: str
    ratio: float = 0.5
    on: bool = True
    sizes: tuple[int, ...] | None = field(default=None, metadata={"min": 0})
    inner: Inner = field(default_factory=Inner)
    inners: tuple[Inner, ...] = ()
    free: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("name: 'bad' is not allowed")


def test_builds():
    made = build(Outer, {"name": "x", "ratio": 1, "sizes": [1, 2], "inner": {"size": 9}, "inners": [{}, None]}, "")
    assert made == Outer("x", 1.0, True, (1, 2), Inner(9), (Inner(), Inner()))
    assert build(Inner, None, "") == Inner()


@pytest.mark.parametrize(
    "value, said",
    [
        ({}, r"^name: it must be set"),
        ({"name": 3}, r"^name: 3 must be a text"),
        ({"name": "x", "nmae": 1}, r"^nmae: there is no such setting; allowed are: name, ratio"),
        ({"name": "x", 3: 1}, r"^3: there is no such setting"),
        ({"name": "x", "ratio": "1"}, r"^ratio: '1' must be a number"),
        ({"name": "x", "ratio": float("nan")}, r"^ratio: nan must be a number"),
        ({"name": "x", "on": 1}, r"^on: 1 must be true or false"),
        ({"name": "x", "sizes": [1, True]}, r"^sizes\[1\]: True must be an integer"),
        ({"name": "x", "sizes": [-1]}, r"^sizes\[0\]: -1 must be an integer from 0"),
        ({"name": "x", "sizes": 4}, r"^sizes: 4 must be a list"),
        ({"name": "x", "inner": {"size": 10}}, r"^inner.size: 10 must be an integer from 1 to 9"),
        ({"name": "x", "inner": {"tone": "mid"}}, r"^inner.tone: 'mid' must be one of low, high"),
        ({"name": "x", "inner": []}, r"^inner: \[\] must be a mapping"),
        ({"name": "x", "inners": [{"size": 0}]}, r"^inners\[0\].size: 0 must be"),
        ({"name": "x", "free": [1]}, r"^free: \[1\] must be a mapping"),
        ({"name": "bad"}, r"^name: 'bad' is not allowed"),
        ([1], r"^the config: \[1\] must be a mapping"),
    ],
)
def test_refuses(value, said):
    with pytest.raises(ConfigError, match=said):
        build(Outer, value, "")
