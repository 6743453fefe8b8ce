"""The kernel cache: compiled once, whole or not there, and a clear word where it can't be compiled."""

import multiprocessing
import stat
from pathlib import Path

import pytest

from sglang_nightjar.cpu import build


@pytest.fixture
def compiler(tmp_path, monkeypatch) -> Path:
    """A stand-in compiler: counts its calls and writes its output slowly, in two halves."""
    monkeypatch.setenv("NIGHTJAR_CACHE", str(tmp_path / "cache"))
    script = tmp_path / "fake-c++"
    script.write_text(
        f"""#!/bin/sh
if [ "$1" = --version ]; then echo fake 1; exit; fi
echo called >> {tmp_path}/calls
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
printf first > "$out"
[ -e {tmp_path}/break ] && {{ echo "no room for error: out" >&2; exit 1; }}
sleep 0.3
printf ,second >> "$out"
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return script


def calls(compiler: Path) -> int:
    log = compiler.parent / "calls"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_compiles_once(compiler):
    library = build.build()
    assert library.read_text() == "first,second"
    assert build.build() == library
    assert calls(compiler) == 1


def test_a_failed_compilation_leaves_nothing_and_is_tried_again(compiler):
    (compiler.parent / "break").touch()
    with pytest.raises(build.KernelBuildError, match="no room for error"):
        build.build()
    folder = compiler.parent / "cache" / "kernels"
    assert not list(folder.glob("*.so"))
    (compiler.parent / "break").unlink()
    assert build.build().read_text() == "first,second"


def test_processes_that_start_together_compile_once(compiler):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=build.build) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert calls(compiler) == 1


def test_another_compiler_or_source_is_another_library(compiler, tmp_path, monkeypatch):
    first = build.library_path(build.Compiler("c++", "1"))
    assert build.library_path(build.Compiler("c++", "2")) != first
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "bindings.cpp").write_text("// changed")
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build.library_path(build.Compiler("c++", "1")) != first


def test_no_compiler_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "missing-c++"))
    with pytest.raises(build.KernelBuildError, match=r"missing-c\+\+.*install g\+\+"):
        build.build()
