"""The judge of sampled text: says yes to the same distribution and no to one that is off."""

import random

from helpers.chi_square import p_value


def sample(probabilities: list[float], seed: int, count: int = 4000) -> list[int]:
    return random.Random(seed).choices(range(len(probabilities)), probabilities, k=count)


LONG_TAIL = [1 / (rank + 1) for rank in range(300)]


def test_the_same_distribution() -> None:
    values = [p_value(sample(LONG_TAIL, 2 * i), sample(LONG_TAIL, 2 * i + 1)) for i in range(50)]
    assert min(values) > 1e-5
    assert sum(value < 0.1 for value in values) < 15


def test_the_most_likely_token_too_often() -> None:
    biased = [LONG_TAIL[0] * 1.5, *LONG_TAIL[1:]]
    assert max(p_value(sample(LONG_TAIL, 2 * i), sample(biased, 2 * i + 1, 8000)) for i in range(5)) < 0.01


def test_greedy_instead_of_sampled() -> None:
    assert p_value(sample(LONG_TAIL, 0), [0] * 4000) < 1e-100


def test_one_category_only() -> None:
    assert p_value([1] * 100, [1] * 100) == 1.0
