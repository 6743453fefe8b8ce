"""The EAGLE-3 draft head (Li et al. 2025, arXiv 2503.01840) as a trainable module, in the shapes that SGLang loads.

At position t the head reads the target's hidden states of token t (a few layers, concatenated) and the embedding of
token t+1, and predicts token t+2. From the second draft step on, its own output takes the place of the target's hidden
states. Training unrolls these steps ("training-time test" in the paper) so that the head learns from its own output.
Reference for names and order of operations: ``sglang/srt/models/llama_eagle3.py``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .llama import LlamaModel, rotary_table


@dataclass(frozen=True)
class HeadShape:
    """Sizes of the head; the target's where not named.

    `aux_layers` are the target layers whose output the head reads (SGLang's ``eagle_aux_hidden_state_layer_ids``),
    `draft_vocab` the number of tokens that the head can propose.
    """

    aux_layers: tuple[int, ...] = (5, 17, 28)
    draft_vocab: int = 8192
    intermediate: int = 1536


class DraftHead(nn.Module):
    """One decoder layer between the target's features and a small vocabulary.

    Args:
        shape: sizes.
        target: the model to draft for; its last layer, final norm and head rows are where training starts from.
        vocab: int64 [draft_vocab], the target's token id of every draft token, ascending.
        residual_rms: typical root mean square of the last of `aux_layers`' output, by which the copied layer is scaled
            down, since the head's residual stream has unit size.
    """

    def __init__(self, shape: HeadShape, target: LlamaModel, vocab: torch.Tensor, residual_rms: float = 1.0):
        super().__init__()
        self.shape, self.target_shape = shape, target.shape
        t, hidden = target.shape, target.shape.hidden
        self.fc_norm = nn.ParameterList([nn.Parameter(torch.ones(hidden)) for _ in shape.aux_layers])
        self.fc = nn.Linear(hidden * len(shape.aux_layers), hidden, bias=False)
        self.input_layernorm = nn.Parameter(torch.ones(hidden))
        self.hidden_norm = nn.Parameter(torch.ones(hidden))
        self.q_proj = nn.Linear(2 * hidden, t.heads * t.head_dim, bias=False)
        self.k_proj = nn.Linear(2 * hidden, t.kv_heads * t.head_dim, bias=False)
        self.v_proj = nn.Linear(2 * hidden, t.kv_heads * t.head_dim, bias=False)
        self.o_proj = nn.Linear(t.heads * t.head_dim, hidden, bias=False)
        self.post_attention_layernorm = nn.Parameter(torch.ones(hidden))
        self.gate_proj = nn.Linear(hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, hidden, bias=False)
        self.norm = nn.Parameter(torch.ones(hidden))
        self.lm_head = nn.Linear(hidden, shape.draft_vocab, bias=False)
        self.register_buffer("vocab", vocab.clone())
        self._start_from(target, residual_rms)

    def _start_from(self, target: LlamaModel, residual_rms: float) -> None:
        """Starts as the target's last layer on the newest features, which predicts token t+1; t+2 is to be learnt."""
        s, hidden = self.target_shape, self.target_shape.hidden
        norm1, qkv, out, norm2, gate_up, down = target.blocks[-1]
        q, k, v = qkv.weight.float().split([s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim])
        with torch.no_grad():
            nn.init.normal_(self.fc.weight, std=0.02)
            self.fc.weight[:, -hidden:] += torch.eye(hidden)
            for linear, start in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)):
                nn.init.normal_(linear.weight, std=0.02)
                linear.weight[:, hidden:] += start
            self.hidden_norm.copy_(norm1)
            self.post_attention_layernorm.copy_(norm2)
            self.o_proj.weight.copy_(out.weight / residual_rms)
            if self.shape.intermediate == gate_up.weight.shape[0] // 2:
                gate, up = gate_up.weight.chunk(2)
                self.gate_proj.weight.copy_(gate)
                self.up_proj.weight.copy_(up)
                self.down_proj.weight.copy_(down.weight / residual_rms)
            self.norm.copy_(target.norm)
            self.lm_head.weight.copy_(target.embed[self.vocab])

    @classmethod
    def load(cls, folder: Path, target: LlamaModel) -> DraftHead:
        """The head that `sglang_weights` and `sglang_config` wrote below `folder`, on the target's device."""
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors", device=str(target.device))
        shape = HeadShape(
            aux_layers=tuple(config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]),
            draft_vocab=config["draft_vocab_size"],
            intermediate=config["intermediate_size"],
        )
        vocab = weights.pop("d2t") + torch.arange(shape.draft_vocab, device=target.device)
        head = cls(shape, target, vocab).to(target.device)
        own = dict(head.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                if name != "t2d":
                    own[_own_name(name)].copy_(weight)
        return head

    def adopt(self, other: DraftHead) -> None:
        """Takes the weights of a head of the same shape, maybe of another vocabulary; rows that it lacks stay."""
        if (mine := self.shape) != (theirs := replace(other.shape, draft_vocab=self.shape.draft_vocab)):
            raise ValueError(f"can't go on from a head of shape {theirs} with one of shape {mine}")
        theirs_at = {token: row for row, token in enumerate(other.vocab.tolist())}
        pairs = [(row, theirs_at[token]) for row, token in enumerate(self.vocab.tolist()) if token in theirs_at]
        own_rows, other_rows = zip(*pairs, strict=True)
        kept = self.lm_head.weight.detach().clone()
        kept[list(own_rows)] = other.lm_head.weight.detach()[list(other_rows)]
        state = {name: weight for name, weight in other.state_dict().items() if name not in ("vocab", "lm_head.weight")}
        self.load_state_dict({**state, "vocab": self.vocab, "lm_head.weight": kept})

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Target features [B, T, aux * hidden] to the head's hidden size: a norm per layer, then one linear map."""
        parts = features.chunk(len(self.fc_norm), dim=-1)
        normed = [rms(p, w, self.target_shape.eps) for p, w in zip(parts, self.fc_norm, strict=True)]
        return self.fc(torch.cat(normed, dim=-1))

    def unroll(self, features: torch.Tensor, embeds: torch.Tensor, steps: int) -> list[torch.Tensor]:
        """Runs `steps` draft steps at every position at once, each fed with the true tokens.

        Args:
            features: [B, T, aux * hidden], the target's hidden states of tokens 0..T-1.
            embeds: [B, T, hidden], the embeddings of tokens 1..T.

        Returns:
            Per step k the normed output [B, T, hidden]; row t is the prediction of token t+2 made by a chain that
            last saw the target's hidden states at t-k, so rows t < k mean nothing.
        """
        s = self.target_shape
        batch, tokens, _ = embeds.shape
        cos, sin = rotary_table(s, tokens, embeds.device)
        hidden = self.project(features)
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        outputs = []
        for step in range(steps):
            if step:
                hidden = F.pad(hidden[:, :-1], (0, 0, 1, 0))
            x = torch.cat([rms(embeds, self.input_layernorm, s.eps), rms(hidden, self.hidden_norm, s.eps)], dim=-1)
            q, k, v = (
                p(x).view(batch, tokens, -1, s.head_dim).transpose(1, 2)
                for p in (self.q_proj, self.k_proj, self.v_proj)
            )
            keys.append(turn(k, cos, sin))
            values.append(v)
            attended = chain_attention(turn(q, cos, sin), keys, values)
            hidden = hidden + self.o_proj(attended.transpose(1, 2).reshape(batch, tokens, -1))
            y = rms(hidden, self.post_attention_layernorm, s.eps)
            hidden = hidden + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))
            # ``norm_output``: what the next step reads is normed too, so that a chain's magnitudes don't drift.
            hidden = rms(hidden, self.norm, s.eps)
            outputs.append(hidden)
        return outputs

    def sglang_weights(self) -> dict[str, torch.Tensor]:
        """The tensors of SGLang's ``LlamaForCausalLMEagle3``, fp16; `d2t` is target id minus draft id, `t2d` a mask."""
        attention = {f"self_attn.{n}.weight": getattr(self, n).weight for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
        mlp = {f"mlp.{n}.weight": getattr(self, n).weight for n in ("gate_proj", "up_proj", "down_proj")}
        norms = {
            f"{n}.weight": getattr(self, n) for n in ("input_layernorm", "hidden_norm", "post_attention_layernorm")
        }
        out = {f"midlayer.{name}": w for name, w in (attention | mlp | norms).items()}
        out |= {f"fc_norm.{i}.weight": w for i, w in enumerate(self.fc_norm)}
        out |= {"fc.weight": self.fc.weight, "norm.weight": self.norm, "lm_head.weight": self.lm_head.weight}
        halves = {name: w.detach().half().contiguous() for name, w in out.items()}
        mask = torch.zeros(self.target_shape.vocab, dtype=torch.bool)
        mask[self.vocab] = True
        return halves | {"d2t": self.vocab - torch.arange(len(self.vocab)), "t2d": mask}

    def sglang_config(self, target_config: dict) -> dict:
        """The draft's ``config.json`` for SGLang, from the target's."""
        return {
            **{k: v for k, v in target_config.items() if not k.startswith("_") and k != "transformers_version"},
            "architectures": ["LlamaForCausalLMEagle3"],
            "num_hidden_layers": 1,
            "intermediate_size": self.shape.intermediate,
            "draft_vocab_size": self.shape.draft_vocab,
            "tie_word_embeddings": False,
            "fc_norm": True,
            "norm_output": True,
            "num_aux_hidden_states": len(self.shape.aux_layers),
            "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(self.shape.aux_layers)},
            "dtype": "float16",
        }

    def describe(self) -> dict:
        return {**asdict(self.shape), "parameters": sum(p.numel() for p in self.parameters())}


def _own_name(name: str) -> str:
    """SGLang's tensor name to this module's: norms are plain parameters here, and there is one layer only."""
    name = name.removeprefix("midlayer.").removeprefix("self_attn.").removeprefix("mlp.")
    return name.removesuffix(".weight") if "norm" in name else name


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos.to(x.dtype) + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin.to(x.dtype)


def chain_attention(q: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """Attention of draft step k = len(keys) - 1 at every position, as if each position ended a chain of its own.

    Row t sees the step-0 keys of positions <= t - k (where the target's hidden states are known) and, of each later
    step j, the one key at t - k + j. q and the result are [B, H, T, D]; keys and values are per step [B, Hkv, T, D].
    """
    step, tokens, dim = len(keys) - 1, q.shape[2], q.shape[-1]
    groups = q.shape[1] // keys[0].shape[1]
    if step == 0:
        return F.scaled_dot_product_attention(q, keys[0], values[0], is_causal=True, enable_gqa=True)
    position = torch.arange(tokens, device=q.device)
    hidden = position[:, None] - step < position
    # Rows t < step have no step-0 key; they attend to their own chain only and their result is never used.
    scores = (q @ keys[0].repeat_interleave(groups, 1).transpose(-1, -2)).masked_fill(hidden, float("-inf"))
    own = []
    for j in range(1, step + 1):
        key = F.pad(keys[j], (0, 0, step - j, 0))[:, :, :tokens].repeat_interleave(groups, 1)
        own.append((q * key).sum(-1, keepdim=True))
    weights = (torch.cat([scores, *own], dim=-1) * dim**-0.5).float().softmax(-1).to(q.dtype)
    out = weights[..., :tokens] @ values[0].repeat_interleave(groups, 1)
    for j in range(1, step + 1):
        value = F.pad(values[j], (0, 0, step - j, 0))[:, :, :tokens].repeat_interleave(groups, 1)
        out = out + weights[..., tokens + j - 1 : tokens + j] * value
    return out
