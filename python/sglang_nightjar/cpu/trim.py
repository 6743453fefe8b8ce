"""Which drafts of a batch are verified: of the likeliest as many as pay.

A pass takes longer by the row as soon as it waits for its products and no longer for the weights, on two cores from a
dozen rows on. A draft is then worth its row only if it is likely enough that it and all in front of it are accepted;
and the draft head says how likely: where it gives its token a probability p, some p of such drafts are accepted. So the
drafts of all requests are sorted by that chance, and verified is the beginning of the list that yields most tokens per
second. TETRIS (arXiv 2502.15197) sorts so too, for a number of rows that is given; here the number follows from what a
row costs on this machine, and it is 0 where none pays.

A chain whose drafts have become too unlikely for that is not gone on with either: the next draft would be less likely
still (SVIP, arXiv 2411.18462, ends chains so, at an entropy that is given).

What is left out is not judged, and judged are the likely ones: who counted only these would think the draft better than
it is, and of all drafts worse. So for those left out a coin with the draft's probability decides what is told of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
import torch

# Where a verification's input has what is left of it, and its result what was `tell`ed of it.
_KEPT, _TOLD = "nightjar_kept", "nightjar_told"

#: Rows of the passes that are timed; in between a pass takes what lies between.
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_TIMES = 3
#: Not torch's own generator, from which SGLang draws tokens.
_coins = np.random.default_rng(0)
#: Of a new iteration in `PassTimes.rest_ns`.
_FADE = 0.1
#: Of a new iteration in `UsualChances`.
_FADE_OF_CHANCES = 0.02
#: Rows by which a pass is compared with a longer one, to say what a row more would take.
_FURTHER = 8


@dataclass(frozen=True)
class Kept:
    """The rows of a verification that are left.

    Attributes:
        lengths: int64 ``[batch]``, how many each request has: its bonus token, and the first of its drafts.
        rows: int64 ``[kept]``, their places among all ``batch * (γ + 1)`` rows.
        chances: float64 ``[batch, γ]``, how likely each draft is to be accepted, given those in front of it.
    """

    lengths: torch.Tensor
    rows: torch.Tensor
    chances: np.ndarray


class Told(NamedTuple):
    """Of a verification that was cut short: its rows, and how many drafts of each request were, or would have been,
    accepted."""

    rows: int
    likely: list[int]


class PassTimes:
    """How long an iteration takes that verifies so many rows.

    Attributes:
        rest_ns: what it takes besides the target's pass: drafting, sampling, SGLang; as of the last iterations.
        least_chance: how likely a draft had to be in the last verification to be worth a row of it.
    """

    def __init__(self, run: Callable[[int], None], most: int):
        """``run(rows)`` makes one pass; it is timed some thirty times. Asked for are times up to ``most`` rows."""
        run(_ROWS[-1])
        shortest = [min(self._timed(run, rows) for _ in range(_TIMES)) for rows in _ROWS]
        # What was in a pass' way makes it longer, never shorter.
        ns = np.minimum.accumulate(shortest[::-1])[::-1]
        rows, per_row = np.arange(most + 1), (ns[-1] - ns[-3]) / (_ROWS[-1] - _ROWS[-3])
        self._pass_ns = np.interp(rows, _ROWS, ns) + per_row * np.maximum(0, rows - _ROWS[-1])
        self.rest_ns = self.least_chance = 0.0

    def note(self, iteration_ns: int, rows: int) -> None:
        """An iteration that verified ``rows`` rows took so long; as a pause may have come between, one counts for twice
        what was expected at most."""
        passed = float(self._pass_ns[rows])
        counted = min(float(iteration_ns), 2.0 * (passed + self.rest_ns))
        self.rest_ns += _FADE * (max(0.0, counted - passed) - self.rest_ns)

    def ns(self, first: int, last: int) -> np.ndarray:
        """ns of iterations with ``first`` to ``last`` rows, float64 ``[last - first + 1]``."""
        return np.asarray(self._pass_ns[first : last + 1] + self.rest_ns)

    @staticmethod
    def _timed(run: Callable[[int], None], rows: int) -> int:
        began = perf_counter_ns()
        run(rows)
        return perf_counter_ns() - began


class UsualChances:
    """The mean chance of the drafts made at each position: of one that was not made nothing else is known."""

    def __init__(self) -> None:
        self._mean = np.zeros(0)

    def fill(self, chances: np.ndarray) -> np.ndarray:
        """``chances`` float64 ``[batch, γ]`` with the usual ones in the place of 0, a draft that was not made."""
        made, gamma = chances > 0, chances.shape[1]
        number = made.sum(axis=0)
        mean = np.where(made, chances, 0.0).sum(axis=0) / np.maximum(1, number)
        known = len(self._mean)
        if gamma > known:
            self._mean = np.append(self._mean, mean[known:])
        usual = self._mean[:gamma]
        usual += np.where(usual > 0, _FADE_OF_CHANCES, 1.0) * np.where(number > 0, mean - usual, 0.0)
        return np.where(made, chances, usual)


def kept_of(verify_input: Any) -> Kept | None:
    """What is left of SGLang's ``EagleVerifyInput``; None if all of it."""
    return getattr(verify_input, _KEPT, None)


