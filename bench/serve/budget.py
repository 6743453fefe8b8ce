"""The same memory for every server: what a draft would take, a server without one gets as KV cache."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any


def extra_tokens(target: Path, draft: Path, kv_tokens: int) -> int:
    """How many more tokens of the target's KV fit into the memory that the draft's weights, and its own KV for
    ``kv_tokens``, take. All values have the same width, so it cancels out.
    """
    taken = _weights(draft) + kv_tokens * _kv_values(_config(draft))
    return taken // _kv_values(_config(target))


def _kv_values(config: dict[str, Any]) -> int:
    """Numbers that one token has in the KV cache."""
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * config["num_hidden_layers"] * heads * head_dim


def _weights(folder: Path) -> int:
    """Floating-point numbers in all safetensors files of a checkpoint."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no safetensors file")
    return sum(_floats(file) for file in files)


def _floats(file: Path) -> int:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        tensors = json.loads(opened.read(length))
    shapes = [t["shape"] for t in tensors.values() if str(t.get("dtype", "")).startswith(("F", "BF"))]
    return sum(math.prod(shape) for shape in shapes)


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())
