"""How much of what would be accepted is verified: by cell, from neighbours, and kept over a restart."""

import numpy as np
import pytest

from sglang_nightjar.core.kept_share import KeptShare
from sglang_nightjar.core.latency_model import SIZES, bucket

GAMMAS = (0, 1, 3, 5)


def told(*cells: tuple[int, int, int, int], times: int = 200) -> KeptShare:
    """``cells`` of (batch size, column, accepted, likely)."""
    kept = KeptShare(GAMMAS)
    for _ in range(times):
        for size, column, accepted, likely in cells:
            kept.add(bucket(size), column, accepted, likely)
    return kept


def test_where_nothing_is_left_out_all_is_kept() -> None:
    assert np.array_equal(told().shares(), np.ones((len(SIZES), 4)))
    assert told((8, 2, 5, 5), (1, 3, 2, 2)).shares() == pytest.approx(np.ones((len(SIZES), 4)))


def test_a_cell_knows_its_own_share_and_tells_its_neighbours_of_the_same_gamma() -> None:
    shares = told((12, 3, 4, 10)).shares()
    assert shares[bucket(12), 3] == pytest.approx(0.4, abs=0.01)
    assert 0.4 < shares[bucket(10), 3] < 0.5
    assert shares[bucket(1), 3] == pytest.approx(1.0, abs=0.01)
    assert (shares[:, :3] == 1.0).all() and (shares >= 0.0).all() and shares.max() == pytest.approx(1.0)


def test_what_changes_is_followed_and_absurd_counts_stay_within_bounds() -> None:
    kept = told((12, 3, 4, 10), times=1000)
    for _ in range(1000):
        kept.add(bucket(12), 3, 9, 10)
    assert kept.shares()[bucket(12), 3] == pytest.approx(0.9, abs=0.01)
    kept.add(bucket(12), 3, 10**9, 10**6)
    kept.add(bucket(12), 3, 5, 0)
    assert kept.shares().min() >= 0.0 and kept.shares().max() == pytest.approx(1.0)


def test_it_is_taken_up_as_it_was_saved_and_nonsense_is_refused() -> None:
    kept, other = told((12, 3, 4, 10), (4, 1, 2, 3)), KeptShare(GAMMAS)
    other.restore(kept.state())
    assert np.array_equal(kept.shares(), other.shares())
    for bad in ([[0, 0, 2, 1]], [[0, 0, -1, 1]], [[0, 0, float("nan"), 1]], [[-1, 0, 1, 1]], [[10**6, 0, 1, 1]]):
        with pytest.raises(ValueError, match="kept of"):
            KeptShare(GAMMAS).restore(bad)


def test_other_candidates_take_up_what_was_learnt_of_their_own_gammas() -> None:
    kept, other = told((12, 3, 4, 10), (4, 1, 2, 3)), KeptShare((0, 5, 7))
    other.restore(kept.state())
    assert other.shares()[bucket(12), 1] == kept.shares()[bucket(12), 3] < 0.5
    assert (other.shares()[:, [0, 2]] == 1.0).all()
