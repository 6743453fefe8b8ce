"""The target's own answers to prompts, the text that the draft head learns from.

A draft is only ever asked to continue what the target itself wrote, so training on anybody else's answers would teach
it the wrong distribution (EAGLE, Li et al. 2024, section on data; the same reason holds for EAGLE-3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .llama import KVCache, LlamaModel


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: `sampled_share` of the prompts at `temperature`, the others greedily."""

    max_new_tokens: int = 192
    temperature: float = 0.8
    sampled_share: float = 0.3


@dataclass(frozen=True)
class Answered:
    """One prompt with its answer: token ids int32 [prompt_length + answer length].

    `states` [tokens - 1, (captured layers + 1) * hidden] are, where they were asked for, the target's hidden states of
    all tokens but the last, which it never read: those of the captured layers, then the normed ones of the head.
    """

    tokens: torch.Tensor
    prompt_length: int
    states: torch.Tensor | None = None


def answer_group(
    model: LlamaModel,
    prompts: list[list[int]],
    eos: int,
    sampling: Sampling,
    generator: torch.Generator,
    capture: tuple[int, ...] = (),
) -> list[Answered]:
    """Answers a group of prompts of similar length together; with the hidden states of the layers `capture`, if any.

    Sequences are left-padded to one length, so that a decoding step writes one cache column; finished ones are dropped
    from the batch once they are a fifth of it. Unfinished answers are cut at `max_new_tokens`.
    """
    device, width = model.device, max(map(len, prompts))
    ids = torch.full((len(prompts), width), eos, device=device)
    for row, p in enumerate(prompts):
        ids[row, width - len(p) :] = torch.tensor(p, device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    start = width - lengths
    columns = torch.arange(width + sampling.max_new_tokens, device=device)
    cache = KVCache(model.shape.layers, width + sampling.max_new_tokens)
    valid = columns >= start[:, None]
    causal = columns[:width, None] >= columns[:width]
    # A padding row attends to itself, since a softmax over nothing would be NaN.
    mask = (causal & valid[:, None, None, :width]) | torch.eye(width, dtype=torch.bool, device=device)
    hidden, captured = model.forward(ids, (columns[:width] - start[:, None]).clamp_min(0), mask, cache, capture=capture)
    states = None
    if capture:
        size = (len(capture) + 1) * model.shape.hidden
        states = hidden.new_empty(len(prompts), width + sampling.max_new_tokens - 1, size)
        torch.cat([*captured, hidden], -1, out=states[:, :width])
    first = start
    greedy = torch.rand(len(prompts), generator=generator).to(device) >= sampling.sampled_share
    last = hidden[:, -1]

    rows = torch.arange(len(prompts), device=device)
    alive = torch.ones_like(rows, dtype=torch.bool)
    answers = torch.full((len(prompts), sampling.max_new_tokens), -1, device=device)
    for step in range(sampling.max_new_tokens):
        token = pick(model.head(last), greedy[rows], sampling.temperature, generator)
        answers[rows, step] = token
        # A finished row computes on until the next compaction; `finish` cuts what it writes after its end.
        alive &= token != eos
        if not alive.any():
            break
        if alive.float().mean() < 0.8:
            kept = alive.nonzero().flatten()
            rows, token, start, valid, alive = rows[kept], token[kept], start[kept], valid[kept], alive[kept]
            cache.select(kept)
        column = width + step
        if step + 1 == sampling.max_new_tokens:
            break
        hidden, captured = model.forward(
            token[:, None],
            (column - start)[:, None],
            valid[:, None, None, : column + 1],
            cache,
            slot=column,
            capture=capture,
        )
        if states is not None:
            states[rows, column] = torch.cat([*captured, hidden], -1)[:, 0]
        last = hidden[:, 0]
    answered = [finish(p, a, eos) for p, a in zip(prompts, answers.tolist(), strict=True)]
    if states is None:
        return answered
    spans = zip(answered, states, first.tolist(), strict=True)
    return [replace(a, states=row[begin : begin + len(a.tokens) - 1]) for a, row, begin in spans]


def finish(prompt: list[int], answer: list[int], eos: int) -> Answered:
    kept = answer[: answer.index(eos) + 1] if eos in answer else [t for t in answer if t >= 0]
    return Answered(torch.tensor(prompt + kept, dtype=torch.int32), len(prompt))


def pick(logits: torch.Tensor, greedy: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """Next token of each row of logits [B, vocab]: the argmax where `greedy`, else a draw at `temperature`."""
    # On a CPU `max` is twice as fast as `argmax`, and an inverse distribution function seven times as fast as
    # `multinomial`, which draws a random number for every token of the vocabulary.
    token = logits.max(-1).indices
    drawn = (~greedy).nonzero().flatten()
    if len(drawn):
        cumulative = (logits[drawn].float() / temperature).softmax(-1).cumsum(-1)
        at = torch.rand(len(drawn), 1, generator=generator).to(logits.device) * cumulative[:, -1:]
        token[drawn] = torch.searchsorted(cumulative, at).flatten().clamp_max(logits.shape[1] - 1)
    return token


def groups_of(prompts: list[list[int]], size: int, tokens: int | None = None) -> list[list[list[int]]]:
    """Prompts in groups of at most `size`, each of similar length, so that little is spent on padding.

    With `tokens`, a group holds at most so many prompt tokens, padding included.
    """
    groups: list[list[list[int]]] = []
    for prompt in sorted(prompts, key=len):
        if not groups or len(groups[-1]) >= size or (tokens and (len(groups[-1]) + 1) * len(prompt) > tokens):
            groups.append([])
        groups[-1].append(prompt)
    return groups


def save_shard(path: Path, answered: list[Answered]) -> None:
    """Writes a shard under its final name only when it is whole, so that an interrupted run resumes cleanly."""
    lengths = torch.tensor([len(a.tokens) for a in answered])
    tensors = {
        "tokens": torch.cat([a.tokens for a in answered]),
        "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "prompt_lengths": torch.tensor([a.prompt_length for a in answered]),
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    os.replace(partial, path)


def load_shard(path: Path) -> list[Answered]:
    """The answers of one shard."""
    shard = load_file(path)
    ends = shard["offsets"].tolist()
    prompts = shard["prompt_lengths"].tolist()
    return [Answered(shard["tokens"][b:e], p) for b, e, p in zip(ends, ends[1:], prompts, strict=False)]


def load_shards(folder: Path) -> Iterator[Answered]:
    """Every answer stored below `folder`, in the order of the shards' names."""
    for path in sorted(folder.glob("*.safetensors")):
        yield from load_shard(path)
