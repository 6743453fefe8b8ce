"""Draws and filters against the distributions that they stand for, and chains of drafts against the target's text."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare, kstest

from sglang_nightjar.cpu import chain_sampling, noise, sampling
from sglang_nightjar.cpu.spec_ops import verify_tree_greedy_cpu

DRAWS = 20_000
TOO_UNLIKELY = 1e-4


def agree(seen: torch.Tensor, expected: torch.Tensor) -> float:
    """p-value of counts ``seen`` under probabilities ``expected``; nothing of probability zero may have been seen."""
    expected = expected.double() / expected.double().sum()
    assert seen[expected == 0].sum() == 0
    total = seen.sum()
    often = expected * total >= 5
    counts = torch.cat([seen[often], seen[~often].sum()[None]]).double()
    wanted = torch.cat([expected[often], expected[~often].sum()[None]]) * total
    used = wanted > 0
    return float(
        chisquare(counts[used].numpy(), (wanted[used] * counts[used].sum() / wanted[used].sum()).numpy()).pvalue
    )


def reference_filter(probs: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Plain float64: tokens by falling probability, kept while within all three limits."""
    kept = torch.zeros_like(probs, dtype=torch.float64)
    before, largest = 0.0, float(probs.max())
    for rank, token in enumerate(probs.double().argsort(descending=True, stable=True).tolist()):
        p = float(probs[token])
        if rank >= top_k or before > top_p or p < largest * min_p:
            break
        kept[token] = p
        before += p
    return kept


@pytest.mark.parametrize("size", [3, 256, 257, 1000])
def test_draws_follow_the_weights(size):
    torch.manual_seed(size)
    weights = torch.rand(size) ** 4
    weights[::3] = 0.0
    tokens = sampling.draw(weights.expand(DRAWS, -1))
    assert agree(torch.bincount(tokens, minlength=size), weights) > TOO_UNLIKELY


def test_rare_tokens_behind_a_likely_one_are_drawn():
    """Forty thousand tokens of 2.5e-8 each: together a thousandth, singly less than the spacing of float32 near 1."""
    weights = torch.full((40_001,), 2.5e-8)
    weights[0] = 1 - 1e-3
    torch.manual_seed(0)
    drawn = torch.cat([sampling.draw(weights.expand(500, -1)) for _ in range(40)])
    rare = drawn[drawn > 0]
    assert 5 <= len(rare) <= 45  # 20 expected of 20,000 draws
    assert len(rare.unique()) >= len(rare) - 2


@pytest.mark.parametrize("size", [40, 2000])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(5, 1.0, 0.0), (1 << 30, 0.9, 0.0), (1 << 30, 1.0, 0.1), (50, 0.95, 0.02), (1, 1.0, 0.0)],
)
def test_filters_keep_what_the_definition_keeps(size, top_k, top_p, min_p):
    torch.manual_seed(size)
    # Flat rows keep more than the shortlist, peaked ones less: both paths of `keep`.
    probs = torch.stack([(torch.randn(size) * scale).softmax(-1) for scale in (0.1, 1.0, 3.0, 6.0)])
    rows = len(probs)
    values, order = sampling.keep(
        probs, torch.full((rows,), top_k), torch.full((rows,), top_p), torch.full((rows,), min_p)
    )
    got = torch.zeros_like(probs).scatter_(1, order, values)
    expected = torch.stack([reference_filter(p, top_k, top_p, min_p) for p in probs]).float()
    # Where the running sum meets top_p within rounding, a token may fall on either side.
    assert ((got > 0) != (expected > 0)).sum(-1).max() <= 1
    both = (got > 0) & (expected > 0)
    assert torch.equal(got[both], probs[both])


def info(batch: int, temperature=1.0, top_k=1 << 30, top_p=1.0, min_p=0.0) -> SimpleNamespace:
    def column(value, dtype):
        values = value if isinstance(value, list) else [value] * batch
        return torch.tensor(values, dtype=dtype)

    top_ks = column(top_k, torch.int32)
    return SimpleNamespace(
        temperatures=column(temperature, torch.float32)[:, None],
        top_ks=top_ks,
        is_all_greedy=bool((top_ks == 1).all()),
        top_ps=column(top_p, torch.float32),
        min_ps=column(min_p, torch.float32),
        need_top_k_sampling=bool((top_ks < 1 << 30).any()),
        need_top_p_sampling=top_p != 1.0,
        need_min_p_sampling=min_p != 0.0,
        sampling_seed=None,
    )


