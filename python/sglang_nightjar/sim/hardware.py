"""Servers that are not at hand, from the shapes of their models and the data sheets of their hardware, for planning.

An iteration reads the weights once and multiplies them with all rows; it takes the longer of the two, smoothly joined,
and a fixed time for launches and the scheduler. Attention reads the keys and values of the context. What is assumed:
`BANDWIDTH_SHARE` and `COMPUTE_SHARE` of the data sheets' peaks are reached, `OVERHEAD_NS` per iteration, an EAGLE head
of one layer, and its acceptance.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_nightjar.sim.acceptance import Acceptance, RequestClass
from sglang_nightjar.sim.costs import Costs, Table
from sglang_nightjar.sim.setup import DraftMoves, EngineSettings, Setup

#: Assumed.
BANDWIDTH_SHARE, COMPUTE_SHARE, OVERHEAD_NS, DRAFT_STEP_NS = 0.8, 0.6, 400e3, 60e3
_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)


@dataclass(frozen=True)
class Device:
    """bytes/s of memory, dense bf16 FLOP/s, bytes of memory, bytes/s from the host; ``source`` says where from."""

    bandwidth: float
    flops: float
    memory: float
    host: float
    source: str


@dataclass(frozen=True)
class Model:
    """Parameters, and bytes of keys and values per token, in bf16; ``source`` says where the shape is from."""

    parameters: float
    kv_bytes: int
    source: str


DEVICES = {
    "h200": Device(4.8e12, 989e12, 141e9, 50e9, "NVIDIA H200 data sheet: 4.8 TB/s, 989 TFLOPS bf16 dense, 141 GB"),
    "rtx4090": Device(1.008e12, 165e12, 24e9, 25e9, "NVIDIA Ada white paper: 1,008 GB/s, 165 TFLOPS dense, 24 GB"),
    "l4": Device(0.3e12, 121e12, 24e9, 25e9, "NVIDIA L4 data sheet: 300 GB/s, 242 TFLOPS with sparsity, 24 GB"),
}
MODELS = {
    "8b": Model(8.03e9, 2 * 2 * 32 * 8 * 128, "Llama 3.1 8B: 32 layers, 8 KV heads of 128"),
    "70b": Model(70.6e9, 2 * 2 * 80 * 8 * 128, "Llama 3.1 70B: 80 layers, 8 KV heads of 128; fp8 weights"),
}
#: Assumed: an EAGLE-3 head of one layer with its own reduced vocabulary; accepted length about 2.9 at γ=5.
_HEAD_PARAMETERS = {"8b": 0.4e9, "70b": 1.0e9}
_RATES = (0.72, 0.70, 0.67, 0.64, 0.62)
_PAIRS = (("h200", "8b"), ("h200", "70b"), ("rtx4090", "8b"), ("l4", "8b"))


def names() -> list[str]:
    """The servers that `planned` knows."""
    return [f"{device}-{model}" for device, model in _PAIRS]


def planned(name: str) -> Setup:
    """The server ``name``. Raises KeyError."""
    if name not in names():
        raise KeyError(name)
    device_name, _, model_name = name.partition("-")
    device, model = DEVICES[device_name], MODELS[model_name]
    weight_bytes = model.parameters * (1 if model_name == "70b" else 2)
    head_bytes = 2 * _HEAD_PARAMETERS[model_name]
    kv_free = 0.9 * device.memory - weight_bytes - head_bytes
    tokens = int(kv_free / (model.kv_bytes * 1.04))
    bandwidth = device.bandwidth * BANDWIDTH_SHARE
    costs = Costs(
        target=_roofline(model.parameters, weight_bytes, device, OVERHEAD_NS),
        draft=_roofline(_HEAD_PARAMETERS[model_name], head_bytes, device, DRAFT_STEP_NS),
        prefill=_roofline(model.parameters, weight_bytes, device, OVERHEAD_NS),
        speculative_ns=150e3 + 1e9 * head_bytes / bandwidth,
        request_ns=3e3,
        context_ns=1e9 * model.kv_bytes / bandwidth,
        noise=0.02,
    )
    catch_up = DraftMoves(
        parks=True,
        catch_up_ns=300e3 + 1e9 * head_bytes / bandwidth,
        catch_up_token_ns=2e9 * _HEAD_PARAMETERS[model_name] / (device.flops * COMPUTE_SHARE),
        catch_up_chunk=8192,
        load_ns=1e9 * head_bytes / device.host,
    )
    engine = EngineSettings(
        candidates=(0, 1, 2, 3, 5),
        start_gamma=3,
        max_running=256,
        kv_tokens=tokens,
        kv_tokens_without_draft=tokens + int(head_bytes / model.kv_bytes),
        draft=catch_up,
    )
    assumed = (
        f"assumed: {BANDWIDTH_SHARE:.0%} of bandwidth and {COMPUTE_SHARE:.0%} of compute reached, "
        f"{OVERHEAD_NS / 1e3:.0f} µs an iteration, a draft of {_HEAD_PARAMETERS[model_name] / 1e9} B, its acceptance"
    )
    return Setup(
        costs, Acceptance((RequestClass(_RATES),)), engine, name, f"{device.source}; {model.source}; {assumed}",
        f"{model_name} (shape)", "one-layer EAGLE head (shape)", f"{device_name} (data sheet)",
    )  # fmt: skip


def _roofline(parameters: float, weight_bytes: float, device: Device, overhead_ns: float) -> Table:
    read_ns = 1e9 * weight_bytes / (device.bandwidth * BANDWIDTH_SHARE)
    row_ns = 2e9 * parameters / (device.flops * COMPUTE_SHARE)
    # The fourth-power mean of both: within a fifth of the larger one where they meet, which is what kernels show.
    return tuple((float(rows), round(overhead_ns + (read_ns**4 + (rows * row_ns) ** 4) ** 0.25)) for rows in _ROWS)
