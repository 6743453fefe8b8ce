"""The unrolled draft steps against one chain at a time, the loss against its definition, and the written checkpoint."""

import json

import pytest
import torch
import torch.nn.functional as F

from sglang_nightjar.demo.acceptance import Acceptance
from sglang_nightjar.demo.head import DraftHead, HeadShape, rms, turn
from sglang_nightjar.demo.llama import rotary_table
from sglang_nightjar.demo.pair import draft_damage, draft_dir
from sglang_nightjar.demo.soft_loss import SoftTargetLoss

SHAPE = HeadShape(aux_layers=(0, 1), draft_vocab=20, intermediate=40)


@pytest.fixture
def head(tiny) -> DraftHead:
    torch.manual_seed(0)
    made = DraftHead(SHAPE, tiny, torch.arange(0, 60, 3))
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return made


def one_chain(head: DraftHead, features: torch.Tensor, embeds: torch.Tensor, anchor: int, steps: int):
    """What a server does: draft KV of rows 0..anchor from the target's features, then `steps - 1` tokens on its own."""
    s = head.target_shape
    cos, sin = rotary_table(s, embeds.shape[0], embeds.device)
    keys, values, outputs = [], [], []
    hidden = head.project(features[: anchor + 1][None])[0]
    rows = range(anchor + 1)
    for step in range(steps):
        out = []
        for i, row in enumerate(rows):
            before = hidden[i]
            x = torch.cat([rms(embeds[row], head.input_layernorm, s.eps), rms(before, head.hidden_norm, s.eps)], dim=-1)
            q = turn(head.q_proj(x).view(s.heads, s.head_dim), cos[row], sin[row])
            keys.append(turn(head.k_proj(x).view(s.kv_heads, s.head_dim), cos[row], sin[row]))
            values.append(head.v_proj(x).view(s.kv_heads, s.head_dim))
            k = torch.stack(keys).repeat_interleave(s.heads // s.kv_heads, 1)
            v = torch.stack(values).repeat_interleave(s.heads // s.kv_heads, 1)
            weights = (torch.einsum("hd,nhd->hn", q, k) * s.head_dim**-0.5).softmax(-1)
            attended = torch.einsum("hn,nhd->hd", weights, v).flatten()
            after = before + head.o_proj(attended)
            y = rms(after, head.post_attention_layernorm, s.eps)
            after = after + head.down_proj(F.silu(head.gate_proj(y)) * head.up_proj(y))
            out.append(rms(after, head.norm, s.eps))
        outputs.append(out[-1])
        hidden, rows = [out[-1]], [anchor + step + 1]
    return outputs


@torch.no_grad()
def test_unrolled_rows_are_the_chains_of_a_server(head):
    torch.manual_seed(1)
    features, embeds = torch.randn(10, 64), torch.randn(10, 32)
    unrolled = head.unroll(features[None], embeds[None], steps=4)
    for anchor in (0, 2, 5):
        for k, expected in enumerate(one_chain(head, features, embeds, anchor, 4)):
            torch.testing.assert_close(unrolled[k][0, anchor + k], expected, atol=1e-5, rtol=1e-4)


def test_loss_and_gradients_are_those_of_the_definition():
    torch.manual_seed(2)
    hidden, weight = torch.randn(300, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    soft = torch.randn(300, 50).softmax(-1)
    loss = SoftTargetLoss.apply(hidden, weight, soft)
    loss.backward()
    got = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = -(soft * (hidden @ weight.T).log_softmax(-1)).sum(-1).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(got[0], hidden.grad)
    torch.testing.assert_close(got[1], weight.grad)


def test_accepted_length_of_a_known_answer():
    """Rows 0..7, tokens 2..9 of the answer; step 0 right but at rows 2 and 6, step 1 right at row 1 only."""
    first = [True, True, False, True, True, True, False, True]
    second = [False, True, False, False, False, False, False, False]
    counted = Acceptance(gamma=2)
    counted.walk([first, second], first=0, end=10)
    # Anchors: 0 accepts both (rows 0 and 1) -> 3; row 3 accepts one -> 5; row 5 one (row 6 of step 1 is wrong) -> 7;
    # row 7 one, and the answer ends.
    assert (counted.verify_steps, counted.tokens) == (4, 9)
    assert (counted.offered, counted.taken) == ([4, 3], [4, 1])
    assert counted.mean_length == 9 / 4


def test_written_head_reads_back(head, tiny, tmp_path):
    from sglang_nightjar.demo.train import export

    checkpoint = tmp_path / "target"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps({"hidden_size": 32, "vocab_size": 64}))
    export(head, checkpoint, tmp_path / "draft")
    again = DraftHead.load(tmp_path / "draft", tiny)
    assert torch.equal(again.vocab, head.vocab)
    for a, b in zip(head.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.half(), b.half())


def test_shipped_head_is_whole_and_small():
    assert draft_damage() == []
    assert sum(p.stat().st_size for p in draft_dir().iterdir()) <= 25_000_000
    config = json.loads((draft_dir() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["tie_word_embeddings"] is False
