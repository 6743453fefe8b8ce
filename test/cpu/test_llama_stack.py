"""A whole stack of layers in one call against the same layers in plain float64."""

import pytest
import torch
from helpers.llama_layers import HIDDEN, Stack

from sglang_nightjar.cpu import kernels

pytestmark = pytest.mark.skipif(not kernels.in_use(), reason="this machine does not use our CPU kernels")


def test_a_prefill_and_what_it_captures():
    stack, x = Stack(), torch.randn(11, HIDDEN)
    out, kept = stack.forward(x, torch.arange(11), [11], [11], capture=(0, 2))
    expected = stack.reference(x)
    torch.testing.assert_close(out.double(), expected[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(kept.double(), torch.cat([expected[0], expected[2]], dim=-1), atol=1e-4, rtol=1e-4)


def test_an_eagle3_layer_takes_its_own_first_input():
    stack, x = Stack(2 * HIDDEN), torch.randn(7, HIDDEN)
    wide = torch.randn(7, 2 * HIDDEN)
    out, _ = stack.forward(x, torch.arange(7), [7], [7], first_input=wide)
    torch.testing.assert_close(out.double(), stack.reference(x, wide)[-1], atol=1e-4, rtol=1e-4)


def test_decode_and_verify_steps_have_the_bits_of_one_prefill():
    """Two requests: a prefill of each, then steps of one and of four tokens, in any batch."""
    whole, stepped = Stack(), Stack()
    x, y = torch.randn(12, HIDDEN), torch.randn(9, HIDDEN)
    all_x, _ = whole.forward(x, torch.arange(12), [12], [12])
    all_y, _ = Stack().forward(y, torch.arange(9), [9], [9])
    stepped.forward(torch.cat([x[:5], y[:4]]), torch.cat([torch.arange(5), torch.arange(4)]), [5, 4], [5, 4])
    one, _ = stepped.forward(torch.stack([x[5], y[4]]), torch.tensor([5, 4]), [6, 5], [1, 1])
    assert torch.equal(one, torch.stack([all_x[5], all_y[4]]))
    positions = torch.cat([torch.arange(6, 10), torch.arange(5, 9)])
    four, _ = stepped.forward(torch.cat([x[6:10], y[5:9]]), positions, [10, 9], [4, 4])
    assert torch.equal(four, torch.cat([all_x[6:10], all_y[5:9]]))


def test_wrong_shapes_are_refused_before_memory_is_touched():
    stack = Stack()
    with pytest.raises(RuntimeError, match="differ in rows"):
        stack.forward(torch.randn(3, HIDDEN), torch.arange(2), [3], [3])
    with pytest.raises(IndexError):
        torch.ops.nightjar.llama_destroy(10**6)
