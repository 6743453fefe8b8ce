"""An EAGLE-3 pass as one call against the same kernels one by one."""

import pytest
import torch
from helpers.llama_layers import EPS, HIDDEN, Stack

from sglang_nightjar.cpu import kernels

pytestmark = pytest.mark.skipif(not kernels.in_use(), reason="this machine does not use our CPU kernels")

VOCABULARY, DRAFTED = 50, 70
#: Of two requests: positions with the new ones, and new ones.
LENGTHS, NEW = torch.tensor([5, 3]), torch.tensor([2, 1])


class Draft:
    """Random weights around a `Stack`; 70 outputs of a head of which 66 count."""

    def __init__(self, norm_output: bool):
        self.norm_output, self.stack = norm_output, Stack(2 * HIDDEN)
        draw = torch.Generator().manual_seed(11)
        self.embeddings = torch.randn(VOCABULARY, HIDDEN, generator=draw)
        self.norms = [torch.rand(HIDDEN, generator=draw) + 0.5 for _ in range(3)]
        self.fc_norms = [torch.rand(HIDDEN, generator=draw) + 0.5 for _ in range(3)]
        self.bias = torch.randn(HIDDEN, generator=draw)
        packed = torch.ops.nightjar.pack_linear_weight
        self.head = packed(torch.randn(DRAFTED, HIDDEN, generator=draw))
        self.fc = packed(torch.randn(HIDDEN, 3 * HIDDEN, generator=draw) * 0.1)

    def arguments(self, tokens, states):
        table = (torch.arange(20) + 1 + 20 * torch.arange(2)[:, None]).int()
        positions = torch.tensor([3, 4, 2])
        slots = torch.tensor([4, 5, 23])
        return (
            self.stack.handle, tokens, states, positions, slots, table, torch.arange(2), LENGTHS, NEW, self.embeddings,
            self.norms, [EPS, 3e-5, 2e-5], self.norm_output, self.head, 66, self.fc_norms, self.fc, self.bias,
        )  # fmt: skip

    def one_by_one(self, tokens, states):
        norm = torch.ops.nightjar.rms_norm
        if states.shape[1] != HIDDEN:
            chunks = [norm(x.contiguous(), w, 2e-5) for x, w in zip(states.chunk(3, -1), self.fc_norms, strict=True)]
            states = torch.ops.nightjar.packed_linear(torch.cat(chunks, -1), self.fc, HIDDEN, self.bias)
        read = norm(self.embeddings[tokens], self.norms[0], EPS), norm(states, self.norms[1], EPS)
        positions = torch.tensor([3, 4, 2])
        out, _ = self.stack.forward(states, positions, LENGTHS.tolist(), NEW.tolist(), torch.cat(read, -1))
        last = out[[1, 2]]
        normed = norm(last, self.norms[2], 3e-5)
        logits = torch.ops.nightjar.packed_linear(normed, self.head, DRAFTED, None)[:, :66]
        return logits, normed if self.norm_output else last


@pytest.mark.parametrize("norm_output", [False, True])
@pytest.mark.parametrize("width", [HIDDEN, 3 * HIDDEN])
def test_a_pass_has_the_bits_of_its_parts(norm_output, width):
    draft = Draft(norm_output)
    tokens, states = torch.tensor([7, 0, 49]), torch.randn(3, width)
    logits, carried, drawn, chance = torch.ops.nightjar.eagle3_forward(*draft.arguments(tokens, states))
    expected, carried_on = draft.one_by_one(tokens, states)
    assert torch.equal(logits, expected) and torch.equal(carried, carried_on)
    assert torch.equal(drawn, expected.argmax(-1))
    torch.testing.assert_close(chance, expected.softmax(-1).max(-1).values, atol=1e-6, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    draft = Draft(True)
    good = draft.arguments(torch.tensor([7, 0, 49]), torch.randn(3, HIDDEN))
    for index, bad, message in (
        (1, torch.tensor([7, 0, 50]), "token 50 has no embedding"),
        (2, torch.randn(3, 2 * HIDDEN), "fc"),
        (2, torch.randn(2, HIDDEN), "differ in rows"),
        (10, draft.norms[:2], "three norms"),
        (14, 10_000, "another shape"),
    ):
        arguments = [*good[:index], bad, *good[index + 1 :]]
        with pytest.raises(RuntimeError, match=message):
            torch.ops.nightjar.eagle3_forward(*arguments)
