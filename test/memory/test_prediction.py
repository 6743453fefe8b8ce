"""What going away frees, from the shapes in checkpoints: the same bytes that the moved weights really take."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sglang_nightjar.memory.prediction import predict

TARGET = {"num_attention_heads": 4, "hidden_size": 64, "num_key_value_heads": 2, "num_hidden_layers": 3}


def checkpoint(folder: Path, architecture: str, dtype: torch.dtype, **config: object) -> Path:
    folder.mkdir()
    weights = {
        "fc.weight": torch.zeros(64, 128, dtype=dtype),
        "norm.weight": torch.zeros(64, dtype=dtype),
        "model.embed_tokens.weight": torch.zeros(500, 64, dtype=dtype),
        "lm_head.weight": torch.zeros(100, 64, dtype=dtype),
        "d2t": torch.zeros(100, dtype=torch.int64),
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TARGET))
    return folder


@pytest.mark.parametrize(
    "architecture, dtype, is_cpu, own",
    [
        # fc, norm and head in float32, and packed in half precision with the head's rows filled up to 128.
        ("LlamaForCausalLMEagle3", torch.float16, True, 4 * (64 * 128 + 64 + 6400) + 2 * (64 * 128 + 128 * 64)),
        ("LlamaForCausalLMEagle3", torch.float32, True, 4 * (64 * 128 + 64 + 6400) + 4 * (64 * 128 + 128 * 64)),
        ("LlamaForCausalLMEagle", torch.float16, True, 4 * (64 * 128 + 64) + 2 * (64 * 128)),
        ("LlamaForCausalLMEagle3", torch.bfloat16, False, 2 * (64 * 128 + 64 + 6400)),
        ("LlamaForCausalLM", torch.bfloat16, False, 2 * (64 * 128 + 64 + 6400 + 32_000)),
        # All of a STANDALONE draft is its own; its embedding is only looked up.
        (
            "LlamaForCausalLM",
            torch.float16,
            True,
            4 * (64 * 128 + 64 + 6400 + 32_000) + 2 * (64 * 128 + 128 * 64),
        ),
    ],
)
def test_what_is_the_drafts_own(
    tmp_path: Path, target: Path, architecture: str, dtype: torch.dtype, is_cpu: bool, own: int
) -> None:
    found = predict(target, checkpoint(tmp_path / "draft", architecture, dtype), 1000, is_cpu, 4096)
    assert own <= found.freed_bytes < own + 4096
    assert found.bytes_per_token == 6 * 2 * 16 * (4 if is_cpu else 2)
    # Pages of six buffers are rounded apart.
    assert found.freed_bytes // found.bytes_per_token - 100 <= found.tokens <= own // found.bytes_per_token + 40


@pytest.mark.parametrize("is_cpu, granularity", [(True, 4096), (False, 2 << 20)])
def test_its_own_kv_goes_too_where_that_is_wanted(tmp_path: Path, target: Path, is_cpu: bool, granularity: int) -> None:
    """One layer of four heads of 16: keys and values in a buffer each, with a row of padding."""
    config = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 1}
    draft = checkpoint(tmp_path / "draft", "LlamaForCausalLMEagle3", torch.float16, **config)
    weights = predict(target, draft, 40_000, is_cpu, granularity)
    both = predict(target, draft, 40_000, is_cpu, granularity, reclaims_kv=True)
    row = 4 * 16 * (4 if is_cpu else 2)
    assert (weights.draft_bytes_per_token, both.draft_bytes_per_token) == (0, 2 * row)
    assert both.freed_bytes - weights.freed_bytes == 2 * -(-40_001 * row // granularity) * granularity
    assert both.bytes_per_token == weights.bytes_per_token
    gained = (both.freed_bytes - weights.freed_bytes) / both.bytes_per_token
    assert both.tokens - weights.tokens == pytest.approx(gained, abs=6 * granularity / both.bytes_per_token)


def test_a_tied_head_is_the_embedding(tmp_path: Path, target: Path) -> None:
    """500 rows, packed as 512; an lm_head that the checkpoint has all the same is not loaded."""
    draft = checkpoint(tmp_path / "draft", "LlamaForCausalLM", torch.float16, tie_word_embeddings=True)
    own = 4 * (64 * 128 + 64 + 32_000) + 2 * (64 * 128 + 512 * 64)
    assert own <= predict(target, draft, 1000, True, 4096).freed_bytes < own + 4096


def test_no_checkpoint(tmp_path: Path, target: Path) -> None:
    with pytest.raises(FileNotFoundError):
        predict(target, tmp_path / "nowhere", 1000, True, 4096)
