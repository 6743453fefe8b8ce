"""Which positions of a request the draft lacks."""

import numpy as np
import torch

from sglang_nightjar.draft.coverage import Coverage, runs


def coverage() -> Coverage:
    return Coverage(slots=64, rows=8, device="cpu")


def test_runs() -> None:
    assert runs(np.array([], dtype=bool)) == []
    assert runs(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
    assert runs(np.array([False, False])) == []


def test_a_draft_that_never_stopped_costs_nothing_and_lacks_nothing() -> None:
    made = coverage()
    made.wrote(torch.tensor([3]))
    assert not made.used
    assert made.stale_runs([torch.tensor([1, 2])]) == [[]]
    assert made.lags(np.array([1, 2])) == (0, 0)


def test_lag_is_counted_and_filled_from_the_front() -> None:
    made = coverage()
    made.skipped(torch.tensor([10, 11, 12]))
    made.lag[2] = 3
    assert made.missing(2, 20) == [(17, 20)]
    made.filled(2, (17, 19), 20)
    assert made.missing(2, 20) == [(19, 20)]
    made.filled(2, (19, 20), 20)
    assert made.missing(2, 20) == []


def test_a_prefix_with_holes_is_looked_up() -> None:
    made = coverage()
    made.skipped(torch.tensor([1, 2, 5, 9, 10]))
    made.uncertain[4] = True
    made.recount(4, torch.tensor([1, 2, 3, 5, 6, 9, 10]))
    assert made.missing(4, 7) == [(0, 2), (3, 4), (5, 7)]
    assert made.lags(np.array([4])) == (5, 5)
    made.filled(4, (0, 1), 7)
    assert made.missing(4, 7) == [(1, 2), (3, 4), (5, 7)]
    made.filled(4, (1, 2), 7)
    made.filled(4, (3, 4), 7)
    assert made.missing(4, 7) == [(5, 7)]
    assert not made.uncertain[4]


def test_a_new_request_in_the_row_starts_afresh() -> None:
    made = coverage()
    made.skipped(torch.tensor([1]))
    made.recount(3, torch.tensor([1, 2]))
    assert made.missing(3, 2)
    made.start(3, 0, 0, [])
    assert made.missing(3, 2) == []


def test_stale_spans_moved_slots_and_slots_written_again() -> None:
    made = coverage()
    made.skipped(torch.tensor([40, 41]))
    spans = [torch.tensor([1, 40]), torch.tensor([], dtype=torch.int64), torch.tensor([5])]
    assert made.stale_runs(spans) == [[(1, 2)], [], []]
    made.moved(torch.tensor([40, 3]), torch.tensor([7, 8]))
    assert made.stale_runs([torch.tensor([7]), torch.tensor([8])]) == [[(0, 1)], []]
    made.wrote(torch.tensor([7]))
    assert made.stale_runs([torch.tensor([7])]) == [[]]


def test_after_a_loss_nothing_is_there_until_it_is_written_again() -> None:
    made = coverage()
    made.start(1, 0, 0, [(0, 2)])
    made.start(2, 4, 3, [])
    made.lost({1: 5})
    assert made.lags(np.array([1, 2])) == (5, 5)
    assert made.stale_runs([torch.tensor([1, 63])]) == [[(0, 2)]]
    made.wrote(torch.tensor([11]))
    assert made.uncertain[1]
    made.recount(1, torch.tensor([10, 11, 12, 13, 14, 15]))
    assert made.missing(1, 6) == [(0, 1), (2, 6)]


def test_a_stale_prefix_counts_from_the_prompt_on() -> None:
    """Policies see the lag before anything of it is made good."""
    made = coverage()
    made.skipped(torch.tensor([1, 2, 5, 9, 10, 11]))
    prefix = torch.tensor([1, 2, 3, 5])
    [behind] = made.stale_runs([prefix])
    made.start(4, len(prefix), 3, behind)
    assert made.lags(np.array([4])) == (6, 6)
    assert made.missing(4, 7) == [(0, 2), (3, 7)]
    made.start(5, len(prefix), 0, behind)
    assert made.lags(np.array([4, 5])) == (6, 9)
