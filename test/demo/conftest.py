"""A Llama checkpoint small enough to train on in a test."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sglang_nightjar.demo.llama import LlamaModel

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "tie_word_embeddings": True,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    draw = torch.Generator().manual_seed(1)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * 0.3

    weights = {"model.embed_tokens.weight": matrix(64, 32), "model.norm.weight": torch.ones(32)}
    for i in range(3):
        p = f"model.layers.{i}."
        for name, out, inp in (("q", 32, 32), ("k", 16, 32), ("v", 16, 32), ("o", 32, 32)):
            weights[f"{p}self_attn.{name}_proj.weight"] = matrix(out, inp)
        for name, out, inp in (("gate", 48, 32), ("up", 48, 32), ("down", 32, 48)):
            weights[f"{p}mlp.{name}_proj.weight"] = matrix(out, inp)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{p}{name}.weight"] = torch.ones(32)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def tiny(tiny_checkpoint: Path) -> LlamaModel:
    return LlamaModel(tiny_checkpoint, torch.float32)
