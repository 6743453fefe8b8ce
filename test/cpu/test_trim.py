"""Which drafts are verified: what brings most tokens per second, found against all that could be verified."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_nightjar.cpu import trim


class Times(trim.PassTimes):
    """A pass of ``fixed`` ns, and ``slope`` for each row above ``free``."""

    def __init__(self, fixed: float, slope: float, free: int):
        self.least_chance = 0.0
        self._of = lambda rows: fixed + slope * np.maximum(0, rows - free)

    def ns(self, first: int, last: int) -> np.ndarray:
        return self._of(np.arange(first, last + 1))


class Ticking(trim.PassTimes):
    """Passes that take as many ns as a table says."""

    def __init__(self, took: dict[int, int], most: int):
        self._took = took
        super().__init__(lambda rows: None, most)

    def _timed(self, run: object, rows: int) -> int:
        return self._took[rows]


def rate(chances: np.ndarray, lengths: tuple[int, ...], times: Times) -> float:
    """Expected tokens per ns if so many drafts of each request are verified."""
    tokens = sum(1 + row[:n].cumprod().sum() for row, n in zip(chances, lengths, strict=True))
    rows = len(lengths) + sum(lengths)
    return tokens / times.ns(rows, rows)[0]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(100.0, 1.0, 4), (10.0, 5.0, 0), (1.0, 0.0, 0)]),
)
def test_no_other_choice_yields_more(batch: int, gamma: int, seed: int, costs: tuple[float, float, int]) -> None:
    chances = np.random.default_rng(seed).random((batch, gamma)) ** 0.5
    times = Times(*costs)
    found = trim.keep(chances, times)
    lengths = (gamma,) * batch if found is None else tuple((found.lengths - 1).tolist())
    best = max(rate(chances, other, times) for other in itertools.product(range(gamma + 1), repeat=batch))
    assert rate(chances, lengths, times) >= best * (1 - 1e-9)
    if found is not None:
        mask = torch.arange(gamma + 1) < found.lengths[:, None]
        left = torch.zeros(batch * (gamma + 1), dtype=torch.bool)
        left[found.rows] = True
        assert torch.equal(left.view(batch, -1), mask) and len(found.rows) < batch * (gamma + 1)
        assert torch.equal(found.rows, mask.flatten().nonzero().flatten())
        assert torch.equal(found.rows // (gamma + 1), torch.arange(batch).repeat_interleave(found.lengths))


def test_certain_drafts_that_cost_the_same_keep_their_order() -> None:
    found = trim.keep(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), Times(100.0, 10.0, 0))
    assert found.lengths.tolist() == [3, 4]


def test_where_rows_are_free_all_are_verified_and_where_none_pays_none() -> None:
    chances = np.full((3, 2), 0.3)
    assert trim.keep(chances, Times(100.0, 0.0, 0)) is None
    assert trim.keep(chances, Times(0.0, 10.0, 0)).lengths.tolist() == [1, 1, 1]


def test_times_never_fall_with_the_rows_and_go_on_beyond_those_measured() -> None:
    took = {rows: 10 for rows in (1, 2, 4, 8, 12, 16, 24)} | {32: 10, 48: 26, 64: 42}
    made = Ticking(took, 100)
    assert made.ns(1, 3).tolist() == [10.0, 10.0, 10.0]
    assert made.ns(40, 40)[0] == 18.0 and made.ns(70, 70)[0] == 48.0
    for _ in range(100):
        made.note(25, 40)
    assert made.ns(1, 1)[0] == pytest.approx(10.0 + 7.0, rel=1e-3)
    made.note(10**12, 40)
    assert made.ns(1, 1)[0] < 20.0, "a pause is no iteration"
    fresh = trim.PassTimes(lambda rows: sum(range(200 * rows)), 100)
    assert (np.diff(fresh.ns(1, 100)) >= 0).all()


def test_what_was_left_out_counts_as_often_as_the_draft_thinks_it_would_be_accepted() -> None:
    """Half of the drafts judged by a target that agrees with each as often as its chance says, half by the coins."""
    draw = np.random.default_rng(3)
    chances = np.tile([0.9, 0.6, 0.3], (40_000, 1))
    agrees = draw.random(chances.shape) < chances
    lengths = draw.integers(1, 5, len(chances))
    verified = np.arange(3) < lengths[:, None] - 1
    accepted = (agrees & verified).cumprod(axis=1).sum(axis=1)
    kept = trim.Kept(torch.from_numpy(lengths), torch.empty(0), chances)
    likely = trim.likely_accepted(accepted, kept, draw.random(chances.shape))
    assert (likely >= accepted).all()
    # Whoever was rejected by the target stays so.
    rejected = accepted < lengths - 1
    assert np.array_equal(likely[rejected], accepted[rejected])
    reached = [float((likely > position).mean()) for position in range(3)]
    assert reached == pytest.approx([0.9, 0.54, 0.162], abs=0.008)
    assert accepted.mean() < 0.65 * sum(reached)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 6), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_whoever_ends_unlikely_chains_leaves_out_what_would_be_left_out_anyway(
    batch: int, gamma: int, seed: int
) -> None:
    """Where every row costs the same, what a draft must be worth is the same before and behind it."""
    chances = np.random.default_rng(seed).random((batch, gamma))
    times = Times(20.0, 1.0, 0)
    whole = trim.keep(chances, times)
    before = np.concatenate((np.ones((batch, 1)), chances.cumprod(axis=1)[:, :-1]), axis=1)
    ended = np.where(before >= times.least_chance, chances, 0.0)
    lengths = [trim.keep(each, times) for each in (chances, ended)]
    assert (lengths[0] is None) == (lengths[1] is None) == (whole is None)
    assert whole is None or torch.equal(lengths[0].lengths, lengths[1].lengths)


def test_how_likely_a_draft_has_to_be_follows_from_what_rows_cost() -> None:
    chances = np.full((4, 2), 0.5)
    free, dear = Times(100.0, 0.0, 0), Times(0.0, 10.0, 0)
    trim.keep(chances, free)
    trim.keep(chances, dear)
    # Where a pass takes ten times as long with ten rows, a draft must be as good as a request's own token.
    assert free.least_chance == 0.0 and dear.least_chance == pytest.approx(1.0)


def test_a_draft_that_was_not_made_has_the_chance_that_is_usual_at_its_position() -> None:
    usual = trim.UsualChances()
    assert usual.fill(np.array([[0.5, 0.0], [0.7, 0.0]])).tolist() == [[0.5, 0.0], [0.7, 0.0]], "nothing is known yet"
    for _ in range(400):
        filled = usual.fill(np.array([[0.9, 0.6, 0.3], [0.5, 0.4, 0.0], [0.7, 0.0, 0.0]]))
    assert filled == pytest.approx(np.array([[0.9, 0.6, 0.3], [0.5, 0.4, 0.3], [0.7, 0.5, 0.3]]), abs=1e-3)
    assert usual.fill(np.array([[0.2, 0.0]]))[0, 1] == pytest.approx(0.5, abs=1e-3), "nobody made one: as before"
