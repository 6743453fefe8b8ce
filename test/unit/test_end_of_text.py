"""patches/schedule_batch.py: a step of several tokens ends a request exactly where single steps would have."""

from itertools import product

import pytest
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_nightjar.patches.schedule_batch import end_at_the_first_end

EOS = 0
LETTERS = "_abcd"


class Letters:
    """A tokenizer whose tokens are letters; token 0 ends the text."""

    eos_token_id = EOS
    additional_stop_token_ids = None

    def decode(self, ids: list[int]) -> str:
        return "".join(LETTERS[i] for i in ids)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [LETTERS.index(letter) for letter in text]


class Grammar:
    """Terminated from the start, as SGLang's is once it has seen the whole step."""

    def is_terminated(self) -> bool:
        return True


def request(limit: int, stop: str | None = None) -> Req:
    params = SamplingParams(max_new_tokens=limit, stop=stop)
    params.normalize(Letters())
    req = Req("id", "", [1], params, vocab_size=100, eos_token_ids={EOS})
    req.tokenizer = Letters()
    return req


def run(req: Req, steps: list[list[int]], update) -> tuple[list[int], str]:
    """Text and reason after these steps; stops at the step that ends the request."""
    for step in steps:
        req.output_ids.extend(step)
        update(req, len(step))
        if req.finished():
            break
    length = req.finished_len if req.finished_len is not None else len(req.output_ids)
    return list(req.output_ids[:length]), str(req.finished_reason and req.finished_reason.to_json())


def ours(req: Req, count: int) -> None:
    end_at_the_first_end(Req.update_finish_state, req, count)


@pytest.mark.parametrize("stop", [None, "bc", "d"])
@pytest.mark.parametrize("limit", [2, 3, 4, 9])
def test_every_step_of_three_tokens(limit: int, stop: str | None) -> None:
    """All continuations of three tokens over five letters, after one token: as with single steps."""
    for tokens in product(range(5), repeat=3):
        single = run(request(limit, stop), [[1], *([token] for token in tokens)], Req.update_finish_state)
        assert run(request(limit, stop), [[1], list(tokens)], ours) == single, tokens


def test_stock_sglang_needs_the_patch() -> None:
    """If this fails with a newer SGLang, the patch can go."""
    text, _ = run(request(3), [[1], [EOS, 2]], Req.update_finish_state)
    assert text == [1, EOS, 2]
    text, _ = run(request(3), [[1], [EOS, 2]], ours)
    assert text == [1, EOS]


def test_a_grammar_ends_with_the_last_token_of_its_step() -> None:
    req = request(9)
    req.grammar = Grammar()
    text, reason = run(req, [[1, 2, 3]], ours)
    assert text == [1, 2, 3]
    assert "'matched': 3" in reason
    assert isinstance(req.grammar, Grammar)


def test_what_follows_the_end_stays_in_the_list() -> None:
    """SGLang frees the cache slots of the whole step by the list's length."""
    req = request(9)
    run(req, [[1, EOS, 2]], ours)
    assert list(req.output_ids) == [1, EOS, 2]
    assert req.finished_len == 2


def test_an_aborted_request_is_left_alone() -> None:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    req = request(9)
    req.to_finish = FINISH_ABORT("gone")
    run(req, [[1, EOS, 2]], ours)
    assert isinstance(req.finished_reason, FINISH_ABORT)