def leave(verify_input: Any, kept: Kept | None) -> None:
    """Say what is left of an ``EagleVerifyInput``."""
    setattr(verify_input, _KEPT, kept)


def tell(result: Any, kept: Kept) -> None:
    """Note on a verification's ``GenerationBatchResult`` what `told` says."""
    likely = likely_accepted(result.accept_lens.cpu().numpy() - 1, kept, _coins.random(kept.chances.shape))
    setattr(result, _TOLD, Told(len(kept.rows), likely.tolist()))


def told(result: Any) -> Told | None:
    """What `tell` noted; None if everything was verified."""
    return getattr(result, _TOLD, None)


def likely_accepted(accepted: np.ndarray, kept: Kept, coins: np.ndarray) -> np.ndarray:
    """Drafts of each request that were accepted, or would have been if the chain had not been cut, int64 ``[batch]``.

    ``accepted`` integers ``[batch]``; ``coins`` float ``[batch, γ]``, uniform in 0 to 1.
    """
    depth = np.arange(coins.shape[1])
    verified = depth < kept.lengths.numpy()[:, None] - 1
    passes = np.where(verified, depth < accepted[:, None], coins < kept.chances)
    return np.asarray(np.logical_and.accumulate(passes, axis=1).sum(axis=1))


def shrink(forward_batch: Any, kept: Kept) -> None:
    """Take the other rows out of the ``ForwardBatch`` of a verification."""
    for name in ("input_ids", "positions", "out_cache_loc"):
        setattr(forward_batch, name, getattr(forward_batch, name)[kept.rows])


def keep(chances: np.ndarray, times: PassTimes) -> Kept | None:
    """What to verify of chains whose drafts are accepted, each given those in front of it, with ``chances``.

    ``chances`` is float64 ``[batch, γ]``, γ at least 1. None if all of it. Notes ``times.least_chance``.
    """
    batch, gamma = chances.shape
    # Sorted from the front of the chains to their ends: of equal chances, the earlier draft comes first.
    reached = np.minimum(chances, 1.0).cumprod(axis=1).T.ravel()
    order = np.argsort(-reached, kind="stable")
    tokens = batch + np.concatenate(([0.0], reached[order].cumsum()))
    ns = times.ns(batch, batch * (gamma + 1))
    best = int(np.argmax(tokens / ns))
    further = min(best + _FURTHER, batch * gamma)
    times.least_chance = float(tokens[best] / ns[best] * (ns[further] - ns[best]) / max(1, further - best))
    if best == batch * gamma:
        return None
    verified = np.zeros(batch * gamma, dtype=bool)
    verified[order[:best]] = True
    mask = np.concatenate((np.ones((batch, 1), dtype=bool), verified.reshape(gamma, batch).T), axis=1)
    return Kept(torch.from_numpy(mask.sum(axis=1)), torch.from_numpy(np.flatnonzero(mask)), chances)
