"""Each C++ kernel against a plain float64 computation of the same thing, on random shapes and awkward ones."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_nightjar.cpu import kernels
from sglang_nightjar.cpu.packed_linear import Packed, narrowest
from sglang_nightjar.cpu.reference_attention import paged_attention as reference_attention

pytestmark = pytest.mark.skipif(not kernels.in_use(), reason="this machine does not use our CPU kernels")

# Examples are few because the point is odd shapes, not volume; the same ones every time, so that CI is repeatable.
quick = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="module", autouse=True)
def operators():
    kernels.load()


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def close(got: torch.Tensor, expected: torch.Tensor, terms: int = 1) -> None:
    """Within float32 rounding of a sum of ``terms`` products (bfloat16: of the output's own rounding)."""
    assert got.shape == expected.shape
    size = float(expected.abs().max()) + 1e-30 if expected.numel() else 1.0
    unit = 2.0**-8 if got.dtype == torch.bfloat16 else 2.0**-23
    error = (got.double() - expected.double()).abs().max() if got.numel() else torch.tensor(0.0)
    assert float(error) <= size * unit * (4 + 2 * terms**0.5)


@quick
@given(st.integers(0, 40), st.integers(1, 200), st.integers(1, 900), st.booleans())
def test_packed_linear(rows, out, depth, with_bias):
    x, weight = random(rows, depth, seed=1), random(out, depth, seed=2)
    bias = random(out, seed=3) if with_bias else None
    packed = torch.ops.nightjar.pack_linear_weight(weight)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    close(torch.ops.nightjar.packed_linear(x, packed, out, bias), expected, terms=depth)


@quick
@given(st.integers(2, 70), st.integers(1, 100), st.integers(1, 900))
def test_a_row_does_not_depend_on_the_rows_beside_it(rows, out, depth):
    """What makes verification exact: a token gets the same bits alone and among others."""
    x, packed = random(rows, depth, seed=1), torch.ops.nightjar.pack_linear_weight(random(out, depth, seed=2))
    together = torch.ops.nightjar.packed_linear(x, packed, out, None)
    for row in (0, rows // 2, rows - 1):
        alone = torch.ops.nightjar.packed_linear(x[row : row + 1].contiguous(), packed, out, None)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("rows", [1, 6, 7, 30])
def test_more_depth_than_a_panel_is_taken_in_at_once(rows):
    x, weight = random(rows, 5000, seed=1), random(50, 5000, seed=2)
    packed = torch.ops.nightjar.pack_linear_weight(weight)
    together = torch.ops.nightjar.packed_linear(x, packed, 50, None)
    close(together, x.double() @ weight.double().T, terms=5000)
    alone = torch.ops.nightjar.packed_linear(x[-1:].contiguous(), packed, 50, None)
    assert torch.equal(alone[0], together[-1])


@pytest.fixture(scope="module")
def tiles() -> None:
    if not torch.ops.nightjar.tiles_possible(kernels.TILE_DEPTH):
        pytest.skip("this machine has no tile registers (AMX)")


#: Rows, columns and depth of a product in tiles: a part of a tile, one, two, several, and more than one block of rows.
in_tiles = given(st.sampled_from([0, 1, 3, 15, 16, 17, 32, 33, 50, 140, 300]), st.integers(1, 200), st.integers(1, 30))


@quick
@in_tiles
def test_products_in_tiles_are_right_to_16_bits(tiles, rows, out, blocks):
    depth = 32 * blocks
    x, weight = random(rows, depth, seed=1), random(out, depth, seed=2)
    bias = random(out, seed=3) if blocks % 2 else None
    got = torch.ops.nightjar.packed_linear(x, torch.ops.nightjar.pack_tiles(weight, True), out, bias)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert got.shape == expected.shape
    sizes = x.double().abs() @ weight.double().abs().T + 1
    assert bool(((got - expected).abs() <= 2.0**-16 * sizes).all())


@quick
@in_tiles
def test_in_tiles_a_row_does_not_depend_on_the_rows_beside_it(tiles, rows, out, blocks):
    x, packed = random(rows, 32 * blocks, seed=1), torch.ops.nightjar.pack_tiles(random(out, 32 * blocks, seed=2), True)
    together = torch.ops.nightjar.packed_linear(x, packed, out, None)
    for row in {0, rows // 2, rows - 1} & set(range(rows)):
        alone = torch.ops.nightjar.packed_linear(x[row : row + 1].contiguous(), packed, out, None)
        assert torch.equal(alone[0], together[row])


def test_weights_that_bfloat16_holds_need_no_second_half(tiles):
    weight = random(70, 96, seed=2).bfloat16().float()
    pairs, single = (torch.ops.nightjar.pack_tiles(weight, wanted) for wanted in (True, False))
    assert single.nbytes == pairs.nbytes // 2
    for rows in (1, 20, 40):
        x = random(rows, 96, seed=rows)
        assert torch.equal(*(torch.ops.nightjar.packed_linear(x, packed, 70, None) for packed in (pairs, single)))


def test_tiles_are_used_where_they_fit_and_are_wanted(tiles, monkeypatch):
    form_of = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.float16}
    for held_by, form in form_of.items():
        assert Packed(random(40, 64).to(held_by).float()).weight.dtype == form
    assert Packed(random(40, 63)).weight.dtype == torch.float32
    monkeypatch.setattr(kernels, "setting", lambda: "float32")
    assert Packed(random(40, 64)).weight.dtype == torch.float32


@quick
@given(st.integers(0, 30), st.integers(2, 700))
def test_rms_norm(rows, width):
    x, weight = random(rows, width, seed=1, scale=3.0), random(width, seed=2)

    def reference(value: torch.Tensor) -> torch.Tensor:
        return value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()

    close(torch.ops.nightjar.rms_norm(x, weight, 1e-5), reference(x.double()), terms=width)
    residual = random(rows, width, seed=3)
    summed = x.double() + residual.double()
    own, kept = x.clone(), residual.clone()
    torch.ops.nightjar.add_rms_norm_(own, kept, weight, 1e-5)
    close(kept, summed)
    close(own, reference(summed), terms=width)


@quick
@given(st.integers(0, 30), st.integers(1, 400))
def test_silu_and_mul(rows, width):
    x = random(rows, 2 * width, seed=1, scale=4.0)
    gate, up = x.double().chunk(2, dim=-1)
    close(torch.ops.nightjar.silu_and_mul(x), F.silu(gate) * up, terms=16)


def test_silu_far_from_zero_neither_overflows_nor_vanishes():
    x = torch.tensor([[-1e4, -100.0, -20.0, 0.0, 20.0, 1e4, 1, 1, 1, 1, 1, 1]])
    got = torch.ops.nightjar.silu_and_mul(x)
    torch.testing.assert_close(got.double(), F.silu(x[:, :6].double()), atol=1e-7, rtol=1e-5)


@quick
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.sampled_from([8, 16, 64]), st.booleans())
def test_rotary_embedding(rows, heads, kv_heads, dim, neox):
    angles = random(50, dim // 2, seed=1, scale=2.0)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
    positions = torch.randint(0, 50, (rows,), generator=torch.Generator().manual_seed(2))
    q, k = random(rows, heads * dim, seed=3), random(rows, kv_heads * dim, seed=4)

    def reference(x: torch.Tensor) -> torch.Tensor:
        x = x.double().view(rows, -1, dim)
        cos, sin = cos_sin[positions].double()[:, None].chunk(2, dim=-1)
        one, two = x.chunk(2, dim=-1) if neox else (x[..., ::2], x[..., 1::2])
        turned = one * cos - two * sin, two * cos + one * sin
        both = torch.cat(turned, dim=-1) if neox else torch.stack(turned, dim=-1).flatten(-2)
        return both.reshape(rows, -1)

    expected = reference(q), reference(k)
    torch.ops.nightjar.rotary_embedding_(positions, q, k, cos_sin, dim, neox)
    close(q, expected[0], terms=4)
    close(k, expected[1], terms=4)


@quick
@given(st.integers(1, 40), st.integers(1, 3000), st.integers(0, 3))
def test_argmax_takes_the_first_of_equals(rows, width, seed):
    x = torch.randint(0, 50, (rows, width), generator=torch.Generator().manual_seed(seed)).float()
    first = (x == x.max(-1, keepdim=True).values).to(torch.uint8).argmax(-1)
    got = torch.ops.nightjar.argmax(x).to(torch.int64)
    assert torch.equal(x.gather(1, got[:, None]), x.gather(1, first[:, None]))
    assert torch.equal(got, first)


class Cache:
    """Requests whose tokens lie scattered over a paged cache, some sharing a prefix as radix-cache hits do."""

    def __init__(self, lengths: list[int], kv_heads: int, dim: int, shared: int, dtype: torch.dtype):
        draw = torch.Generator().manual_seed(9)
        slots = sum(lengths) + 7
        order = torch.randperm(slots - 1, generator=draw) + 1
        self.table = torch.zeros(len(lengths) + 2, max(lengths, default=0) + 3, dtype=torch.int32)
        # Rows of the table are handed out in another order than requests come in.
        self.rows = torch.arange(len(lengths), 0, -1)
        used = 0
        for number, length in enumerate(lengths):
            self.table[self.rows[number], :length] = order[used : used + length].int()
            used += length
        for number in range(1, len(lengths)):
            same = min(shared, lengths[0] - 1, lengths[number] - 1)
            if same > 0:
                self.table[self.rows[number], :same] = self.table[self.rows[0], :same]
        self.keys = torch.randn(slots, kv_heads, dim, generator=draw).to(dtype)
        self.values = torch.randn(slots, kv_heads, dim, generator=draw).to(dtype)


def check_attention(lengths, new, heads, kv_heads, dim, shared=0, dtype=torch.float32, cap=0.0, window=0):
    cache = Cache(lengths, kv_heads, dim, shared, dtype)
    seq_lens = torch.tensor(lengths, dtype=torch.int64)
    extend = None if new is None else torch.tensor(new, dtype=torch.int64)
    rows = len(lengths) if new is None else sum(new)
    query = random(rows, heads, dim, seed=5).to(dtype)
    got = torch.full_like(query, float("nan"))
    expected = torch.zeros(rows, heads, dim, dtype=torch.float64)
    arguments = (cache.table, cache.rows, seq_lens, extend, dim**-0.5, cap, window)
    torch.ops.nightjar.paged_attention(query, cache.keys, cache.values, got, *arguments)
    reference_attention(query, cache.keys, cache.values, expected, *arguments, compute_dtype=torch.float64)
    close(got, expected, terms=max(lengths, default=1))


heads_and_dims = st.sampled_from([(9, 3, 64), (4, 4, 8), (8, 1, 32), (6, 2, 80), (2, 1, 128), (12, 4, 24)])
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


@quick
@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), heads_and_dims, st.integers(0, 200), dtypes)
def test_decode_attention(lengths, shape, shared, dtype):
    check_attention(lengths, None, *shape, shared=shared, dtype=dtype)


