"""The small decoder against transformers, and its batched generation against one sequence at a time."""

import torch

from sglang_nightjar.demo.generate import Sampling, answer_group
from sglang_nightjar.demo.llama import KVCache


def test_same_hidden_states_as_transformers(tiny, tiny_checkpoint):
    from sglang_nightjar.cpu.bootstrap import define_torchvision_operators

    define_torchvision_operators()
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    ids = torch.randint(0, 64, (2, 11), generator=torch.Generator().manual_seed(0))
    final, captured = tiny.forward(ids, torch.arange(11).expand(2, 11), capture=(0, 2))
    with torch.no_grad():
        expected = reference(ids, output_hidden_states=True)
    torch.testing.assert_close(tiny.head(final), expected.logits, atol=1e-4, rtol=1e-4)
    # transformers counts the embedding as hidden state 0, and norms the last.
    torch.testing.assert_close(captured[0], expected.hidden_states[1], atol=1e-4, rtol=1e-4)


def test_cache_gives_what_a_whole_pass_gives(tiny):
    ids = torch.randint(0, 64, (3, 9), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(9).expand(3, 9)
    whole, _ = tiny.forward(ids, positions)
    cache = KVCache(3, 9)
    causal = torch.ones(5, 5, dtype=torch.bool).tril().expand(3, 1, 5, 5)
    first, _ = tiny.forward(ids[:, :5], positions[:, :5], causal, cache)
    parts = [first]
    for t in range(5, 9):
        mask = torch.ones(3, 1, 1, t + 1, dtype=torch.bool)
        parts.append(tiny.forward(ids[:, t : t + 1], positions[:, t : t + 1], mask, cache, slot=t)[0])
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_ragged_group_answers_as_each_prompt_alone(tiny):
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 64, (n,), generator=draw).tolist() for n in (3, 9, 4, 7, 5)]
    # A token that the tiny model does produce now and then, so that answers end at different times.
    greedy = Sampling(max_new_tokens=12, sampled_share=0.0)
    together = answer_group(tiny, prompts, eos=7, sampling=greedy, generator=torch.Generator().manual_seed(0))
    for prompt, got in zip(prompts, together, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12:
            hidden, _ = tiny.forward(torch.tensor([ids]), torch.arange(len(ids))[None])
            ids.append(int(tiny.head(hidden[:, -1]).argmax()))
            if ids[-1] == 7:
                break
        assert got.tokens.tolist() == ids
        assert got.prompt_length == len(prompt)


def test_compaction_leaves_the_other_answers_alone(tiny):
    """Ending on the most frequent token ends most rows early, so rows are dropped several times."""
    draw = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 64, (6,), generator=draw).tolist() for _ in range(12)]
    greedy = Sampling(max_new_tokens=16, sampled_share=0.0)
    free = answer_group(tiny, prompts, eos=-5, sampling=greedy, generator=torch.Generator())
    counts = torch.bincount(torch.cat([a.tokens[6:] for a in free]).long(), minlength=64)
    eos = int(counts.argmax())
    cut = answer_group(tiny, prompts, eos=eos, sampling=greedy, generator=torch.Generator())
    assert len({len(a.tokens) for a in cut}) > 1
    for whole, short in zip(free, cut, strict=True):
        answer = whole.tokens[6:].tolist()
        kept = answer[: answer.index(eos) + 1] if eos in answer else answer
        assert short.tokens[6:].tolist() == kept


def test_sampling_follows_the_temperature(tiny):
    """20,000 draws of the first token against the model's own distribution."""
    from scipy.stats import chisquare

    from sglang_nightjar.demo.generate import pick

    hidden, _ = tiny.forward(torch.tensor([[1, 2, 3]]), torch.arange(3)[None])
    logits = tiny.head(hidden[:, -1])
    draws = 20_000
    tokens = pick(logits.expand(draws, -1), torch.zeros(draws, dtype=torch.bool), 2.0, torch.Generator().manual_seed(0))
    expected = (logits[0] / 2.0).softmax(-1).double() * draws
    seen = torch.bincount(tokens, minlength=64).double()
    big = expected >= 5
    seen = torch.cat([seen[big], seen[~big].sum()[None]])
    expected = torch.cat([expected[big], expected[~big].sum()[None]])
    keep = expected > 0
    assert (
        chisquare(seen[keep].numpy(), (expected[keep] * seen[keep].sum() / expected[keep].sum()).numpy()).pvalue > 1e-4
    )
