"""A whole quick benchmark on real servers, shortened; then its report, and the same command again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]


def bench(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sglang_nightjar.cli", "bench", "--quick", "--time-scale", "0.1"]
    command += ["--warm-up-s", "2", "--out", str(out), *more]
    # In another folder: the benchmark is found beside the package.
    return subprocess.run(command, cwd=out.parent, capture_output=True, text=True, timeout=900, env=dict(os.environ))


def test_a_quick_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = bench(out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[3/3] surge" in done.stdout and " left" in done.stdout
    runs = {run["arm"]: run for run in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert list(runs) and set(runs) == {"none", "static-3", "model"}
    for arm, run in runs.items():
        # A machine with other work on it may make the generator late. Nothing excuses an arm.
        assert [fault for fault in run["faults"] if fault["kind"] == "arm"] == []
        assert run["whole"]["failed"] == 0 and run["whole"]["tokens"] >= 32 * run["whole"]["sent"]
        assert sum(second["tokens"] for second in run["seconds"]) == run["whole"]["tokens"]
        assert run["server_side"]["load"]["most_running"] >= 1
        assert ("policy" in run["server_side"]["processes"]) == (arm != "none")
        assert run["generator"]["late_s"]["p50"] < 0.1
    # The same requests for all.
    assert len({(run["whole"]["sent"], run["whole"]["tokens"]) for run in runs.values()}) == 1
    assert runs["none"]["whole"]["accepted_length"] is None
    assert runs["static-3"]["whole"]["gamma_per_step"] == pytest.approx(3.0, abs=0.05)
    assert set(runs["static-3"]["server_side"]["log"]["seconds_by_gamma"]) == {"3"}
    assert runs["model"]["server_side"]["counters"]["policy_restarts"] == 0
    # Runs beside other work don't count, and the report says that instead.
    counted = any(not run["faults"] for run in runs.values())
    said = "Speculation, and what the server says" if counted else "No run counts."
    assert said in (out / "report.md").read_text()
    # Every answer was judged.
    assert len(json.loads((out / "agreed.json").read_text())) > 0

    began = time.monotonic()
    again = bench(out)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "3 of 3 runs are there already" in again.stdout and "starting a server" not in again.stdout
    assert time.monotonic() - began < 120
    other = bench(out, "--seed", "7")
    assert other.returncode == 2 and "seed = 0, and now it is 7" in other.stderr
