"""A small Llama decoder in plain torch, for making the draft head's training data.

SGLang serves the target; this file only has to produce many tokens per second in large fixed batches and to hand out
the hidden states that EAGLE-3 reads, on CPU or CUDA, in bf16 or fp32. It covers the Llama shapes of the demo target
(RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied head), nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


@dataclass(frozen=True)
class LlamaShape:
    """The figures of a Llama checkpoint's ``config.json`` that this decoder needs."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    rope_theta: float

    @classmethod
    def read(cls, checkpoint: Path) -> LlamaShape:
        c = json.loads((checkpoint / "config.json").read_text())
        return cls(
            layers=c["num_hidden_layers"],
            hidden=c["hidden_size"],
            heads=c["num_attention_heads"],
            kv_heads=c["num_key_value_heads"],
            head_dim=c["head_dim"],
            vocab=c["vocab_size"],
            eps=c["rms_norm_eps"],
            rope_theta=c["rope_parameters"]["rope_theta"],
        )


class Linear:
    """``x @ w.T``, on a CPU with the weight prepacked for oneDNN: plain ``linear`` is much slower for few rows."""

    def __init__(self, weight: torch.Tensor):
        self.weight = weight
        self.packed = None
        if weight.device.type == "cpu":
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 64)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed is None:
            return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rotary_table(shape: LlamaShape, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each float32 [length, head_dim], halves repeated as the Hugging Face Llama lays them out."""
    inv = 1.0 / shape.rope_theta ** (torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim)
    angles = torch.outer(torch.arange(length, device=device).float(), inv)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Applies rotary positions to x [B, heads, T, head_dim]; cos and sin broadcast to [B, 1, T, head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


class KVCache:
    """Keys and values of a fixed batch, per layer [batch, kv_heads, capacity, head_dim], allocated at first use."""

    def __init__(self, layers: int, capacity: int):
        self.capacity = capacity
        self.keys: list[torch.Tensor | None] = [None] * layers
        self.values: list[torch.Tensor | None] = [None] * layers

    def write(self, layer: int, column: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores k and v [batch, kv_heads, T, head_dim] at `column` and returns all columns up to column + T."""
        end = column + k.shape[2]
        for store, new in ((self.keys, k), (self.values, v)):
            if store[layer] is None:
                store[layer] = new.new_zeros(*new.shape[:2], self.capacity, new.shape[3])
            store[layer][:, :, column:end] = new
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: torch.Tensor) -> None:
        """Keeps only the sequences `rows` (int64 [n])."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]


class LlamaModel:
    """The target's forward pass.

    Raises:
        ValueError: if the checkpoint isn't a tied-head Llama, the only kind that the demo needs.
    """

    def __init__(self, checkpoint: Path, dtype: torch.dtype, device: str = "cpu", max_length: int = 2048):
        config = json.loads((checkpoint / "config.json").read_text())
        if config["architectures"] != ["LlamaForCausalLM"] or not config["tie_word_embeddings"]:
            raise ValueError(f"{checkpoint} is not a Llama checkpoint with a tied head")
        self.shape = shape = LlamaShape.read(checkpoint)
        self.device = torch.device(device)
        w = {
            k.removeprefix("model."): v.to(device, dtype)
            for k, v in load_file(checkpoint / "model.safetensors").items()
        }
        self.embed = w["embed_tokens.weight"]
        self.head = Linear(self.embed)
        self.norm = w["norm.weight"]
        self.cos, self.sin = rotary_table(shape, max_length, self.device)
        self.blocks = []
        for i in range(shape.layers):
            p = f"layers.{i}."
            qkv = torch.cat([w[p + f"self_attn.{n}_proj.weight"] for n in "qkv"])
            gate_up = torch.cat([w[p + f"mlp.{n}_proj.weight"] for n in ("gate", "up")])
            self.blocks.append(
                (
                    w[p + "input_layernorm.weight"],
                    Linear(qkv),
                    Linear(w[p + "self_attn.o_proj.weight"]),
                    w[p + "post_attention_layernorm.weight"],
                    Linear(gate_up),
                    Linear(w[p + "mlp.down_proj.weight"]),
                )
            )

    @torch.no_grad()
    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
        slot: int = 0,
        capture: tuple[int, ...] = (),
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs T tokens of each of B sequences.

        Args:
            ids, positions: int64 [B, T]; positions are rotary positions.
            mask: bool [B, 1, T, slot + T], True where attention is allowed; None is causal, without a cache only.
            cache: written at columns slot .. slot+T-1 and read up to there.
            capture: layer indices whose output (the residual stream after the layer) is returned, as SGLang's
                ``eagle_aux_hidden_state_layer_ids`` counts them.

        Returns:
            The final normed hidden states [B, T, hidden] and the captured ones, in order of `capture`.
        """
        s = self.shape
        batch, tokens = ids.shape
        x = F.embedding(ids, self.embed)
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        captured = []
        for i, (norm1, qkv, out, norm2, gate_up, down) in enumerate(self.blocks):
            q, k, v = (
                qkv(rms_norm(x, norm1, s.eps))
                .view(batch, tokens, -1, s.head_dim)
                .transpose(1, 2)
                .split([s.heads, s.kv_heads, s.kv_heads], dim=1)
            )
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if cache is not None:
                k, v = cache.write(i, slot, k, v)
            attended = attention(q, k, v, mask)
            x = x + out(attended.transpose(1, 2).reshape(batch, tokens, -1))
            gate, up = gate_up(rms_norm(x, norm2, s.eps)).chunk(2, dim=-1)
            x = x + down(F.silu(gate) * up)
            if i in capture:
                captured.append(x)
        return rms_norm(x, self.norm, s.eps), captured


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Grouped-query attention: q [B, H, T, D], k and v [B, Hkv, S, D], mask bool [B, 1, T, S] or None for causal."""
    if q.shape[2] > 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    # One query row: with the group folded into the row dimension each key is read once, not once per query head.
    batch, heads, _, dim = q.shape
    grouped = q.view(batch, k.shape[1], heads // k.shape[1], dim)
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).view(batch, heads, 1, dim)
