"""A target and a STANDALONE draft that are the same tiny model, made so that every draft must be accepted.

SGLang keeps a STANDALONE draft one token ahead of the target, so it never sees a text's first token. Here that token
(`FIRST`, with which every prompt must begin) has no influence on others: all look at it with a score so low that its
weight is 0. Then draft and target compute the same, up to rounding, and one wrong row in the draft's cache shows as a
rejected draft. Attention is sharp, so that texts depend on more than their last token.
"""

import json
import shutil
from pathlib import Path

import torch

from helpers.tiny_pair import HEADS, HIDDEN, KV_HEADS, LAYERS, config_of, layer, normal, write

FIRST = 1
_SIZE = HIDDEN // HEADS
#: Values of the residual that no layer writes: one marks `FIRST`, one is the same for all tokens.
_MARK, _CONSTANT = 0, 1
#: The pair of each head that positions turn least: it compares the two.
_PAIR = (_SIZE // 2 - 1, _SIZE - 1)
_SHARPNESS, _AVERSION = 4.0, 30.0


def make_tiny_twins(folder: Path, tokenizer_from: Path) -> tuple[Path, Path]:
    """Write both checkpoints below ``folder``, with the tokenizer in ``tokenizer_from``; the same at every call."""
    vocabulary = json.loads((tokenizer_from / "config.json").read_text())["vocab_size"]
    torch.manual_seed(1)
    embedding = normal(vocabulary, HIDDEN)
    embedding[:, _MARK], embedding[:, _CONSTANT] = 0.0, 1.0
    embedding[FIRST, _MARK] = 8.0
    weights = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": _blind(normal(vocabulary, HIDDEN)),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for number in range(LAYERS):
        weights |= _averse(f"model.layers.{number}")
    config = config_of(vocabulary) | {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS}
    folders = folder / "twin-target", folder / "twin-draft"
    for one in folders:
        write(one, config, weights)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (tokenizer_from / name).exists():
                shutil.copy(tokenizer_from / name, one / name)
    return folders


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random ones of about ``length`` tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(length // 2, length, (count,), generator=draw).tolist()
    return [[FIRST, *torch.randint(10, 40_000, (size,), generator=draw).tolist()] for size in lengths]


def _averse(prefix: str) -> dict[str, torch.Tensor]:
    weights = layer(prefix, HIDDEN)
    for name, value in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value[[_MARK, _CONSTANT]] = 0.0
        elif name.endswith("_proj.weight"):
            _blind(value)
    queries, keys = weights[f"{prefix}.self_attn.q_proj.weight"], weights[f"{prefix}.self_attn.k_proj.weight"]
    queries *= _SHARPNESS
    for value, heads in ((queries, HEADS), (keys, KV_HEADS)):
        for place in _PAIR:
            value.view(heads, _SIZE, HIDDEN)[:, place] = 0.0
    queries.view(HEADS, _SIZE, HIDDEN)[:, _PAIR[0], _CONSTANT] = -_AVERSION
    keys.view(KV_HEADS, _SIZE, HIDDEN)[:, _PAIR[0], _MARK] = _AVERSION
    return weights


def _blind(weight: torch.Tensor) -> torch.Tensor:
    """Neither mark nor constant is read."""
    weight[:, [_MARK, _CONSTANT]] = 0.0
    return weight
