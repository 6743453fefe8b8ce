"""A target and an EAGLE-3 head with random weights: three layers of 64, quick to load, and divisible by two ranks."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, HEADS, KV_HEADS, LAYERS, INTERMEDIATE = 64, 4, 2, 3, 128


def make_tiny_pair(folder: Path, tokenizer_from: Path) -> tuple[Path, Path]:
    """Write both checkpoints below ``folder``; the tokenizer is that of the model in ``tokenizer_from``.

    Returns the folders of the target and of the draft. The weights are the same at every call.
    """
    vocabulary = json.loads((tokenizer_from / "config.json").read_text())["vocab_size"]
    common = config_of(vocabulary)
    torch.manual_seed(0)
    target, draft = folder / "tiny-target", folder / "tiny-draft"
    weights = {
        "model.embed_tokens.weight": normal(vocabulary, HIDDEN),
        "lm_head.weight": normal(vocabulary, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for number in range(LAYERS):
        weights |= layer(f"model.layers.{number}", HIDDEN)
    write(target, common | {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS}, weights)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, target / name)

    config = common | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": vocabulary,
        # The target has too few layers for SGLang's usual three.
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1]},
        "num_aux_hidden_states": 2,
    }
    head = {
        "fc.weight": normal(HIDDEN, 2 * HIDDEN),
        "lm_head.weight": weights["lm_head.weight"].clone(),
        "norm.weight": torch.ones(HIDDEN),
        "midlayer.hidden_norm.weight": torch.ones(HIDDEN),
        **layer("midlayer", 2 * HIDDEN),
    }
    write(draft, config, head)
    return target, draft


def config_of(vocabulary: int) -> dict:
    """What the configs of all tiny models have in common."""
    return {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": vocabulary,
    }


def layer(prefix: str, width: int) -> dict[str, torch.Tensor]:
    """A decoder layer's weights; attention reads ``width`` values."""
    size = HIDDEN // HEADS
    return {
        f"{prefix}.self_attn.q_proj.weight": normal(HEADS * size, width),
        f"{prefix}.self_attn.k_proj.weight": normal(KV_HEADS * size, width),
        f"{prefix}.self_attn.v_proj.weight": normal(KV_HEADS * size, width),
        f"{prefix}.self_attn.o_proj.weight": normal(HIDDEN, HEADS * size),
        f"{prefix}.mlp.gate_proj.weight": normal(INTERMEDIATE, HIDDEN),
        f"{prefix}.mlp.up_proj.weight": normal(INTERMEDIATE, HIDDEN),
        f"{prefix}.mlp.down_proj.weight": normal(HIDDEN, INTERMEDIATE),
        f"{prefix}.input_layernorm.weight": torch.ones(HIDDEN),
        f"{prefix}.post_attention_layernorm.weight": torch.ones(HIDDEN),
    }


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape) / shape[-1] ** 0.5


def write(folder: Path, config: dict, weights: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