@quick
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 200)), min_size=1, max_size=5),
    heads_and_dims,
    st.integers(0, 100),
    dtypes,
)
def test_extend_attention(requests, shape, shared, dtype):
    """Prefill, prefill behind a cached prefix and ragged draft-extends: any number of new rows behind any prefix."""
    lengths = [new + prefix for new, prefix in requests]
    check_attention(lengths, [new for new, _ in requests], *shape, shared=shared, dtype=dtype)


@quick
@given(st.lists(st.integers(0, 300), min_size=1, max_size=8), st.integers(1, 8), heads_and_dims)
def test_verify_attention(prefixes, width, shape):
    """Chains of one width behind every request's prefix."""
    check_attention([p + width for p in prefixes], [width] * len(prefixes), *shape)


def test_long_prefill_crosses_every_block_size():
    check_attention([1025, 3, 640], [1025, 3, 129], 9, 3, 64)


def test_an_empty_batch_is_no_error():
    check_attention([], None, 9, 3, 64)
    check_attention([], [], 9, 3, 64)


@pytest.mark.parametrize(("dtype", "depth"), [(torch.bfloat16, 130), (torch.bfloat16, 4098), (torch.float16, 129)])
def test_weights_stored_in_half_give_the_bits_that_floats_give(dtype, depth):
    wide = random(70, depth, seed=2)
    wide[0, :4] = torch.tensor([0.0, -0.0, 6e-8, -3.1e-5])  # zeros and subnormals of float16
    narrow = wide.to(dtype)
    for rows in (1, 4, 13, 40):
        x = random(rows, depth, seed=rows)
        of_half = torch.ops.nightjar.packed_linear(x, torch.ops.nightjar.pack_linear_weight(narrow), 70, None)
        of_float = torch.ops.nightjar.packed_linear(x, torch.ops.nightjar.pack_linear_weight(narrow.float()), 70, None)
        assert torch.equal(of_half, of_float)


