"""bench/gpu as far as there is no GPU: what it refuses, deadlines, models, and the report from made-up records."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.gpu import models, report, run
from bench.gpu.phases import Phase, Record


def good(put, value: int) -> None:
    put("value", value)


def half_done(put) -> None:
    put("value", 1)
    raise ValueError("the second half")


def hangs(put) -> None:
    put("value", 1)
    time.sleep(600)


def dies(put) -> None:
    os._exit(3)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "results.json", time.monotonic() + 60)


def test_a_phase_that_fails_or_hangs_keeps_what_it_found_and_costs_no_other(record: Record) -> None:
    assert not record.run(Phase("half", 30, half_done))
    assert not record.run(Phase("hangs", 6, hangs))
    assert not record.run(Phase("dies", 30, dies))
    assert record.run(Phase("good", 30, good), 7)
    found = json.loads(record.file.read_text())
    assert found["half"]["state"] == "failed" and found["half"]["value"] == 1
    assert "the second half" in found["half"]["error"]
    assert found["hangs"]["state"] == "timed out" and found["hangs"]["value"] == 1 and found["hangs"]["seconds"] < 12
    assert found["dies"]["state"] == "failed" and "died" in found["dies"]["error"]
    assert found["good"] | {"seconds": 0} == {"state": "done", "seconds": 0, "value": 7}


def test_what_no_time_is_left_for_is_left_out(tmp_path: Path) -> None:
    record = Record(tmp_path / "results.json", time.monotonic() + 0.5)
    assert not record.run(Phase("late", 30, good), 7)
    assert json.loads(record.file.read_text())["late"]["state"] == "left out"


def test_without_cuda_it_says_so_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["--out", str(tmp_path / "out")]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_deadlines_of_phases_fit_with_starts_of_usual_length() -> None:
    phases = [run.MAPPING, run.LOSSLESS, run.MEMORY, *run.STALLS, run.SWITCH, run.SURGE]
    assert len({phase.name for phase in phases}) == len(phases)
    assert sum(phase.seconds for phase in phases) < run.SECONDS < 480


def test_the_8b_shape(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    target, draft = models.write(models.LARGE, tmp_path, tmp_path / "out")
    of_target, of_draft = (json.loads((path / "config.json").read_text()) for path in (target, draft))
    assert (target / "tokenizer.json").exists()
    assert of_target["hidden_size"] == of_draft["hidden_size"] == 4096
    assert of_target["vocab_size"] == of_draft["vocab_size"]
    assert (of_target["num_hidden_layers"], of_draft["num_hidden_layers"]) == (32, 1)
    # sglang-integration.md: 128 KiB of KV a token.
    assert models.LARGE.kv_bytes_per_token == 131_072
    assert 0.7e9 < models.LARGE.draft_bytes < 1.0e9


def test_the_report_of_a_run() -> None:
    at_rest = [{"state": "PARKED", "ms": 10.0}] * 3
    surge = {"arm": "device", "rate": 100.0, "retractions": 2, "capacity": 1000, "mean_batch": 9.0}
    surge |= {"batch_while_queued": 10.0, "ms_by_batch": {"10": 20.0, "20": 25.0}}
    counters = {"offloads": 3, "reloads": 3, "moved_tokens": 9, "residency_failures": 0, "errors": 0}
    found = {
        "provenance": {"gpu": {"name": "a GPU"}, "commit": "c", "time": "t", "versions": {"torch": "2.11"}},
        "mapping": {
            "state": "done",
            "seconds": 3,
            "ms": [
                {"mib": 2, "map": m, "first_write": 1.0, "copy_from_host": 2.0, "unmap": 3.0} for m in (1.0, 5.0, 2.0)
            ],
            "graph_outlives_unmapping": True,
        },
        "lossless": {
            "state": "done",
            "texts": 2,
            "same_as_plain": 1,
            "misses": [0.0, 0.3],
            "plain_misses": [0.2],
            "counters": counters,
        },
        "memory": {
            "state": "done",
            "found": {"draft_bytes": 8e8, "freed_resident_bytes": 0, "tokens": 6000},
            "kv_tokens": 16384,
            "predicted_tokens": 6000,
            "settings": {"attention_backend": "triton", "disable_overlap_schedule": False},
        },
        "stalls, small batch": {
            "state": "done",
            "batch": 8,
            "iterations": [*at_rest, {"state": "LOADING", "ms": 16.0}],
            "share_from_graphs": {"γ=0": 1.0, "γ=3": 0.5},
        },
        "switch": {"state": "timed out", "error": "long\nnot done after 60 s", "seconds": 60},
        "surge": {
            "state": "done",
            "extra_tokens": 500,
            "requests": 48,
            "runs": [surge, surge | {"arm": "host", "rate": 120.0}],
        },
    }
    text = report.markdown(found)
    assert "| 2 MiB | 2.00 ms | 1.00 ms | 2.00 ms | 3.00 ms |" in text
    assert "right values" in text
    assert "1 of 2 are the plain server's" in text and ": lossless." in text
    assert "6000 tokens more than 16384, predicted 6000" in text
    assert "attention_backend triton, disable_overlap_schedule False" in text
    assert "| LOADING | 1 | 16.0 ms | 1.60 | 16.0 ms | 1.60 | 1 |" in text
    assert "γ=0 100%, γ=3 50%" in text
    assert "| switch | timed out: not done after 60 s | 60 |" in text
    assert "away / here: 1.200" in text
    found["lossless"]["misses"] = [0.5]
    assert "not shown to be lossless" in report.markdown(found)


def test_the_report_of_a_profile() -> None:
    row = {"lag": 8, "batch_size": 4, "returns": 3, "positions": 32, "ms": 1.5}
    profile = {"measured": [row, row | {"lag": 64, "ms": None}], "fixed_us": 100.0, "us_per_token": 2.5}
    assert "step" not in report.markdown({"switch": {"state": "done", "profile": profile}})
    text = report.markdown(
        {"switch": {"state": "done", "profile": profile | {"steps": {"release": {"ms": 3.0, "busy_ms": 1.0}}}}}
    )
    assert "| 8 tokens | 4 | 32 | 3 | 1.50 ms |" in text and "| 64 tokens | 4 | 32 | 3 | not seen |" in text
    assert "100 µs and 2.50 µs a position" in text
    assert "| release | 3.0 | 1.0 |" in text


def test_the_report_of_a_run_that_found_nothing() -> None:
    text = report.markdown({"mapping": {"state": "failed", "error": "no driver", "seconds": 1}})
    assert "| mapping | failed: no driver | 1 |" in text
