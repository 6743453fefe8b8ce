"""nightjar doctor: exit code 1 exactly when serving would not work, and every complaint says what to do."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.serving import clean_environment
from safetensors.torch import save_file

from sglang_nightjar import cli, doctor
from sglang_nightjar.agent import process
from sglang_nightjar.patches import seams


@pytest.fixture(autouse=True)
def keep_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "role", process.role)


def names(diagnosis: doctor.Diagnosis, state: str) -> set[str]:
    return {finding.name for finding in diagnosis.findings if finding.state == state}


def test_a_machine_that_can_serve(capsys: pytest.CaptureFixture[str]) -> None:
    """This machine must be able to: the server tests rely on it."""
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "Serving would work" in printed
    for word in ("CPU", "memory", "torch", "sglang", "compiler", "SGLang's names", "demo target", "demo draft"):
        assert word in printed


def test_json_has_the_findings_and_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert {"topic", "name", "state", "text", "todo"} == set(found["findings"][0])
    assert len(found["seams"]) == len(seams.table())
    assert all(seam["problem"] is None for seam in found["seams"])


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    diagnosis = doctor.diagnose()
    assert not diagnosis.ok
    assert "compiler" in names(diagnosis, "bad")


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory_bytes", lambda: 10**9)
    assert "memory" in names(doctor.diagnose(), "bad")


def test_plugin_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", "another")
    assert "plugin" in names(doctor.diagnose(), "bad")


def test_plugin_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = importlib.metadata.EntryPoints(())
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: nothing)
    assert "plugin" in names(doctor.diagnose(), "bad")


def test_changed_sglang(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gone = seams.Seam("sglang.srt.server_args:ServerArgs.gone", None, "field", "for this test")
    monkeypatch.setattr(seams, "table", lambda: [gone])
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "ServerArgs.gone" in printed
    assert "pip install" in printed
    assert "would not work" in printed


def test_changed_sglang_in_a_process_of_its_own() -> None:
    """Looking at SGLang's names must not load the plugin, which refuses to go on."""
    code = """
import sys
from sglang_nightjar import cli
from sglang_nightjar.patches import seams
really = seams.check
seams.check = lambda seam: "is gone" if seam.target.endswith("sigterm_handler") else really(seam)
sys.exit(cli.main(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "SignalHandler.sigterm_handler: is gone" in done.stdout
    assert "Serving would not work" in done.stdout


def test_every_complaint_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "free_memory_bytes", lambda: 10**9)
    monkeypatch.setattr(doctor, "_installed", lambda package: None)
    monkeypatch.setenv("NIGHTJAR_CACHE", str(tmp_path))
    monkeypatch.setenv("SGLANG_PLUGINS", "another")
    diagnosis = doctor.diagnose()
    assert len(names(diagnosis, "bad")) >= 4
    assert all(finding.todo for finding in diagnosis.findings if finding.state == "bad")


def test_a_draft_of_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A STANDALONE one, of an embedding and a head alone."""
    config = {"num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 2}
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    weights = {"model.embed_tokens.weight": torch.zeros(100, 8), "lm_head.weight": torch.zeros(100, 8)}
    save_file(weights, tmp_path / "draft" / "model.safetensors")
    given = ["--target", str(tmp_path / "target"), "--kv-tokens", "1000"]
    findings = doctor.diagnose(doctor.Pair(tmp_path / "target", tmp_path / "draft", 1000)).findings
    [found] = [finding for finding in findings if finding.name == "your draft"]
    assert found.state == "ok" and "tokens of KV cache" in found.text
    # Two layers of two heads of four float32, or of half precision on a GPU.
    assert "with memory.reclaim: weights+kv" in found.text
    assert any(f"its own KV: {size} bytes each" in found.text for size in (128, 64))

    assert cli.main(["doctor", "--draft", str(tmp_path / "nowhere"), *given]) == 1
    assert "name two folders" in capsys.readouterr().out
    assert cli.main(["doctor", *given]) == 2
