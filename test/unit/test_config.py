"""Nightjar's own flags: each does something, every other is refused by name."""

import os

import pytest

from sglang_nightjar.config import STRICT_ENV, Options, split
from sglang_nightjar.errors import ConfigError


def test_ours_are_taken_out_and_the_rest_is_kept_in_order() -> None:
    options, rest = split(["--model-path", "m", "--nightjar-strict", "--port", "1"])
    assert options == Options(strict=True)
    assert rest == ["--model-path", "m", "--port", "1"]


@pytest.mark.parametrize("flag", ["--nightjar-gama", "--nightjar-gama=3", "--nightjar-str"])
def test_an_unknown_flag_is_named_with_what_is_allowed(flag: str) -> None:
    with pytest.raises(ConfigError, match=r"no flag --nightjar-(gama|str); .*: --nightjar-strict"):
        split([flag])


def test_options_reach_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT_ENV, "0")
    Options(strict=True).export()
    assert os.environ[STRICT_ENV] == "1"
