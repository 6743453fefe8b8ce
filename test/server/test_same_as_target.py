"""Speculation changes the speed alone: greedy text is the target's own, sampled text has its distribution."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.chi_square import p_value
from helpers.lossless import Referee
from helpers.serving import STRICT_CHECKS, Server, gamma_flags

pytestmark = pytest.mark.server

NEW_TOKENS = 32
BATCH = 16

# Short contexts and settings of the sampled tests.
SAMPLED: list[tuple[str, dict[str, Any]]] = [
    ("My favourite animal is the", {"temperature": 1.0}),
    ("Once upon a time there was a", {"temperature": 0.7, "top_p": 0.9}),
]

# Sampled tests: draws per setting, tokens per draw (the first comes from prefill, the others from verification).
DRAWS = 4096
DRAW_TOKENS = 4
# With fourteen comparisons, a correct server fails once in seven thousand runs.
SMALLEST_P = 1e-5


@dataclass(frozen=True)
class Plain:
    """What the target says without speculation.

    Attributes:
        continuations: greedy ones of all prompts.
        logprobs: those of some prompts and their answers.
        draws: sampled continuations, one list for each of SAMPLED.
    """

    continuations: list[list[int]]
    logprobs: list[dict[str, Any]]
    draws: list[list[tuple[int, ...]]]


@pytest.fixture(scope="module")
def plain(plain_flags: list[str], prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """Its server is stopped again at once: only one more than the shared one runs at any time."""
    with Server(plain_flags, tmp_path_factory.mktemp("plain") / "log") as running:
        return Plain(
            greedy(running, prompts, BATCH),
            logprobs(running, prompts),
            [draw(running, text, params)[0] for text, params in SAMPLED],
        )


@pytest.fixture(scope="module")
def prompts(referee: Referee) -> list[list[int]]:
    return referee.prompts()


@pytest.fixture(scope="module")
def reference(plain: Plain) -> list[list[int]]:
    return plain.continuations


def greedy(server: Server, prompts: list[list[int]], batch: int) -> list[list[int]]:
    """Greedy continuations, ``batch`` prompts at a time."""
    found: list[list[int]] = []
    for start in range(0, len(prompts), batch):
        body = {
            "input_ids": prompts[start : start + batch],
            "sampling_params": {"temperature": 0, "max_new_tokens": NEW_TOKENS},
        }
        found += [answer["output_ids"] for answer in server.post("/generate", body)]
    return found


def assert_same(referee: Referee, prompts: list, ours: list, reference: list) -> None:
    """Each continuation is the reference, up to a tie; and ties are what they should be: rare."""
    differences = [
        referee.first_difference(prompt, mine, its) for prompt, mine, its in zip(prompts, ours, reference, strict=True)
    ]
    found = [(i, difference) for i, difference in enumerate(differences) if difference is not None]
    assert not [item for item in found if not item[1].is_tie]
    assert len(found) <= len(prompts) // 10


def test_there_are_sixty_prompts(prompts: list[list[int]]) -> None:
    assert len(prompts) >= 60


def test_without_speculation_the_text_is_the_models_own(
    referee: Referee, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    """So that comparing with it means something: every token is the argmax of a plain forward pass."""
    for prompt, continuation in zip(prompts, reference, strict=True):
        assert referee.not_greedy(prompt, continuation) == []


@pytest.mark.parametrize("batch", [1, BATCH])
def test_greedy(
    server: Server, referee: Referee, prompts: list[list[int]], reference: list[list[int]], batch: int
) -> None:
    assert_same(referee, prompts, greedy(server, prompts, batch), reference)


def test_greedy_from_a_warm_cache(
    server: Server, referee: Referee, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    """Prompts and answers of the tests before are in the radix cache now; half of each answer becomes the prompt."""
    longer = [prompt + answer[: len(answer) // 2] for prompt, answer in zip(prompts, reference, strict=True)]
    rest = [answer[len(answer) // 2 :] for answer in reference]
    ours = [mine[: len(its)] for mine, its in zip(greedy(server, longer, BATCH), rest, strict=True)]
    assert_same(referee, longer, ours, rest)


@pytest.mark.long
@pytest.mark.parametrize("gamma", [1, 2, 4, 5])
def test_greedy_at_every_gamma(
    gamma: int,
    eagle_flags: list[str],
    tmp_path: Path,
    referee: Referee,
    prompts: list[list[int]],
    reference: list[list[int]],
) -> None:
    flags = [*eagle_flags, *gamma_flags(gamma), "--nightjar-policy", "off"]
    with Server(flags, tmp_path / "log", **STRICT_CHECKS) as server:
        for batch in (1, BATCH):
            assert_same(referee, prompts, greedy(server, prompts, batch), reference)


def test_greedy_while_gamma_flips(
    eagle_flags: list[str],
    tmp_path: Path,
    referee: Referee,
    prompts: list[list[int]],
    reference: list[list[int]],
) -> None:
    """γ follows the batch size, and at batch 1 the acceptance as well; answers of different lengths make it flip."""
    steps_by_batch_size = {1: [0, 1, 2, 5], 2: [0], 3: [2], 5: [4], 7: [0], 9: [1], 12: [3], 15: [5]}
    config = {str(size): {"candidate_steps": steps} for size, steps in steps_by_batch_size.items()}
    file = tmp_path / "adaptive.json"
    file.write_text(json.dumps({**config, "warmup_batches": 0, "update_interval": 1, "ema_alpha": 0.9}))
    flags = [
        *eagle_flags,
        *("--speculative-adaptive", "--speculative-adaptive-config", str(file), "--speculative-num-steps", "3"),
    ]
    with Server(flags, tmp_path / "log", **STRICT_CHECKS) as server:
        single = greedy(server, prompts[:20], 1)
        assert_same(referee, prompts[:20], single, reference[:20])
        assert server.log.read_text().count("Adaptive spec params updated") > 20

        lengths = [4 + (NEW_TOKENS - 4) * (i % BATCH) // (BATCH - 1) for i in range(len(prompts))]
        ours: list[list[int]] = []
        for start in range(0, len(prompts), BATCH):
            body = {
                "input_ids": prompts[start : start + BATCH],
                "sampling_params": [
                    {"temperature": 0, "max_new_tokens": length} for length in lengths[start : start + BATCH]
                ],
            }
            ours += [answer["output_ids"] for answer in server.post("/generate", body)]
        cut = [its[:length] for its, length in zip(reference, lengths, strict=True)]
        assert_same(referee, prompts, ours, cut)


def logprobs(server: Server, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """Greedy answers to a few prompts, with logprobs of the prompt and of the answer."""
    options = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 3}
    sampling = {"temperature": 0, "max_new_tokens": 24}
    bodies = [{"input_ids": prompt, "sampling_params": sampling, **options} for prompt in prompts[:6]]
    return [server.post("/generate", body)["meta_info"] for body in bodies]


def test_logprobs(server: Server, plain: Plain, prompts: list[list[int]]) -> None:
    """The same text has the same logprobs, of the prompt and of every generated token, speculated or not."""
    for with_it, without in zip(logprobs(server, prompts), plain.logprobs, strict=True):
        for name in ("input_token_logprobs", "output_token_logprobs"):
            ours, theirs = with_it[name], without[name]
            assert [entry[1] for entry in ours] == [entry[1] for entry in theirs]
            assert [e[0] for e in ours if e[0] is not None] == pytest.approx(
                [e[0] for e in theirs if e[0] is not None], abs=1e-3
            )
        for ours, theirs in zip(with_it["output_top_logprobs"], without["output_top_logprobs"], strict=True):
            assert [entry[0] for entry in ours] == pytest.approx([entry[0] for entry in theirs], abs=1e-3)


def draw(server: Server, text: str, params: dict[str, Any]) -> tuple[list[tuple[int, ...]], float]:
    """Sampled continuations of ``text``, and the share of draft tokens that were accepted."""
    sampling = {**params, "n": 64, "max_new_tokens": DRAW_TOKENS, "ignore_eos": True}
    answers = [
        answer
        for _ in range(DRAWS // 64)
        for answer in server.post("/generate", {"text": text, "sampling_params": sampling})
    ]
    proposed = sum(answer["meta_info"].get("spec_num_proposed_drafts", 0) for answer in answers)
    accepted = sum(answer["meta_info"].get("spec_num_correct_drafts", 0) for answer in answers)
    return [tuple(answer["output_ids"]) for answer in answers], accepted / proposed if proposed else 0.0


@pytest.mark.parametrize("which", [0, 1], ids=["temperature 1", "temperature 0.7 top-p 0.9"])
def test_sampled(server: Server, plain: Plain, which: int) -> None:
    """Next-token frequencies agree: alone at every position, and for pairs of neighbours."""
    ours, accepted = draw(server, *SAMPLED[which])
    theirs = plain.draws[which]
    assert len(ours) == len(theirs) == DRAWS
    # Both branches of rejection sampling were taken often, or the comparison would say little.
    assert 0.05 < accepted < 0.95
    values = {}
    for position in range(DRAW_TOKENS):
        values[position] = p_value([draw[position] for draw in ours], [draw[position] for draw in theirs])
    for position in range(DRAW_TOKENS - 1):
        pair = slice(position, position + 2)
        values[position, position + 1] = p_value([draw[pair] for draw in ours], [draw[pair] for draw in theirs])
    assert min(values.values()) > SMALLEST_P, values
