"""The arithmetic of bench/residency."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.residency.larger_draft import widen
from bench.residency.report import by_state, predicted_gain, stalls, table
from bench.residency.standalone_draft import cut
from sglang_nightjar.core.messages import Residency, Telemetry


def record(ms: float, state: Residency, **changes) -> Telemetry:
    fields = {"batch_size": 8, "gamma": 0, "committed": 8, "residency": state}
    return Telemetry(1, 0, int(ms * 1e6), **(fields | changes))


def test_the_longest_iteration_of_a_transition_against_the_median_at_rest() -> None:
    records = [record(ms, Residency.OFFLOADED) for ms in (10, 10, 11, 40)]
    records += [record(15, Residency.LOADING), record(12, Residency.LOADING)]
    records += [
        record(99, Residency.LOADING, prefill_tokens=5),
        record(99, Residency.LOADING, batch_size=7, committed=7),
        record(99, Residency.LOADING, gamma=1),
    ]
    found = by_state(stalls(records, 8))
    assert found["LOADING"] == {
        "count": 2,
        "median_ms": 13.5,
        "median_over_rest": 13.5 / 10.5,
        "longest_ms": 15.0,
        "longest_over_rest": 15 / 10.5,
        "above_bound": 0,
    }
    assert found["at rest"]["longest_ms"] == 40.0
    assert found["at rest"]["above_bound"] == 1
    assert set(found) == {"at rest", "LOADING"}
    assert by_state([]) == {}


def run(arm: str, **changes) -> dict:
    """A surge in which a batch of 10 takes 20 ms and one of 20 takes 25 ms."""
    times = {"10": 20.0, "20": 25.0}
    given = {"arm": arm, "rate": 100.0, "seconds": 1.0, "retractions": 4, "capacity": 1000, "mean_batch": 3.0}
    return given | {"batch_while_queued": 10.0, "ms_by_batch": times} | changes


def test_the_predicted_gain_is_what_a_larger_batch_is_worth() -> None:
    # 10 requests in 20 ms become 15 in 22.5 ms.
    assert predicted_gain([run("device")], 500, 48) == pytest.approx((15 / 22.5) / (10 / 20))
    # There are not so many.
    assert predicted_gain([run("device")], 5000, 20) == pytest.approx((20 / 25) / (10 / 20))
    assert predicted_gain([run("device", ms_by_batch={"10": 20.0})], 500, 48) is None


def test_the_table() -> None:
    text = table(
        {
            "memory": {"draft_bytes": 100, "freed_resident_bytes": 96, "tokens": 500},
            "predicted": {"tokens": 500, "freed_bytes": 100},
            "requests": 48,
            "stalls": stalls([record(10, Residency.PARKED)], 8),
            "surges": [run("device"), run("host", rate=120.0, retractions=1, capacity=1500)],
        }
    )
    assert "(96%)" in text and "500 tokens more, predicted 500" in text
    assert "| host | 1500 | 3.0 | 120.0 tok/s (120.0 to 120.0) | 1.0 |" in text
    assert "away / here: 1.200 (1.200 to 1.200), predicted 1.333" in text


def test_a_wider_draft_drafts_the_same(tmp_path: Path) -> None:
    narrow = {
        "midlayer.mlp.gate_proj.weight": torch.randn(6, 4),
        "midlayer.mlp.up_proj.weight": torch.randn(6, 4),
        "midlayer.mlp.down_proj.weight": torch.randn(4, 6),
        "norm.weight": torch.ones(4),
    }
    (tmp_path / "config.json").write_text(json.dumps({"intermediate_size": 6, "hidden_size": 4}))
    save_file(narrow, tmp_path / "model.safetensors")
    wide = load_file(widen(tmp_path, 3, tmp_path / "wide") / "model.safetensors")
    assert json.loads((tmp_path / "wide" / "config.json").read_text()) == {"intermediate_size": 18, "hidden_size": 4}
    assert wide["midlayer.mlp.gate_proj.weight"].shape == (18, 4)
    states = torch.randn(5, 4)

    def mlp(of: dict[str, torch.Tensor]) -> torch.Tensor:
        gate, up, down = (of[f"midlayer.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return (torch.nn.functional.silu(states @ gate.T) * (states @ up.T)) @ down.T

    torch.testing.assert_close(mlp(wide), mlp(narrow))


def test_a_standalone_draft_is_the_targets_first_layers(tmp_path: Path) -> None:
    names = ["model.embed_tokens", "model.norm", *(f"model.layers.{i}.mlp.up_proj" for i in range(12))]
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text(json.dumps({"num_hidden_layers": 12, "hidden_size": 4}))
    (target / "tokenizer.json").write_text("{}")
    save_file({f"{name}.weight": torch.randn(2, 2) for name in names}, target / "model.safetensors")
    draft = cut(target, 2, tmp_path / "draft")
    assert json.loads((draft / "config.json").read_text()) == {"num_hidden_layers": 2, "hidden_size": 4}
    assert sorted(load_file(draft / "model.safetensors")) == sorted(f"{name}.weight" for name in names[:4])
    assert (draft / "tokenizer.json").exists()
    with pytest.raises(ValueError, match=r"13 layers: .* has 12"):
        cut(target, 13, tmp_path / "other")
