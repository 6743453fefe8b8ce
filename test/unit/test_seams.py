"""The table of SGLang names: complete, true for the installed SGLang, and a broken name is caught and explained."""

import dataclasses
import sys
import types

import pytest

from sglang_nightjar.patches.seams import Seam, check, patch_modules, problems, report, table


@dataclasses.dataclass
class Settings:
    required: int
    optional: int = 0


class Worker:
    limit = 3

    def run(self, batch: int, *, fast: bool = False) -> int:
        return batch


@pytest.fixture(autouse=True)
def fake_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("fake_sglang")
    module.Settings, module.Worker, module.launch = Settings, Worker, lambda port, host: None
    monkeypatch.setitem(sys.modules, "fake_sglang", module)


def seam(target: str, params: tuple[str, ...] | None = None, kind: str = "call") -> Seam:
    return Seam(f"fake_sglang:{target}", params, kind, "for this test")


@pytest.mark.parametrize(
    "good",
    [
        seam("launch", ("port", "host")),
        seam("launch"),
        seam("Worker.run", ("batch", "fast"), "hook"),
        seam("Worker.limit", None, "field"),
        seam("Settings.required", None, "field"),
        seam("Settings.optional", None, "field"),
    ],
    ids=lambda s: s.target,
)
def test_what_is_as_expected_passes(good: Seam) -> None:
    assert check(good) is None


@pytest.mark.parametrize(
    "bad, words",
    [
        (seam("launch", ("host", "port")), "expected parameters (host, port), found (port, host)"),
        (seam("Worker.run", ("batch",), "hook"), "expected parameters (batch), found (batch, fast)"),
        (seam("Worker.walk"), "fake_sglang has no Worker.walk"),
        (seam("Boss.run"), "fake_sglang has no Boss"),
        (seam("Settings.gone", None, "field"), "fake_sglang has no Settings.gone"),
        (seam("Settings.required", None, "call"), "fake_sglang has no Settings.required"),
        (Seam("no_such_sglang.module:run", None, "call", "for this test"), "no_such_sglang"),
    ],
    ids=lambda value: value.target if isinstance(value, Seam) else "",
)
def test_what_is_not_is_named(bad: Seam, words: str) -> None:
    problem = check(bad)
    assert problem is not None
    assert words in problem


def test_a_hooked_function_keeps_its_signature() -> None:
    from sglang.srt.plugins.hook_registry import HookType, _wrap_fn

    wrapped = _wrap_fn(Worker.run, lambda *a, **k: None, HookType.AROUND)
    sys.modules["fake_sglang"].Worker = type("Worker", (), {"run": wrapped})
    assert check(seam("Worker.run", ("batch", "fast"), "hook")) is None


def test_the_installed_sglang_is_as_expected() -> None:
    assert problems(table()) == {}


def test_every_patch_module_takes_part() -> None:
    names = [module.__name__.rpartition(".")[2] for module in patch_modules()]
    assert {"server_args", "shutdown", "engine_children"} <= set(names)
    for module in patch_modules():
        assert module.__doc__ is not None
        assert module.SEAMS, f"{module.__name__} relies on nothing of SGLang?"
        assert callable(module.apply)


def test_the_report_says_which_version_which_names_and_what_to_do() -> None:
    broken = seam("Worker.walk")
    text = report({broken: check(broken)})
    assert "0.5.17" in text
    assert "fake_sglang:Worker.walk" in text
    assert "for this test" in text
    assert "pip install" in text
