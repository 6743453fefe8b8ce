"""The floor of a step: a model's matrix products alone, on oneDNN's prepacked float32 weights."""

import time

import torch

# Passes before the clock counts. A CPU's last-level cache may hold a good part of the weights, and it takes several
# passes over a fresh copy until it does; the engine's weights are in it from the steps before.
WARM_UP_PASSES = 12

# oneDNN arranges a weight for an expected number of rows. Packing for the rows at hand is not always its best choice,
# so both are tried and the faster one counts.
USUAL_ROWS = 16


class Floor:
    """The products of one pass of a SGLang Llama model: all linear layers in order, then the vocabulary head."""

    def __init__(self, model: torch.nn.Module, rows: int):
        weights = []
        for layer in model.model.layers:
            weights += [layer.self_attn.qkv_proj.weight, layer.self_attn.o_proj.weight]
            weights += [layer.mlp.gate_up_proj.weight, layer.mlp.down_proj.weight]
        self.rows = rows
        self._weights = [weight.detach() for weight in [*weights, model.lm_head.weight]]
        self._inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1]) for weight in self._weights}

    def _pass(self, packed: list[torch.Tensor]) -> float:
        start = time.perf_counter()
        for weight, plain in zip(packed, self._weights, strict=True):
            torch.ops.mkldnn._linear_pointwise(self._inputs[plain.shape[1]], weight, None, "none", [], "")
        return time.perf_counter() - start

    def measure(self, passes: int) -> list[float]:
        """Seconds of each of ``passes`` passes with the faster packing, after those that warm up."""
        best: list[float] = []
        for expected in {self.rows, USUAL_ROWS}:
            packed = [torch.ops.mkldnn._reorder_linear_weight(weight, expected) for weight in self._weights]
            times = [self._pass(packed) for _ in range(WARM_UP_PASSES + passes)][WARM_UP_PASSES:]
            if not best or sorted(times)[passes // 2] < sorted(best)[passes // 2]:
                best = times
            del packed
        return best
