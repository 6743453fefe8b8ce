"""Linear layers on weights that are rearranged once, at load, for how the kernels read them.

A packed copy hangs on the weight ``Parameter`` itself, so models that share a parameter (a draft and its target's head)
share the copy. The plain weight stays: a tied embedding looks rows up in it, and weight updates write to it. The packed
copy adds to the memory of linear layers. Where bfloat16 or float16 holds every float32 weight exactly (models are
published in these types, the demo draft among them), the copy is stored so and read with half the traffic, which
changes no bit of the results.

float32 uses our own kernels. The one for vectors (csrc/linear.h) is faster than oneDNN's packed product at every row
count from 1 to 64 (bench/cpu_step). The one for AMX's tile registers (csrc/tiles.h) multiplies floats as pairs of
bfloat16, each product right to about 2^-17, and takes three quarters of the time for 16 rows, half for 128;
NIGHTJAR_CPU_KERNELS=float32 leaves it out. In both, a row's result does not depend on how many are computed together:
a verified token has the logits of a decoded one bit by bit. bfloat16 uses oneDNN's packed format.
"""

from typing import Any

import torch

from sglang_nightjar.cpu import kernels

_ATTRIBUTE = "nightjar_packed"

# oneDNN packs for an expected number of rows. Weights packed for 4 to 16 rows are within a few percent of the best
# choice at every count from 1 to 64; those packed for 1 lose a third at 16.
ONEDNN_EXPECTED_ROWS = 16

# Grows with every weight update; whoever keeps pointers to weights compares it.
epoch = 0


class Packed:
    """A rearranged copy of a weight ``[out, in]`` and the product with it."""

    def __init__(self, weight: torch.Tensor):
        self.source = weight.data_ptr()
        self.out_features = weight.shape[0]
        self.is_float32 = weight.dtype == torch.float32
        self.weight = self._rearrange(weight)

    def _rearrange(self, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.detach().contiguous()
        if self.is_float32:
            narrow = narrowest(weight)
            # Weights of float16 have no form for tiles that would not be twice as large.
            if narrow != torch.float16 and kernels.use_tiles(weight.shape[1]):
                return torch.ops.nightjar.pack_tiles(weight, narrow == torch.float32)
            return torch.ops.nightjar.pack_linear_weight(weight.to(narrow))
        return torch.ops.mkldnn._reorder_linear_weight(weight, ONEDNN_EXPECTED_ROWS)

    def refresh(self, weight: torch.Tensor) -> None:
        """Take over the weight's new values."""
        self.source = weight.data_ptr()
        self.weight = self._rearrange(weight)

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x [..., in]`` -> ``[..., out]``, in the weight's dtype."""
        if self.is_float32:
            return torch.ops.nightjar.packed_linear(x.contiguous(), self.weight, self.out_features, bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, "none", [], "")

    def linear_from(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """The outputs from number ``first`` on: float32 ``x [..., in]`` -> ``[..., out - first]``."""
        panel = self.weight.shape[2]
        skipped = first // panel
        outputs = self.out_features - skipped * panel
        return torch.ops.nightjar.packed_linear(x, self.weight[skipped:], outputs, None)[..., first - skipped * panel :]


def narrowest(weight: torch.Tensor) -> torch.dtype:
    """The smallest type that holds every value of a float32 ``weight`` exactly, and that it can be packed in."""
    for dtype in (torch.bfloat16, torch.float16):
        # Bfloat16 is packed in pairs.
        if dtype == torch.bfloat16 and weight.shape[-1] % 2:
            continue
        if torch.equal(weight.to(dtype).float(), weight):
            return dtype
    return torch.float32


def can_pack(weight: Any) -> bool:
    """True if a packed product exists for this weight on this machine."""
    if not kernels.in_use():
        return False
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or weight.device.type != "cpu" or weight.numel() == 0:
        return False
    if weight.dtype == torch.bfloat16:
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def packed(weight: torch.Tensor) -> Packed:
    """The packed form of ``weight``, made at the first call and remade if the parameter got other storage."""
    found = getattr(weight, _ATTRIBUTE, None)
    if found is None or found.source != weight.data_ptr():
        found = Packed(weight)
        setattr(weight, _ATTRIBUTE, found)
    return found


def refresh(model: torch.nn.Module) -> None:
    """Renew every packed copy after the model's weights changed, and invalidate pointers into the old ones."""
    global epoch
    epoch += 1
    for weight in model.parameters():
        if (found := getattr(weight, _ATTRIBUTE, None)) is not None:
            found.refresh(weight)
