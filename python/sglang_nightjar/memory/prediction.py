"""What sending a draft away would free, and how many tokens that is: from the shapes in two checkpoints.

It counts what `draft.weights` moves: the draft's own parameters, and on our CPU engine the rearranged copies of its
matrices. An EAGLE draft shares the target's embedding and head, an EAGLE-3 draft the embedding, a STANDALONE draft
nothing.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_nightjar.core.capacity import KvLayout, tokens_gained

#: The CPU engine packs matrices in panels of so many outputs (cpu/csrc/linear.h).
_PANEL = 32
#: The smallest piece of GPU memory that can be given back; the driver may say otherwise.
CUDA_GRANULARITY = 2 << 20
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Prediction:
    """Attributes:
    freed_bytes: the draft's own weights on the device, and its KV cache if that goes too.
    bytes_per_token: of the target's KV cache.
    draft_bytes_per_token: of the draft's.
    tokens: by which the target's would grow.
    """

    freed_bytes: int
    bytes_per_token: int
    draft_bytes_per_token: int
    tokens: int


def predict(
    target: Path, draft: Path, base_tokens: int, is_cpu: bool, granularity: int, reclaims_kv: bool = False
) -> Prediction:
    """For checkpoints in safetensors with Llama-like configs, on one device; for caches of ``base_tokens`` each.

    On a CPU weights and cache are float32, on a GPU they are what the checkpoints have. Raises OSError, KeyError or
    ValueError for checkpoints that are none of these.
    """
    page = 4096 if is_cpu else granularity
    freed = -(-sum(_bytes_on_device(weight, is_cpu) for weight in _own_weights(draft)) // page) * page
    layout = _kv_layout(target, is_cpu, granularity)
    own = _kv_layout(draft, is_cpu, granularity) if reclaims_kv else None
    if own is not None:
        freed += sum(own.committed_bytes(base_tokens))
    tokens = tokens_gained(freed, base_tokens, layout)
    return Prediction(freed, layout.bytes_per_token, own.bytes_per_token if own is not None else 0, tokens)


def _kv_layout(model: Path, is_cpu: bool, granularity: int) -> KvLayout:
    config = json.loads((model / "config.json").read_text())
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    wide = is_cpu or (config.get("dtype") or config.get("torch_dtype")) == "float32"
    row = heads * head_dim * (4 if wide else 2)
    return KvLayout((row,) * (2 * config["num_hidden_layers"]), granularity)


@dataclass(frozen=True)
class _Weight:
    """One in a checkpoint; ``is_matrix``: it is multiplied with, so that the CPU engine packs it."""

    shape: tuple[int, ...]
    dtype: str
    is_matrix: bool


def _own_weights(draft: Path) -> Iterator[_Weight]:
    """Those that the draft does not share."""
    config = json.loads((draft / "config.json").read_text())
    architecture, is_tied = config["architectures"][0].lower(), config.get("tie_word_embeddings", False)
    shared = ("embed_tokens",) if "eagle3" in architecture else ("embed_tokens", "lm_head")
    if "eagle" not in architecture:
        # A tied head is the embedding, whatever the checkpoint holds beside it.
        shared = ("lm_head",) if is_tied else ()
    for file in sorted(draft.glob("*.safetensors")):
        for name, entry in _header(file).items():
            if name != "__metadata__" and entry["dtype"] in _ITEM_BYTES and not any(part in name for part in shared):
                shape = tuple(entry["shape"])
                # In an embedding rows are looked up only, unless it is the head too.
                is_matrix = len(shape) == 2 and ("embed_tokens" not in name or is_tied)
                yield _Weight(shape, entry["dtype"], is_matrix)


def _bytes_on_device(weight: _Weight, is_cpu: bool) -> int:
    count, item = math.prod(weight.shape), _ITEM_BYTES[weight.dtype]
    if not is_cpu:
        return count * item
    if not weight.is_matrix:
        return 4 * count
    # Half precision in the checkpoint is what the rearranged copy needs at most.
    rows, columns = weight.shape
    return 4 * count + -(-rows // _PANEL) * _PANEL * columns * item


def _header(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > 100_000_000:
            raise ValueError(f"{file} is no safetensors file")
        return dict(json.loads(opened.read(length)))
