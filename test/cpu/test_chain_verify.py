"""Greedy text under penalties, bias and min_new_tokens: chains of drafts commit what a token at a time would."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_nightjar.cpu import chain_verify, kernels

VOCAB = 12
STOP = 11
BATCH = 5
WIDTH = 4
TOKENS = 24

# Logits of a target that looks at the last token only.
NEXT = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3)) * 2

CASES = {
    "frequency": {"frequency_penalty": 0.7},
    "presence": {"presence_penalty": 1.5},
    "repetition": {"repetition_penalty": 1.4},
    "minimum": {"min_new_tokens": 9},
    "all": {"frequency_penalty": 0.3, "presence_penalty": 0.4, "repetition_penalty": 1.2, "min_new_tokens": 15},
}


class Batch:
    """What a penalizer asks of a ScheduleBatch; unlike a SimpleNamespace, it can be held weakly."""

    def __init__(self, reqs: list[SimpleNamespace]):
        self.reqs, self.device = reqs, "cpu"


def new_penalizers(settings: dict) -> tuple[Any, Batch]:
    from sglang.srt.sampling import penaltylib

    # Every second request has no penalties.
    none = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_new_tokens": 0}
    tokenizer = SimpleNamespace(eos_token_id=STOP, additional_stop_token_ids=None)
    requests = [
        SimpleNamespace(
            sampling_params=SimpleNamespace(**{**none, **(settings if i % 2 == 0 else {}), "stop_token_ids": None}),
            tokenizer=tokenizer,
        )
        for i in range(BATCH)
    ]
    batch = Batch(requests)
    kinds = {
        penaltylib.BatchedFrequencyPenalizer,
        penaltylib.BatchedPresencePenalizer,
        penaltylib.BatchedRepetitionPenalizer,
        penaltylib.BatchedMinNewTokensPenalizer,
    }
    orchestrator = penaltylib.BatchedPenalizerOrchestrator(vocab_size=VOCAB, batch=batch, penalizers=kinds)
    # It holds the batch weakly.
    return orchestrator, batch


def token_by_token(settings: dict, bias: torch.Tensor | None) -> list[list[int]]:
    orchestrator, _batch = new_penalizers(settings)
    last = torch.arange(BATCH)
    texts: list[list[int]] = [[] for _ in range(BATCH)]
    for _ in range(TOKENS):
        orchestrator.cumulate_output_tokens(last)
        logits = NEXT[last].clone()
        orchestrator.apply(logits, repeat=1)
        if bias is not None:
            logits += bias
        last = logits.argmax(-1)
        for text, token in zip(texts, last.tolist(), strict=True):
            text.append(token)
    return texts


def in_chains(settings: dict, bias: torch.Tensor | None, truth: list[list[int]]) -> tuple[list[list[int]], int]:
    """The same text through verify_chain; drafts are the truth with a few mistakes. Also says how many were right."""
    generator = torch.Generator().manual_seed(5)
    orchestrator, _batch = new_penalizers(settings)
    info = SimpleNamespace(
        is_all_greedy=True, logit_bias=bias, has_custom_logit_processor=False, **{chain_verify.PENALIZERS: orchestrator}
    )
    last = torch.arange(BATCH)
    texts: list[list[int]] = [[] for _ in range(BATCH)]
    right = 0
    while min(len(text) for text in texts) < TOKENS:
        orchestrator.cumulate_output_tokens(last)
        drafts = torch.randint(VOCAB, (BATCH, WIDTH - 1), generator=generator)
        for i, text in enumerate(texts):
            ahead = truth[i][len(text) : len(text) + WIDTH - 1]
            good = int(torch.randint(WIDTH, (1,), generator=generator))
            for place, token in enumerate(ahead[:good]):
                drafts[i, place] = token
        chain = torch.cat([last.view(-1, 1), drafts], dim=1)
        output = SimpleNamespace(next_token_logits=NEXT[chain].view(-1, VOCAB).clone())
        verify_input = SimpleNamespace(draft_token=chain.flatten(), draft_token_num=WIDTH, positions=None)
        tokens, count, index = chain_verify.verify_chain(
            verify_input, SimpleNamespace(seq_lens=last, sampling_info=info), output
        )
        assert torch.equal((index >= 0).sum(1).to(torch.int32), count)
        for i, text in enumerate(texts):
            committed = tokens.view(BATCH, WIDTH)[i, : count[i]].tolist()
            text += committed
            right += len(committed) - 1
            last[i] = committed[-1]
    return [text[:TOKENS] for text in texts], right


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_chains_commit_the_text_of_a_token_at_a_time(name, biased):
    bias = torch.randn(BATCH, VOCAB, generator=torch.Generator().manual_seed(9)) if biased else None
    truth = token_by_token(CASES[name], bias)
    texts, right = in_chains(CASES[name], bias, truth)
    assert texts == truth
    # Otherwise chains of one token would pass.
    assert right > TOKENS


def test_penalties_matter_here():
    assert token_by_token(CASES["all"], None) != token_by_token({"frequency_penalty": 1e-9}, None)


def test_argmax_is_torchs(monkeypatch):
    rows = torch.randn(7, 4099)
    rows[1, 5] = rows[1, 4000] = 9.0
    rows[2] = float("-inf")
    rows[3, 17] = float("nan")
    assert torch.equal(chain_verify.argmax(rows), rows.argmax(-1))
    assert torch.equal(chain_verify.argmax(rows[:, :3].contiguous()), rows[:, :3].argmax(-1))
    monkeypatch.setattr(kernels, "in_use", lambda: False)
    assert torch.equal(chain_verify.argmax(rows), rows.argmax(-1))


def test_without_drafts_every_token_counts():
    info = SimpleNamespace(
        is_all_greedy=True, logit_bias=None, has_custom_logit_processor=False, nightjar_penalizers=None
    )
    logits = torch.randn(5, 32)
    batch = SimpleNamespace(sampling_info=info, seq_lens=torch.ones(5))
    made = SimpleNamespace(draft_token_num=1, draft_token=torch.zeros(5, dtype=torch.int64))
    tokens, count, index = chain_verify.verify_chain(made, batch, SimpleNamespace(next_token_logits=logits))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert count.tolist() == [1] * 5 and index.tolist() == [[0], [1], [2], [3], [4]]
    assert tokens.dtype == count.dtype == index.dtype == torch.int32
