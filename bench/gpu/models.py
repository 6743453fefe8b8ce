"""Configs of a target of the 8B shape and its EAGLE-3 head. SGLang makes random weights for them (dummy format)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama config, and how many words the head can say."""

    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    layers: int = 32
    intermediate: int = 14336
    vocabulary: int = 128_256
    draft_vocabulary: int = 32_000

    @property
    def kv_bytes_per_token(self) -> int:
        """In half precision."""
        return 2 * 2 * self.layers * self.kv_heads * self.hidden // self.heads

    @property
    def draft_bytes(self) -> int:
        """What the head does not share with the target, in half precision, norms left out."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * (self.heads + 2 * self.kv_heads) * head + self.heads * head * self.hidden
        mlp = 3 * self.hidden * self.intermediate
        return 2 * (3 * self.hidden * self.hidden + attention + mlp + self.draft_vocabulary * self.hidden)


LARGE = Shape()
#: To try the bench out on a CPU.
SMALL = Shape(256, 4, 2, 6, 512, 49_152, 8192)


def write(shape: Shape, tokenizer_from: Path, folder: Path) -> tuple[Path, Path]:
    """Write both configs below ``folder``, with the tokenizer of the model in ``tokenizer_from``; (target, draft)."""
    target, draft = folder / "target", folder / "draft"
    common: dict[str, Any] = {
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": shape.hidden // shape.heads,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
    }
    head = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": shape.draft_vocabulary,
    }
    for path, own in (
        (target, {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": shape.layers}),
        (draft, head),
    ):
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(common | own, indent=1) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, target / name)
    return target, draft
