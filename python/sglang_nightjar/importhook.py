"""Run a callback right before or right after a module is first imported.

SGLang and torch take seconds to import, so Nightjar waits for the program to import them instead of doing it itself.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

Before = Callable[[], None]
After = Callable[[ModuleType], None]


class _Loader(importlib.abc.Loader):
    """The module's own loader, followed by the callback."""

    def __init__(self, loader: importlib.abc.Loader, callback: After):
        self._loader = loader
        self._callback = callback

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # importlib and inspect ask the spec for the source, so the real loader goes back before the module runs.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._callback(module)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.before: dict[str, Before] = {}
        self.after: dict[str, After] = {}

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        # Entries leave the tables before they are used: the callback may import the same module again.
        if callback := self.before.pop(fullname, None):
            callback()
        if follow := self.after.pop(fullname, None):
            spec = importlib.util.find_spec(fullname)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, follow)
            return spec
        return None


_finder = _Finder()


def before_import(module: str, callback: Before) -> None:
    """Call ``callback()`` before ``module`` is imported, or now if it already is."""
    if module in sys.modules:
        callback()
    else:
        _install()
        _finder.before[module] = callback


def after_import(module: str, callback: After) -> None:
    """Call ``callback(module)`` once ``module`` has been imported, or now if it already is."""
    if module in sys.modules:
        callback(sys.modules[module])
    else:
        _install()
        _finder.after[module] = callback


def _install() -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