@pytest.fixture(scope="module", autouse=True)
def patched_sampler():
    """SGLang's sampler functions as a scheduler of the CPU engine has them."""
    from sglang.srt.layers import sampler

    from sglang_nightjar.patches import sampler as patch

    plain, filtered = sampler.sampling_from_probs_torch, sampler.top_k_top_p_min_p_sampling_from_probs_torch
    sampler.sampling_from_probs_torch = lambda *a, **k: patch.sample(plain, *a, **k)
    sampler.top_k_top_p_min_p_sampling_from_probs_torch = lambda *a, **k: patch.sample_filtered(filtered, *a, **k)
    yield
    sampler.sampling_from_probs_torch, sampler.top_k_top_p_min_p_sampling_from_probs_torch = plain, filtered


VOCAB = 6
NEXT = torch.tensor(
    [[2.0, 1.0, 0.0, -1.0, 0.5, 0.0], [0.0, 3.0, 1.0, 1.0, 0.0, -2.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
     [-1.0, 0.0, 2.0, 2.5, 0.0, 0.0], [0.3, 0.1, 0.0, 0.0, 4.0, 0.2], [1.5, 0.0, 0.0, 0.7, 0.0, 2.0]]
)  # fmt: skip
"""Logits of a target that looks at the last token only."""


def speculate(
    batch: int, start: int, drafts: list[int], settings: SimpleNamespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """One verify step of ``batch`` equal requests: (tokens ``[batch, n]``, how many of them are committed)."""
    chain = torch.tensor([start, *drafts]).expand(batch, -1)
    width = chain.shape[1]
    slots = torch.arange(batch)
    noise.dice.roll(slots)
    positions = torch.arange(width).repeat(batch)
    drawn = chain_sampling.draw_targets(
        NEXT[chain].flatten(0, 1), settings, slots.repeat_interleave(width), positions, slots
    )
    predicts = torch.zeros(batch * width, dtype=torch.int32)
    index = torch.zeros(batch, width, dtype=torch.int32)
    accepted = torch.zeros(batch, dtype=torch.int32)
    verify_tree_greedy_cpu(predicts, index, accepted, chain, None, None, None, drawn.view(batch, width))
    return predicts.view(batch, width), accepted + 1


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.5, "top_k": 3}, {"min_p": 0.2}]
)
@pytest.mark.parametrize("drafts", [[0, 0], [1, 2], [5, 3]])
def test_committed_text_is_distributed_as_the_targets_own(drafts, settings):
    """The joint distribution of the next two tokens, whether a verify step commits both or a second one is needed."""
    torch.manual_seed(7)
    options = info(DRAWS, **settings)
    tokens, committed = speculate(DRAWS, 0, drafts, options)
    first = tokens[:, 0].long()
    second = tokens[:, 1].long()
    for token in range(VOCAB):
        short = ((committed == 1) & (first == token)).nonzero().flatten()
        if len(short):
            again, _ = speculate(len(short), token, drafts, info(len(short), **settings))
            second[short] = again[:, 0].long()
    limits = (settings.get("top_k", 1 << 30), settings.get("top_p", 1.0), settings.get("min_p", 0.0))
    probs = (NEXT / settings.get("temperature", 1.0)).softmax(-1)
    step = torch.stack([reference_filter(p, *limits) for p in probs])
    step /= step.sum(-1, keepdim=True)
    joint = step[0][:, None] * step
    seen = torch.bincount(first * VOCAB + second, minlength=VOCAB**2)
    assert agree(seen, joint.flatten()) > TOO_UNLIKELY


def test_a_draft_is_accepted_with_its_own_probability():
    torch.manual_seed(1)
    _, committed = speculate(DRAWS, 3, [2], info(DRAWS))
    share = float((committed == 2).float().mean())
    assert share == pytest.approx(float(NEXT[3].softmax(-1)[2]), abs=0.015)


def test_greedy_requests_beside_sampled_ones_stay_greedy():
    torch.manual_seed(2)
    top_k = [1, 1 << 30] * 50
    tokens, committed = speculate(100, 1, [1, 1], info(100, temperature=1.0, top_k=top_k))
    # Greedy from 1 is 1, 1, 1: both drafts right and the bonus token too.
    assert (tokens[::2] == 1).all() and (committed[::2] == 3).all()
    assert (committed[1::2] < 3).any()


def test_logits_are_left_alone():
    logits = torch.randn(6, VOCAB)
    before = logits.clone()
    settings = info(2, temperature=0.5, top_p=0.8)
    chain_sampling.draw_targets(
        logits, settings, torch.arange(2).repeat_interleave(3), torch.arange(3).repeat(2), torch.arange(2)
    )
    assert torch.equal(logits, before)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9}, {"min_p": 0.2, "top_k": [1, 3, 9]}])