def test_only_weights_that_half_holds_exactly_are_stored_so():
    wide = random(8, 8, seed=5)
    assert narrowest(wide) == torch.float32
    assert narrowest(wide.half().float()) == torch.float16
    assert narrowest(wide.bfloat16().float()) == torch.bfloat16
    # Pairs of an odd depth can't be.
    odd = wide[:, :7].bfloat16()
    assert narrowest(odd.float()) == torch.float16
    with pytest.raises(RuntimeError, match="odd depth, 7"):
        torch.ops.nightjar.pack_linear_weight(odd.contiguous())


@pytest.mark.parametrize(("cap", "window"), [(30.0, 0), (0.0, 1), (0.0, 5), (5.0, 64)])
def test_logit_cap_and_sliding_window(cap, window):
    check_attention([70, 5, 200], None, 4, 2, 16, cap=cap, window=window)
    check_attention([70, 5, 200], [20, 5, 3], 4, 2, 16, cap=cap, window=window)


def test_huge_scores_do_not_overflow():
    cache = Cache([50], 1, 16, 0, torch.float32)
    query = random(1, 2, 16, seed=1, scale=1e4)
    out = torch.empty_like(query)
    lens = torch.tensor([50])
    torch.ops.nightjar.paged_attention(
        query, cache.keys, cache.values, out, cache.table, cache.rows, lens, None, 1.0, 0.0, 0
    )
    assert torch.isfinite(out).all()


@quick
@given(st.integers(1, 9), st.lists(st.integers(1, 120), min_size=1, max_size=4))
def test_attention_of_a_row_does_not_depend_on_the_chain_behind_it(width, prefixes):
    """A verified row has the bits of the decode step that would have computed it."""
    cache = Cache([p + width for p in prefixes], 3, 64, 0, torch.float32)
    query = random(len(prefixes) * width, 9, 64, seed=6)
    together = torch.empty_like(query)
    lens = torch.tensor(prefixes) + width
    new = torch.full_like(lens, width)
    common = (64**-0.5, 0.0, 0)
    caches = (cache.keys, cache.values)
    torch.ops.nightjar.paged_attention(query, *caches, together, cache.table, cache.rows, lens, new, *common)
    for at in range(width):
        one = query.view(len(prefixes), width, 9, 64)[:, at].contiguous()
        alone = torch.empty_like(one)
        single = torch.tensor(prefixes) + at + 1
        torch.ops.nightjar.paged_attention(one, *caches, alone, cache.table, cache.rows, single, None, *common)
        assert torch.equal(alone, together.view(len(prefixes), width, 9, 64)[:, at])
