"""The set-up script: what is missing is said before anything is installed, and a half-done set-up is done again."""

import socket
import sys
from pathlib import Path

import pytest

from sglang_nightjar import setup_env
from sglang_nightjar.setup_env import SetupError


@pytest.fixture
def fake_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository without an environment, and a pip that only writes down what it was asked for."""
    (tmp_path / "requirements").mkdir()
    for name in ("cpu", "nodeps-cpu", "test"):
        (tmp_path / "requirements" / f"{name}.txt").write_text(f"{name}-package\n")
    (tmp_path / "python/sglang_nightjar").mkdir(parents=True)
    for name in ("setup.py", "python/sglang_nightjar/version.py"):
        (tmp_path / name).write_text("1")
    venv = tmp_path / ".venv"
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(setup_env, "VENV", venv)
    monkeypatch.setattr(setup_env, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(setup_env, "LOG", venv / "setup.log")

    def make_venv(python: str) -> None:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(setup_env, "make_venv", make_venv)
    return tmp_path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands that pip was given; one containing "fail" fails."""
    commands: list[str] = []

    def run_pip(arguments: list[str]) -> bool:
        commands.append(" ".join(arguments))
        setup_env.LOG.write_text("pip's last words\n")
        return "fail" not in commands[-1]

    monkeypatch.setattr(setup_env, "run_pip", run_pip)
    return commands


def test_a_second_run_installs_nothing(fake_root: Path, pip: list[str]) -> None:
    setup_env.set_up("cpu", "index", ["test"])
    first = len(pip)
    assert any("cpu.txt" in command for command in pip)
    assert any("test.txt" in command for command in pip)
    setup_env.set_up("cpu", "index", ["test"])
    setup_env.set_up("cpu", "index", [])
    assert len(pip) == first


def test_changed_requirements_are_installed(fake_root: Path, pip: list[str]) -> None:
    setup_env.set_up("cpu", "index", [])
    first = len(pip)
    (fake_root / "requirements/cpu.txt").write_text("another-package\n")
    setup_env.set_up("cpu", "index", [])
    assert len(pip) == 2 * first


def test_an_interrupted_set_up_is_done_again(fake_root: Path, pip: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(setup_env, "serving_steps", lambda *_: [["good"], ["fail"]])
        with pytest.raises(SetupError, match=r"pip install fail failed(.|\n)*pip's last words"):
            setup_env.set_up("cpu", "index", [])
        assert not setup_env.is_done("serve", "cpu", [["good"], ["fail"]])
    setup_env.set_up("cpu", "index", [])
    assert pip[-1].endswith("-e .")


def test_an_environment_whose_python_has_gone_is_made_again(
    fake_root: Path, pip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup_env.set_up("cpu", "index", [])
    first = len(pip)
    setup_env.PYTHON.unlink()
    monkeypatch.setattr(setup_env, "make_venv", lambda python: setup_env.PYTHON.symlink_to(sys.executable))
    setup_env.set_up("cpu", "index", [])
    assert len(pip) == 2 * first


def test_the_index_is_asked_only_if_torch_is_not_found_without_it(fake_root: Path, pip: list[str]) -> None:
    setup_env.make_venv("python")
    setup_env.pip_install(["found", "or", "found", "--extra-index-url", "index"])
    assert pip == ["found"]
    setup_env.pip_install(["fail", "or", "other", "--extra-index-url", "index"])
    assert pip[1:] == ["fail", "other --extra-index-url index"]


def test_full_disk(fake_root: Path, pip: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(setup_env.NEEDED_GB, "cpu", 1e6)
    with pytest.raises(SetupError, match=r"needs 100000\d.\d GB of disk at .*, but only .* GB are free"):
        setup_env.set_up("cpu", "index", [])
    assert pip == []


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_env, "SUPPORTED", ((3, 99),))
    with pytest.raises(SetupError, match=r"Python 3\.11 or 3\.12 is needed, but .* is Python 3\."):
        setup_env.find_python()


def test_this_python_is_taken_first() -> None:
    assert setup_env.find_python() == sys.executable


def test_busy_port() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(SetupError, match="can't be used"):
            setup_env.check_port(holder.getsockname()[1])


def test_impossible_port() -> None:
    with pytest.raises(SetupError, match="port 70000 does not exist"):
        setup_env.check_port(70000)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SetupError, match="no C\\+\\+ compiler"):
        setup_env.check_compiler()


def test_no_venv_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(setup_env, "VENV", tmp_path / ".venv")
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'ensurepip is not available'; exit 1\n")
    fake.chmod(0o755)
    with pytest.raises(SetupError, match="apt install python3-venv"):
        setup_env.make_venv(str(fake))
    assert not (tmp_path / ".venv").exists()


def test_the_script_runs_on_old_pythons() -> None:
    """It must be able to say that a Python is too old, so it may not use newer syntax or modules."""
    import ast

    source = Path(setup_env.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {
        name.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    assert imported <= set(sys.stdlib_module_names)
    assert "sglang_nightjar" not in imported
