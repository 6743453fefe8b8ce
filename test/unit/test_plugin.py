"""plugin.py: what happens in an SGLang process when a name that we rely on is gone, or a hook did not take."""

import logging

import pytest
import sglang.srt.server_args  # noqa: F401  (imported for the engine of this machine, before tests pretend another)

from sglang_nightjar import plugin
from sglang_nightjar.cpu.detect import EngineChoice
from sglang_nightjar.patches import seams

BROKEN = seams.Seam("sglang.srt.server_args:ServerArgs.gone", None, "hook", "for this test")


class Patch:
    """A patch module that relies on something that SGLang does not have."""

    SEAMS = (BROKEN,)
    applied = False

    @classmethod
    def apply(cls) -> None:
        cls.applied = True


@pytest.fixture(autouse=True)
def one_broken_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "patch_modules", lambda role=None, is_cpu=None: [Patch])
    monkeypatch.setattr(Patch, "applied", False)
    monkeypatch.setattr(plugin, "_expected", set())
    monkeypatch.delenv("NIGHTJAR_STRICT", raising=False)


def use_engine(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr("sglang_nightjar.cpu.detect.choose_engine", lambda: EngineChoice(engine, "for this test"))


def test_on_a_gpu_the_server_goes_on_as_plain_sglang(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_engine(monkeypatch, "cuda")
    with caplog.at_level(logging.ERROR):
        plugin.load()
    assert not Patch.applied
    assert "ServerArgs.gone" in caplog.text
    assert "plain SGLang" in caplog.text
    plugin.verify()


def test_strict_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine(monkeypatch, "cuda")
    monkeypatch.setenv("NIGHTJAR_STRICT", "1")
    with pytest.raises(SystemExit, match=r"ServerArgs\.gone(.|\n)*--nightjar-strict"):
        plugin.load()
    assert not Patch.applied


def test_on_a_cpu_it_always_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine(monkeypatch, "nightjar")
    with pytest.raises(SystemExit, match=r"ServerArgs\.gone(.|\n)*can't serve on this CPU"):
        plugin.load()
    assert not Patch.applied


def test_a_hook_that_did_not_take_is_not_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    use_engine(monkeypatch, "cuda")
    monkeypatch.setattr(seams, "check", lambda seam: None)
    plugin.load()
    assert Patch.applied
    with pytest.raises(SystemExit, match=r"sglang\.srt\.server_args\.ServerArgs\.gone"):
        plugin.verify()
