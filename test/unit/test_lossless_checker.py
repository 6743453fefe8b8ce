"""The judge of the lossless tests must itself be able to say no."""

from pathlib import Path

import pytest
import torch
from helpers.lossless import Referee
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def referee(tmp_path_factory: pytest.TempPathFactory) -> Referee:
    """A tiny random target, without a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    folder: Path = tmp_path_factory.mktemp("target")
    LlamaForCausalLM(config).save_pretrained(folder)
    judge = Referee.__new__(Referee)
    judge._target = folder
    judge._single = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return judge


PROMPT = [1, 5, 9]


def greedy(referee: Referee, length: int) -> list[int]:
    ids = list(PROMPT)
    for _ in range(length):
        ids.append(int(referee.logits(ids, last=1)[0].argmax()))
    return ids[len(PROMPT) :]


def test_greedy_text_is_accepted(referee: Referee) -> None:
    text = greedy(referee, 12)
    assert referee.not_greedy(PROMPT, text) == []
    assert referee.first_difference(PROMPT, text, text) is None


def test_a_wrong_token_is_found(referee: Referee) -> None:
    text = greedy(referee, 12)
    second = int(referee.logits(PROMPT + text[:4], last=1)[0][0].topk(2).indices[1])
    wrong = [*text[:4], second, *text[5:]]
    assert 4 in referee.not_greedy(PROMPT, wrong)
    difference = referee.first_difference(PROMPT, wrong, text)
    assert difference is not None
    assert difference.position == 4
    assert difference.tokens == (second, text[4])
    assert not difference.is_tie


def test_a_text_that_ends_early_is_no_tie(referee: Referee) -> None:
    text = greedy(referee, 12)
    difference = referee.first_difference(PROMPT, text[:5], text)
    assert difference is not None
    assert difference.position == 5
    assert not difference.is_tie


def test_a_tie_is_a_tie(referee: Referee) -> None:
    """Two tokens with the same row of the head have the same logit."""
    text = greedy(referee, 4)
    twin = (text[3] + 1) % 64
    for model in (referee._single, referee._double):
        with torch.no_grad():
            model.lm_head.weight[twin] = model.lm_head.weight[text[3]]
    difference = referee.first_difference(PROMPT, [*text[:3], twin], text)
    assert difference is not None
    assert difference.is_tie
