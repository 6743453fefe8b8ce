"""importhook.py: callbacks run once, at the right moment, and leave the module as it would have been."""

import importlib
import inspect
import sys
from pathlib import Path

import pytest

from sglang_nightjar.importhook import after_import, before_import


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that can be imported and has not been."""
    name = "nightjar_import_probe"
    (tmp_path / f"{name}.py").write_text("import sys\nseen = getattr(sys, '_probe', 'nothing')\nvalue = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield name
    sys.modules.pop(name, None)


def test_before_runs_before_the_module_and_once(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_probe", "nothing", raising=False)
    calls = []

    def callback() -> None:
        calls.append(1)
        sys._probe = "prepared"  # type: ignore[attr-defined]

    before_import(module, callback)
    assert calls == []
    assert importlib.import_module(module).seen == "prepared"
    del sys.modules[module]
    importlib.import_module(module)
    assert calls == [1]


def test_after_gets_the_finished_module(module: str) -> None:
    seen = []
    after_import(module, lambda m: seen.append((m.__name__, m.value)))
    loaded = importlib.import_module(module)
    assert seen == [(module, 1)]
    assert "value = 1" in inspect.getsource(loaded)
    assert importlib.util.find_spec(module).loader is loaded.__loader__


def test_an_imported_module_is_served_at_once(module: str) -> None:
    loaded = importlib.import_module(module)
    seen = []
    before_import(module, lambda: seen.append("before"))
    after_import(module, seen.append)
    assert seen == ["before", loaded]


def test_a_callback_may_import_the_same_module(module: str) -> None:
    seen = []
    before_import(module, lambda: seen.append(importlib.import_module(module).value))
    assert importlib.import_module(module).value == 1
    assert seen == [1]
