"""Settings that Nightjar fills in, and that it leaves alone what the user set."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_nightjar import defaults
from sglang_nightjar.cpu.detect import EngineChoice

PORTABLE = EngineChoice("nightjar", "for this test")
AMX = EngineChoice("sgl_kernel", "for this test")
CUDA = EngineChoice("cuda", "for this test")

UNSET = {
    **dict.fromkeys(["device", "page_size", "max_running_requests", "max_total_tokens", "mem_fraction_static"]),
    **dict.fromkeys(["attention_backend", "prefill_attention_backend", "decode_attention_backend"]),
    **dict.fromkeys(["speculative_algorithm", "speculative_num_steps"]),
    "dtype": "auto",
    "model_path": "/no/such/model",
    "speculative_adaptive": False,
    "disable_cuda_graph": False,
    "disable_overlap_schedule": False,
    "sleep_on_idle": False,
}


def filled(choice: EngineChoice, **given: Any) -> dict[str, Any]:
    return defaults.for_engine(choice, SimpleNamespace(**{**UNSET, **given}))


def test_portable_cpu() -> None:
    assert filled(PORTABLE) == {
        "device": "cpu",
        "dtype": "float32",
        "sleep_on_idle": True,
        "page_size": 1,
        "max_running_requests": defaults.CPU_MAX_RUNNING_REQUESTS,
        "max_total_tokens": defaults.CPU_MAX_KV_TOKENS,
        "mem_fraction_static": 0.9,
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
    }


def test_amx_wants_bfloat16() -> None:
    assert filled(AMX)["dtype"] == "bfloat16"


def test_what_the_user_set_stays() -> None:
    given = {
        "device": "cpu",
        "dtype": "bfloat16",
        "page_size": 1,
        "max_running_requests": 3,
        "max_total_tokens": 100,
        "mem_fraction_static": 0.5,
        "speculative_algorithm": "EAGLE3",
        "speculative_num_steps": 5,
        "sleep_on_idle": True,
    }
    assert filled(PORTABLE, **given) == {"disable_cuda_graph": True, "disable_overlap_schedule": True}


def test_speculation_on_a_cpu_is_a_chain_unless_the_steps_are_given() -> None:
    chain = {"speculative_num_steps": 3, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4}
    assert chain.items() <= filled(PORTABLE, speculative_algorithm="EAGLE3").items()
    adaptive = filled(PORTABLE, speculative_algorithm="EAGLE3", speculative_adaptive=True)
    assert not chain.keys() & adaptive.keys()


@pytest.mark.parametrize("free_gb, expected", [(1000, defaults.CPU_MAX_KV_TOKENS), (1, 10_850)])
def test_kv_cache_fits_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gb: int, expected: int
) -> None:
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 288}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(defaults, "free_memory_bytes", lambda: free_gb * 10**9)
    # 2 x 30 layers x 3 heads x 32 values x 4 bytes = 23,040 bytes a token; a quarter of 1 GB holds 10,850 of them.
    assert filled(PORTABLE, model_path=str(tmp_path))["max_total_tokens"] == expected
    # A STANDALONE draft has a cache of its own, here as large as the target's.
    both = {"model_path": str(tmp_path), "speculative_draft_model_path": str(tmp_path)}
    found = filled(PORTABLE, speculative_algorithm="STANDALONE", **both)["max_total_tokens"]
    assert found == min(expected, 1000 * free_gb * 10**6 // 4 // 46_080)


@pytest.mark.parametrize(
    "capability, given, backend",
    [
        ((9, 0), {"speculative_algorithm": "EAGLE3"}, {"triton", "flashinfer"}),
        ((9, 0), {"speculative_algorithm": "EAGLE3", "attention_backend": "fa3"}, None),
        ((9, 0), {"speculative_algorithm": "EAGLE3", "decode_attention_backend": "fa3"}, None),
        ((9, 0), {}, None),
        ((8, 0), {"speculative_algorithm": "EAGLE3"}, None),
    ],
)
def test_hopper_speculates_without_fa3(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], given: dict[str, str], backend: set[str] | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    result = filled(CUDA, **given)
    assert (result == {}) if backend is None else (result["attention_backend"] in backend and len(result) == 1)
