"""Nightjar's own flags: each does something, every other is refused by name."""

import os
from pathlib import Path

import pytest

from sglang_nightjar import config
from sglang_nightjar.config import STRICT_ENV, Options, from_environment, split
from sglang_nightjar.errors import ConfigError


def test_ours_are_taken_out_and_the_rest_is_kept_in_order() -> None:
    options, rest = split(["--model-path", "m", "--nightjar-strict", "--port", "1"])
    assert options == Options(strict=True)
    assert rest == ["--model-path", "m", "--port", "1"]


@pytest.mark.parametrize("flag", ["--nightjar-gama", "--nightjar-gama=3", "--nightjar-str"])
def test_an_unknown_flag_is_named_with_what_is_allowed(flag: str) -> None:
    with pytest.raises(
        ConfigError, match=r"no flag --nightjar-(gama|str); .*: --nightjar-config, .*, --nightjar-strict"
    ):
        split([flag])


def test_options_reach_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT_ENV, "0")
    Options(strict=True).export()
    assert os.environ[STRICT_ENV] == "1"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "nightjar.yaml"
    file.write_text("policy: {name: static}\n")
    return file


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (STRICT_ENV, config.CONFIG_ENV, config.POLICY_ENV, config.POLICY_ENDPOINT_ENV):
        monkeypatch.setenv(name, "")


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch, config_file: Path) -> None:
    monkeypatch.setenv(config.CONFIG_ENV, "/no/such/file")
    monkeypatch.setenv(config.POLICY_ENV, "ema")
    options, rest = split(["--nightjar-config", str(config_file), "--port", "1"])
    assert options == Options(config=str(config_file), policy="ema")
    assert rest == ["--port", "1"]
    options, _ = split(["--nightjar-config", str(config_file), "--nightjar-policy=static"])
    assert options.policy == "static"


def test_what_was_exported_is_read_back(monkeypatch: pytest.MonkeyPatch, config_file: Path) -> None:
    monkeypatch.chdir(config_file.parent)
    options, _ = split(["--nightjar-config", config_file.name, "--nightjar-policy", "off"])
    options.export()
    # Other processes may stand in another directory.
    monkeypatch.chdir("/")
    assert from_environment() == options == Options(config=str(config_file), policy="off")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--nightjar-config", "/no/such.yaml"], "--nightjar-config /no/such.yaml: there is no such file"),
        (["--nightjar-config"], "--nightjar-config: expected one argument"),
        (["--nightjar-policy", "./mine.py"], r"--nightjar-policy \./mine.py: there is no such file"),
        (["--nightjar-policy-endpoint", "localhost:5555"], "starts with ipc:// or tcp://"),
        (
            ["--nightjar-policy-endpoint", "ipc:///x", "--nightjar-policy", "ema"],
            "--nightjar-policy ema: .* policy set",
        ),
    ],
)
def test_values_that_can_not_work_are_refused_with_a_sentence(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split(argv)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.CONFIG_ENV, "/no/such.yaml")
    with pytest.raises(ConfigError, match=r"NIGHTJAR_CONFIG /no/such\.yaml: there is no such file"):
        split([])
