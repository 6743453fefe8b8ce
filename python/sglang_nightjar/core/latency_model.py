"""How long an iteration takes: one model in batch size, γ and context for all cells, corrected by what each cell saw.

A cell is a (batch-size bucket, γ). It keeps a robust mean of its own iterations. A few parameters explain all cells:

    ns = a + b·[γ>0] + c·γ + d·B + e·(R - B) + f·γB + Σ g_k·max(0, R - k) + h·context

with R rows that the target computes, B(γ+1) unless some are left out (`Plan.trim`): fixed cost, verification, draft
steps, requests, drafts in the target's pass and in the draft's own, the knees where a forward pass turns from
memory-bound to compute-bound (the roofline), attention. None of them is negative. Fitted by least squares on relative
errors, with priors that say what is usual while little is known. What the formula misses stays as a factor on the cell,
shared with its neighbours as far as they know nothing themselves (partial pooling). So a size never seen has an
estimate with an error bar, and one seen often has what it saw.

Machines that others share are slow for seconds, whatever runs on them. How alike iterations in a row are is measured
(`LatencyModel.alike`); where they are, each says less, and a common pace is followed and taken off, so that cells that
were seen one after the other are compared as they would be side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sglang_nightjar.core.gammas import bucket_of

#: Lower ends of the buckets: single sizes up to 8, then four to the octave.
SIZES = (*range(1, 9), *(base * step for base in (2, 4, 8, 16, 32, 64, 128, 256) for step in (5, 6, 7, 8)))
_KNEES = (12.0, 64.0, 256.0)
_FEATURES = 7 + len(_KNEES)
#: Prior mean and deviation of each parameter but the context's, in shares of an iteration of one row.
_PRIOR = np.array([0.9, 0.05, 0.08, 0.01, 0.005, 0.005, *([0.0] * len(_KNEES))])
_DEVIATION = np.array([0.5, 0.1, 0.1, 0.02, 0.02, 0.02, *([0.03] * len(_KNEES))])
_CONTEXT_SHARE = 0.15
#: What the formula misses of a cell, relative; and iterations after which a cell knows its own noise.
_MISFIT, _ENOUGH = 0.04, 20.0
_MEMORY = 512
_EARLY = 5
_CLIP, _IN_A_ROW = 4.0, 8
#: Iterations over which the price of context, as seen within cells, is remembered.
_WITHIN = 2000.0
#: Weight of the newest iteration's context per request. Requests that begin together grow together; an estimate that
#: lags makes every iteration look too short, and the shortest of them, that of γ=0, the most.
_NEWEST = 0.2
#: Iterations of a stretch; over how many stretches is remembered how much alike they are; and what is thought before
#: there were any: so much alike, as sure as one stretch of such errors would make it.
_STRETCH, _STRETCHES_KEPT = 32, 50.0
_USUALLY_ALIKE, _USUAL_SQUARES = 2.0, _STRETCH * 0.03**2
#: How fast the pace is followed, and how much alike iterations must be for it: less may be context that grows.
_FOLLOW, _UNEVEN = 0.2, 3.0
#: Share of an iteration that its usual context may take before a stretch counts as slow.
_GROWTH_SHARE = 0.2
#: Share of its time by which a cell's iterations may differ for their sizes and rows.
_LARGER_SHARE = 0.5
#: Relative variance that an iteration without a look adds to a cell.
_DRIFT = 0.0004**2
_OCTAVE = np.log2(SIZES)
#: How much a cell's factor says about another of the same γ: half an octave away a third.
NEIGHBOURS = np.exp(-(((_OCTAVE[:, None] - _OCTAVE[None, :]) / 0.5) ** 2)) * (1 - np.eye(len(SIZES)))


def bucket(batch_size: int) -> int:
    """Index into `SIZES`."""
    return bucket_of(SIZES, batch_size)


@dataclass(slots=True)
class Reading:
    """Robust means of one cell: ns, batch size, rows, context tokens; and how many iterations, and when the last one
    came."""

    ns: float = 0.0
    size: float = 0.0
    rows: float = 0.0
    context: float = 0.0
    spread: float = 0.05
    count: int = 0
    seen: int = 0
    streak: int = 0
    early: list[float] = field(default_factory=list)

    def add(self, ns: float, larger: float, size: int, rows: int, context: int, now: int) -> float:
        """The first few iterations count by their median; later ones are clipped, so that an outlier says little.

        A row of clipped ones on the same side is no outlier but a new time: the cell starts anew. ``larger``: ns that
        this one should take beyond the mean, for its size and rows. Returns by how much it differed from that,
        clipped; 0 while there is no mean to speak of.
        """
        self.seen = now
        if self.count < _EARLY:
            self.early.append(ns)
            self.early.sort()
            middle = self.early[(len(self.early) - 1) // 2]
            self.count += 1
            self.ns = middle
            self.size += (size - self.size) / self.count
            self.rows += (rows - self.rows) / self.count
            self.context += (context - self.context) / self.count
            return 0.0
        error = ns - self.ns - larger
        limit = _CLIP * self.spread * self.ns
        if abs(error) > limit:
            side = 1 if error > 0 else -1
            self.streak = self.streak + side if self.streak * side >= 0 else side
            if abs(self.streak) >= _IN_A_ROW:
                self.early, self.count, self.streak = [ns], 1, 0
                self.ns, self.size, self.rows, self.context = ns, float(size), float(rows), float(context)
                return 0.0
            error = limit * side
        else:
            self.streak = 0
        self.count += 1
        step = max(1.0 / self.count, 1.0 / _MEMORY)
        self.spread += step * (max(0.004, 1.25 * abs(error) / self.ns) - self.spread)
        self.ns += step * (error + larger)
        self.size += step * (size - self.size)
        self.rows += step * (rows - self.rows)
        self.context += step * (context - self.context)
        return error


class LatencyModel:
    """Times of all cells.

    Attributes:
        gammas: the candidates.
        cells: by (bucket, γ).
        ns: float64[sizes, gammas], expected ns at `SIZES`, after `fit`, at the machine's usual pace.
        deviation: float64[sizes, gammas], relative.
        pace: logarithm of what everything takes at present, on a machine that others share, against what cells say.
    """

    def __init__(self, gammas: tuple[int, ...]) -> None:
        self.gammas = gammas
        self.cells: dict[tuple[int, int], Reading] = {}
        self.parameters = np.zeros(_FEATURES)
        #: Of a request, a drafted row of the target's, one of the draft's; and of rows above the knees that have one.
        self._prices, self._knees = (0.0, 0.0, 0.0), list[tuple[float, float]]()
        self.context_per_request = 0.0
        self._within = [0.0, 0.0]
        self.pace = 0.0
        self._stretch = 0, 0.0, 0.0
        self._stretches = [0.0, 0.0]
        self.ns = np.ones((len(SIZES), len(gammas)))
        self.deviation = np.full((len(SIZES), len(gammas)), 0.5)
        self._column = {gamma: index for index, gamma in enumerate(gammas)}
        self._grid = np.repeat(SIZES, len(gammas)).astype(float), np.tile(gammas, len(SIZES)).astype(float)

    def add(
        self, batch_size: int, gamma: int, ns: float, context: int, now: int, exact: bool = True, rows: int = 0
    ) -> None:
        """One iteration of ``gamma``; ``now`` counts iterations. Not ``exact``: something was taken off its time.

        ``rows`` that the target computed; 0: all of them.
        """
        key = (bucket(batch_size), gamma)
        cell = self.cells.get(key)
        if cell is None:
            cell = self.cells[key] = Reading()
        rows = rows or batch_size * (gamma + 1)
        further, before = context - cell.context, cell.ns
        larger = self._larger(cell, batch_size, gamma, rows) if cell.count >= _EARLY else 0.0
        pace = self.pace
        if exact and cell.count >= _EARLY:
            usual = before + larger
            self._note_stretch(_log_ratio(ns, usual + self._growth(cell) * further))
            uneven = max(0.0, 1.0 - _UNEVEN / self.alike)
            self.pace += _FOLLOW * uneven * min(0.3, max(-0.3, _log_ratio(ns, usual) - pace))
        error = cell.add(ns * math.exp(-pace), larger, batch_size, rows, context, now)
        if error:
            # Beyond size and rows only the context differs within a cell: that is where its price shows.
            x, y, weight = further / before, error / before, 1.0 / (cell.spread * cell.spread)
            self._within[0] += weight * x * x - self._within[0] / _WITHIN
            self._within[1] += weight * x * y - self._within[1] / _WITHIN
        self.context_per_request += _NEWEST * (context / batch_size - self.context_per_request)

    @property
    def alike(self) -> float:
        """How many iterations in a row tell as much as one, 1 to `_STRETCH`: by the method of batch means, the variance
        of stretches' means against what it would be if each iteration erred by itself.

        On a machine that others share a second is slow or fast as a whole. Who takes its iterations for independent
        is sure that a cell seen in a slow one is slow.
        """
        means, squares = self._stretches
        alike = (means + _USUALLY_ALIKE * _USUAL_SQUARES) / (squares + _USUAL_SQUARES)
        return min(float(_STRETCH), max(1.0, alike))

    def _note_stretch(self, error: float) -> None:
        number, total, squares = self._stretch
        self._stretch = number + 1, total + error, squares + error * error
        if number + 1 == _STRETCH:
            for index, value in enumerate((self._stretch[1] ** 2, self._stretch[2])):
                self._stretches[index] += value - self._stretches[index] / _STRETCHES_KEPT
            self._stretch = 0, 0.0, 0.0

    def _larger(self, cell: Reading, batch_size: int, gamma: int, rows: int) -> float:
        """ns that so many requests and rows take beyond the cell's mean ones, as the last fit says.

        A cell holds batches of up to a quarter more requests, and trimming leaves now more, now fewer rows of equal
        ones. Taken for the machine's pace, that would be taken off the next cell's times.
        """
        request, row, drafted = self._prices
        usual = cell.rows
        found = (request - row + gamma * drafted) * (batch_size - cell.size) + row * (rows - usual)
        for knee, price in self._knees:
            found += price * ((rows if rows > knee else knee) - (usual if usual > knee else knee))
        most = _LARGER_SHARE * cell.ns
        return found if -most < found < most else math.copysign(most, found)

    def _growth(self, cell: Reading) -> float:
        """ns per token of context, of which not too much is believed: a slow second may look like it."""
        weight, price = self._within
        return min(max(0.0, price / weight), _GROWTH_SHARE * cell.ns / max(1.0, cell.context)) if weight else 0.0

    def fit(self, now: int, kept: np.ndarray | float = 1.0) -> None:
        """Bring `ns` and `deviation` up to date. ``kept`` float64[sizes, gammas]: share of drafts that is verified."""
        if not self.cells:
            return
        keys = list(self.cells)
        cells = [self.cells[key] for key in keys]
        ns = np.array([cell.ns for cell in cells])
        size = np.array([cell.size for cell in cells])
        computed = np.array([cell.rows for cell in cells])
        context = np.array([cell.context for cell in cells])
        count = np.array([float(cell.count) for cell in cells])
        age = np.array([float(now - cell.seen) for cell in cells])
        spread = np.array([cell.spread for cell in cells])
        effective = np.maximum(1.0, count / self.alike)
        # A cell that saw little does not know how noisy it is; all of them together do.
        usual = float(np.sqrt(np.average(spread**2, weights=count)))
        spread = np.sqrt((count * spread**2 + _ENOUGH * usual**2) / (count + _ENOUGH))
        own = min(50.0, max(1.0, (usual / _MISFIT) ** 2))
        gamma = np.array([key[1] for key in keys])
        rows = _features(size, gamma, computed)
        rows[:, -1] = context
        covariance = self._solve(rows, ns, spread**2 / effective + _DRIFT * age + _MISFIT**2, float(context.mean()))
        prices = self.parameters.tolist()
        self._prices = prices[3], prices[4], prices[5]
        self._knees = [(knee, price) for knee, price in zip(_KNEES, prices[6:], strict=False) if price]
        # What the cells say beyond the formula.
        expected = rows @ self.parameters
        factor = np.zeros((len(SIZES), len(self.gammas)))
        weight = np.zeros_like(factor)
        noise = np.full_like(factor, np.inf)
        index = np.array([key[0] for key in keys])
        column = np.array([self._column[key[1]] for key in keys])
        factor[index, column] = np.log(ns / np.maximum(expected, 1.0))
        weight[index, column] = effective / (1.0 + age / 20_000)
        noise[index, column] = spread**2 / effective + _DRIFT * age
        near = NEIGHBOURS @ np.minimum(weight, 20.0)
        shared = (NEIGHBOURS @ (np.minimum(weight, 20.0) * factor)) / (near + own)
        correction = (weight * factor + own * shared) / (weight + own)
        grid = _features(*self._grid, self._grid[0] * (1.0 + self._grid[1] * np.ravel(kept)))
        grid[:, -1] = self.context_per_request * grid[:, 3]
        base = grid @ self.parameters
        variance = np.einsum("ij,jk,ik->i", grid, covariance, grid) / base**2
        shape = factor.shape
        self.ns = base.reshape(shape) * np.exp(correction)
        # A neighbour that knows takes from what the formula may miss.
        model = np.maximum(variance, 0.0).reshape(shape) + _MISFIT**2 * (1.0 - 0.8 * near / (near + own))
        self.deviation = np.clip(1.0 / np.sqrt(1.0 / model + 1.0 / noise), 0.0005, 0.5)

    @property
    def present_ns(self) -> np.ndarray:
        """`ns` at the present pace."""
        return self.ns * math.exp(self.pace)

    def expected_ns(self, batch_size: int, gamma: int) -> float:
        """As of the last fit, at the present pace."""
        return float(self.ns[bucket(batch_size), self._column[gamma]]) * math.exp(self.pace)

    def noise(self, index: int, gamma: int) -> float:
        """Relative spread of the iterations of one cell; a usual one where nothing was seen."""
        cell = self.cells.get((index, gamma))
        return 0.05 if cell is None else cell.spread

    def _solve(self, rows: np.ndarray, ns: np.ndarray, variance: np.ndarray, context: float) -> np.ndarray:
        """Fit the parameters, none negative; returns their covariance."""
        mean = np.append(_PRIOR, 0.3 * _CONTEXT_SHARE / max(context, 1.0))
        # One iteration of the prior's kind: what the cells' times say it takes.
        unit = float(np.median(ns / (rows @ mean)))
        mean = mean * unit
        deviation = np.append(_DEVIATION, _CONTEXT_SHARE / max(context, 1.0)) * unit
        scaled = rows / ns[:, None]
        weighted = scaled / variance[:, None]
        gram = scaled.T @ weighted + np.diag(deviation**-2.0)
        target = weighted.sum(0) + mean * deviation**-2.0
        gram[-1, -1] += self._within[0]
        target[-1] += self._within[1]
        start = self.parameters if self.parameters.any() else mean
        self.parameters = nonnegative(gram, target, start)
        return np.asarray(np.linalg.inv(gram))

    def state(self) -> dict[str, Any]:
        """What `restore` takes; plain JSON."""
        return {
            "context_per_request": self.context_per_request,
            "cells": [
                [index, gamma, cell.ns, cell.size, cell.rows, cell.context, cell.spread, cell.count]
                for (index, gamma), cell in self.cells.items()
            ],
        }

    def restore(self, state: dict[str, Any], kept: np.ndarray | float = 1.0) -> None:
        """Take up a saved state; cells of other γ are left out. Nonsense raises ValueError, KeyError or TypeError.

        ``kept`` as for `fit`.
        """
        cells = {}
        for index, gamma, ns, size, rows, context, spread, count in state["cells"]:
            possible = 0 < ns < 1e12 and 0 < size < 1e6 and 0 < rows < 1e8 and 0 <= context < 1e12
            if not (0 <= index < len(SIZES) and possible):
                raise ValueError(f"a cell of {index}, {gamma}, {ns}, {size}, {rows}, {context}")
            if gamma in self._column and int(count) > 0:
                known = min(int(count), _MEMORY)
                cells[int(index), int(gamma)] = Reading(
                    float(ns), float(size), float(rows), float(context), min(1.0, max(0.004, float(spread))), known,
                    early=[float(ns)] * min(known, _EARLY),
                )  # fmt: skip
        self.cells = cells
        self.context_per_request = max(0.0, float(state["context_per_request"]))
        self.fit(0, kept)


def _log_ratio(ns: float, expected: float) -> float:
    return min(0.7, max(-0.7, math.log(ns / max(1.0, expected))))


def _features(size: np.ndarray, gamma: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64[n, features]; the last column, the context, is 0."""
    knees = (np.maximum(0.0, rows - knee) for knee in _KNEES)
    columns = [np.ones_like(size), gamma > 0, gamma, size, rows - size, gamma * size, *knees, np.zeros_like(size)]
    return np.column_stack(columns).astype(float)


def nonnegative(gram: np.ndarray, target: np.ndarray, start: np.ndarray, sweeps: int = 60) -> np.ndarray:
    """argmin of x'Gx - 2t'x over x >= 0, by at most so many sweeps of coordinate descent."""
    scale = 1.0 / np.sqrt(np.diag(gram))
    matrix = (gram * scale[:, None] * scale[None, :]).tolist()
    goal = (target * scale).tolist()
    x = (start / scale).tolist()
    size = len(goal)
    for _ in range(sweeps):
        moved = 0.0
        for i in range(size):
            row = matrix[i]
            gradient = goal[i] - sum(map(float.__mul__, row, x))
            new = max(0.0, x[i] + gradient)
            moved = max(moved, abs(new - x[i]))
            x[i] = new
        if moved < 0.006 / sweeps * max(map(abs, x)) or not math.isfinite(moved):
            break
    return np.array(x) * scale
