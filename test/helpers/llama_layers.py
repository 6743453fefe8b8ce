"""A few Llama layers with random weights: packed for the C++ kernels, and in plain float64."""

import torch
import torch.nn.functional as F

from sglang_nightjar.cpu import kernels

HIDDEN, HEADS, KV_HEADS, DIM, INNER, LAYERS, SLOTS = 48, 6, 2, 16, 80, 3, 64
EPS = 1e-5


class Stack:
    """Random layers, their packed form, and an empty cache."""

    def __init__(self, first_width: int = HIDDEN):
        kernels.load()
        draw = torch.Generator().manual_seed(first_width)
        self.weights, tensors = [], []
        for layer in range(LAYERS):
            width = first_width if layer == 0 else HIDDEN
            shapes = {
                "norm1": (HIDDEN,),
                "qkv": ((HEADS + 2 * KV_HEADS) * DIM, width),
                "o": (HIDDEN, HEADS * DIM),
                "norm2": (HIDDEN,),
                "gate_up": (2 * INNER, HIDDEN),
                "down": (HIDDEN, INNER),
            }
            w = {name: torch.randn(*shape, generator=draw) * 0.2 for name, shape in shapes.items()}
            caches = torch.zeros(SLOTS, KV_HEADS, DIM), torch.zeros(SLOTS, KV_HEADS, DIM)
            tensors += [x if x.dim() == 1 else torch.ops.nightjar.pack_linear_weight(x) for x in w.values()]
            tensors += caches
            self.weights.append(w)
        angles = torch.outer(torch.arange(SLOTS).float(), 0.7 ** torch.arange(DIM // 2))
        self.cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
        arguments = (HEADS, KV_HEADS, DIM, DIM**-0.5, EPS, True)
        self.handle = torch.ops.nightjar.llama_create(tensors, self.cos_sin, *arguments)

    def __del__(self):
        torch.ops.nightjar.llama_destroy(self.handle)

    def forward(self, residual, positions, seq_lens, new, first_input=None, capture=()):
        """Rows of requests whose position p lies in slot 20 * request + p + 1."""
        table = (torch.arange(20) + 1 + 20 * torch.arange(len(seq_lens))[:, None]).int()
        lens, news = torch.tensor(seq_lens), torch.tensor(new)
        slots = torch.cat([table[r, s - n : s] for r, (s, n) in enumerate(zip(seq_lens, new, strict=True))]).long()
        out = residual.clone()
        kept = torch.zeros(len(residual), HIDDEN * len(capture)) if capture else None
        rows = torch.arange(len(seq_lens))
        torch.ops.nightjar.llama_forward(
            self.handle, out, first_input, positions, slots, table, rows, lens, news, list(capture), kept
        )
        return out, kept

    def reference(self, residual: torch.Tensor, first_input: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The residual [rows, hidden] before each layer and after the last, for one whole sequence, in float64."""
        x, states = residual.double(), []
        cos, sin = self.cos_sin[: len(x)].double()[:, None].chunk(2, dim=-1)

        def norm(v, w):
            return v / (v.square().mean(-1, keepdim=True) + EPS).sqrt() * w.double()

        def turn(v):
            one, two = v.chunk(2, dim=-1)
            return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)

        for number, w in enumerate(self.weights):
            states.append(x)
            given = first_input is not None and number == 0
            qkv = (first_input.double() if given else norm(x, w["norm1"])) @ w["qkv"].double().T
            q, k, v = qkv.view(len(x), -1, DIM).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
            q, k, v = (t.transpose(0, 1) for t in (turn(q), turn(k), v))
            attended = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
            x = x + attended.transpose(0, 1).flatten(1) @ w["o"].double().T
            gate, up = (norm(x, w["norm2"]) @ w["gate_up"].double().T).chunk(2, dim=-1)
            x = x + (F.silu(gate) * up) @ w["down"].double().T
        return [*states, x]