def test_rows_that_are_left_out_change_nothing_for_the_others(settings):
    """A draft that is not verified now is drawn for in the next step, with the same dice."""
    torch.manual_seed(4)
    logits, positions, slots = torch.randn(12, VOCAB), torch.arange(4).repeat(3), torch.arange(3)
    noise.dice.roll(slots)
    owners, rows = slots.repeat_interleave(4), torch.tensor([0, 1, 4, 8, 9, 10])
    every = chain_sampling.draw_targets(logits, info(3, **settings), owners, positions, slots)
    some = chain_sampling.draw_targets(logits[rows], info(3, **settings), owners[rows], positions[rows], slots)
    assert torch.equal(some, every[rows])


def draw_and_verify(target: torch.Tensor, draft: torch.Tensor, vocabulary: torch.Tensor, settings: SimpleNamespace):
    """One drafted token and the target's own for ``DRAWS`` requests, where both models look at nothing."""
    slots = torch.arange(DRAWS)
    noise.dice.roll(slots)
    logits = draft.repeat(DRAWS, 1)
    chain_sampling.draw_drafts_(logits, settings, torch.arange(DRAWS), torch.full((DRAWS,), 4), slots, vocabulary)
    drafts = vocabulary[logits.argmax(-1)]
    rows = target.repeat(2 * DRAWS, 1)
    positions = torch.tensor([5, 6]).repeat(DRAWS)
    drawn = chain_sampling.draw_targets(rows, settings, slots.repeat_interleave(2), positions, slots).view(DRAWS, 2)
    return drafts, drawn


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"temperature": 1.5, "top_k": 3}])
def test_drafts_and_targets_throw_the_same_dice(settings):
    torch.manual_seed(11)
    vocabulary = torch.tensor([0, 2, 3, 5])
    target, draft = NEXT[3], NEXT[3][vocabulary] + torch.tensor([0.5, -0.4, 0.3, 0.0])
    drafts, drawn = draw_and_verify(target, draft, vocabulary, info(DRAWS, **settings))
    temperature = settings.get("temperature", 1.0)
    limits = (settings.get("top_k", 1 << 30), settings.get("top_p", 1.0), settings.get("min_p", 0.0))
    p = reference_filter((target / temperature).softmax(-1), *limits)
    p /= p.sum()
    q = torch.zeros(VOCAB, dtype=torch.float64)
    q[vocabulary] = (draft.double() / temperature).softmax(-1)
    # Each draws from its own distribution, and the second position knows nothing of the first.
    assert agree(torch.bincount(drafts, minlength=VOCAB), q) > TOO_UNLIKELY
    assert (
        agree(torch.bincount(drawn[:, 0] * VOCAB + drawn[:, 1], minlength=VOCAB**2), torch.outer(p, p).flatten())
        > TOO_UNLIKELY
    )
    apart = float((p - q).abs().sum() / 2)
    together = float((drafts == drawn[:, 0]).double().mean())
    assert (1 - apart) / (1 + apart) - 0.02 < together <= 1 - apart + 0.02


def test_a_perfect_draft_is_always_accepted_and_greedy_ones_keep_their_logits():
    torch.manual_seed(12)
    drafts, drawn = draw_and_verify(NEXT[1], NEXT[1], torch.arange(VOCAB), info(DRAWS))
    assert torch.equal(drafts, drawn[:, 0])
    logits = torch.randn(4, VOCAB)
    before = logits.clone()
    chain_sampling.draw_drafts_(logits, info(4, top_k=[1, 1 << 30] * 2), *[torch.arange(4)] * 3, None)
    assert torch.equal(logits[::2], before[::2]) and not torch.equal(logits[1::2], before[1::2])


def test_the_noise_of_the_kernel_is_the_reference_and_gumbel():
    keys = torch.randint(-(2**63), 2**63 - 1, (4,), generator=torch.Generator().manual_seed(3))
    temperature = torch.tensor([1.0, 0.5, 0.0, 2.0])
    ids = torch.randperm(49_152, generator=torch.Generator().manual_seed(4))[:8_191]
    for tokens in (None, ids, ids.repeat(4, 1)):
        mine, reference = torch.zeros(4, 8_191), torch.zeros(4, 8_191)
        torch.ops.nightjar.add_gumbel_(mine, temperature, keys, tokens)
        noise.add_gumbel_in_torch_(reference, temperature, keys, tokens)
        torch.testing.assert_close(mine, reference, atol=1e-2, rtol=1e-4)
        large = reference > 0
        torch.testing.assert_close(mine[large], reference[large], atol=2e-5, rtol=2e-5)
        assert (mine[2] == 0).all()
    assert kstest(mine[0].numpy(), "gumbel_r").pvalue > TOO_UNLIKELY
