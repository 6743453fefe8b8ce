"""A simulated server from a real one's decision log: costs, noise, acceptance and limits."""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from sglang_nightjar.core import wire
from sglang_nightjar.core.latency_model import nonnegative
from sglang_nightjar.core.messages import Hello, Message, Residency, Telemetry, TelemetryBatch
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy.replay import files_of, messages
from sglang_nightjar.sim.acceptance import Acceptance, RequestClass
from sglang_nightjar.sim.costs import Costs, Table
from sglang_nightjar.sim.setup import DraftMoves, EngineSettings, Setup

_KNOTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
#: Besides the target's table: speculation, draft steps, drafted rows, requests, context.
_OTHERS = 5
_FEWEST = 50
#: Residencies in which an iteration is nothing but an iteration.
_STEADY = (Residency.RESIDENT, Residency.PARKED, Residency.OFFLOADED)
#: How much neighbouring slopes of the target's table are held alike, where readings are few.
_SMOOTH = 0.003
#: An iteration that took longer than expected by so many deviations of the noise, and by these factors at least and at
#: most, was stalled.
_STALLED, _LEAST, _MOST = 5.0, 1.3, 3.0


@dataclass(frozen=True)
class Fit:
    """Attributes:
    setup: the server.
    iterations: how many were used.
    error: median and 95th percentile of the relative error of the cells' medians, by iterations.
    prompt_tokens: mean prompt.
    """

    setup: Setup
    iterations: int
    error: tuple[float, float]


def fit(log: Path, name: str = "") -> Fit:
    """Fit the log at ``log`` (also .gz). Raises ConfigError if it holds too little, or iterations cut short."""
    hello, records = read(log)
    if any(0 < record.rows < record.batch_size * (record.gamma + 1) for record in records):
        raise ConfigError(
            f"{log}: iterations that verified fewer drafts than γ says (trim: true), so their times don't tell what a "
            "row costs; log a policy with trim: false"
        )
    plain = steady(records)
    if hello is None or len(plain) < _FEWEST or len({(r.batch_size, r.gamma) for r in plain}) < 3:
        raise ConfigError(
            f"{log}: {len(plain)} decode iterations of {len({(r.batch_size, r.gamma) for r in plain})} kinds; at least "
            f"{_FEWEST} of 3 batch sizes or γ are needed (log.telemetry must be true)"
        )
    cells = defaultdict(list)
    for record in plain:
        cells[record.batch_size, record.gamma].append((record.iteration_ns, record.context_tokens))
    keys = list(cells)
    ns = np.array([np.median([took for took, _ in cells[key]]) for key in keys])
    context = np.array([np.mean([tokens for _, tokens in cells[key]]) for key in keys])
    weight = np.array([float(len(cells[key])) for key in keys])
    costs = _costs(np.array(keys, float), ns, context, weight)
    ratio = np.array([r.iteration_ns / costs.decode_ns(r.batch_size, r.gamma, r.context_tokens) for r in plain])
    found = np.log(np.maximum(ratio, 1e-3))
    noise = float(1.4826 * np.median(np.abs(found - np.median(found))))
    stalls_per_s, stall_ns = stalls(np.array([float(r.iteration_ns) for r in plain]), ratio, noise)
    cell_error = np.abs(
        ns / [costs.decode_ns(int(size), int(g), c) for (size, g), c in zip(keys, context, strict=True)] - 1
    )
    order = np.argsort(cell_error)
    at = np.cumsum(weight[order]) / weight.sum()
    error = tuple(float(cell_error[order][np.searchsorted(at, share)]) for share in (0.5, 0.95))
    prefill = _prefill(records, costs)
    made = Costs(
        costs.target, costs.draft, prefill, costs.speculative_ns, costs.request_ns, costs.context_ns,
        noise=round(min(2.0, noise), 4), stalls_per_s=stalls_per_s, stall_ns=stall_ns,
    )  # fmt: skip
    engine = EngineSettings(
        hello.candidates, hello.start_gamma, min(hello.max_batch_size, 4096), max(1, hello.kv_tokens),
        hello.kv_tokens_without_draft, draft=_moves(records, costs),
    )  # fmt: skip
    source = f"fitted to {len(plain)} iterations of {log.name}"
    setup = Setup(
        made, _acceptance(records, hello.candidates[-1]), engine, name or log.name.partition(".")[0], source,
        Path(hello.target).name, Path(hello.draft).name, hello.hardware,
    )  # fmt: skip
    return Fit(setup, len(plain), (error[0], error[1]))


def stalls(took_ns: np.ndarray, ratio: np.ndarray, noise: float) -> tuple[float, float]:
    """Stalls per second of work and their mean length in ns; ``ratio`` is of each iteration's time to the expected."""
    stalled = ratio > min(_MOST, max(_LEAST, float(np.exp(_STALLED * noise))))
    expected = took_ns / ratio
    lost = (took_ns - expected)[stalled]
    return round(1e9 * len(lost) / float(expected.sum()), 4), round(float(lost.mean())) if len(lost) else 0.0


def steady(records: list[Telemetry]) -> list[Telemetry]:
    """Those that were nothing but an iteration: no prefill, and no change of γ or move of the draft just before."""
    return [
        r
        for before, r in zip(records, records[1:], strict=False)
        if not r.prefill_tokens
        and r.committed
        and r.residency in _STEADY
        and (before.gamma, before.residency) == (r.gamma, r.residency)
    ]


def read(log: Path) -> tuple[Hello | None, list[Telemetry]]:
    """The last greeting and all telemetry of a decision log (also .gz). Raises ConfigError."""
    hello: Hello | None = None
    records: list[Telemetry] = []
    for message in _gzipped(log) if log.suffix == ".gz" else messages(files_of(log), [0]):
        if isinstance(message, Hello):
            hello = message
        elif isinstance(message, TelemetryBatch):
            records += message.records
    return hello, records


def _gzipped(log: Path) -> Iterator[Message]:
    try:
        with gzip.open(log) as lines:
            for line in lines:
                entry = orjson.loads(line)
                if "frame" in entry and "to" not in entry:
                    yield wire.decode(orjson.dumps(entry["frame"]))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{log}: {error}") from None


def _costs(keys: np.ndarray, ns: np.ndarray, context: np.ndarray, weight: np.ndarray) -> Costs:
    size, gamma = keys[:, 0], keys[:, 1]
    rows = size * (gamma + 1)
    # Segments of the table only where there are readings on both sides.
    knots = [1.0, *(float(k) for k in _KNOTS[1:] if (rows <= k).any() and k < rows.max())]
    ends = [*knots[1:], np.inf]
    segments = [np.clip(rows, start, end) - start for start, end in zip(knots, ends, strict=True)]
    others = [gamma > 0, gamma, gamma * size, size, context]
    table = np.column_stack([np.ones_like(rows), *segments, *others]).astype(float)
    scale = np.abs(table).max(0) + 1e-12
    scaled = table / scale / ns[:, None]
    weighted = scaled * weight[:, None]
    gram = scaled.T @ weighted
    # A touch of ridge decides where readings can't.
    gram += 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
    lengths = scale[1 : 1 + len(segments)]
    for index in range(len(segments) - 1):
        row = np.zeros(len(gram))
        row[1 + index], row[2 + index] = 1.0 / lengths[index], -1.0 / lengths[index + 1]
        gram += _SMOOTH * np.trace(gram) / len(gram) * np.outer(row, row) * lengths[index] * lengths[index + 1]
    x = nonnegative(gram, weighted.sum(0), np.full(len(gram), 1e-6), 20_000) / scale
    steps, (speculative, step, row, request, token) = x[1:-_OTHERS], x[-_OTHERS:]
    points, value = [(1.0, float(x[0]))], float(x[0])
    for index, start in enumerate(knots):
        end = knots[index + 1] if index + 1 < len(knots) else max(float(rows.max()), start + 1)
        value += float(steps[index]) * (end - start)
        points.append((end, value))
    most = float(max(2.0, size.max()))
    return Costs(
        target=tuple((rows, round(ns)) for rows, ns in points),
        draft=((1.0, round(float(step + row))), (most, round(float(step + row * most)))),
        speculative_ns=round(float(speculative)),
        request_ns=round(float(request)),
        context_ns=round(float(token), 2),
    )


def _prefill(records: list[Telemetry], costs: Costs) -> Table:
    """Time by prompt tokens, from the iterations that a prefill shared."""
    shared = [
        (r, before)
        for before, r in zip(records, records[1:], strict=False)
        if r.prefill_tokens > 0
        and r.residency in _STEADY
        and (before.gamma, before.residency) == (r.gamma, r.residency)
    ]
    if not shared:
        return ((1.0, 0.0),)
    tokens = np.array([r.prefill_tokens for r, _ in shared], float)
    extra = np.array(
        [max(0.0, r.iteration_ns - costs.decode_ns(r.batch_size, r.gamma, r.context_tokens)) for r, _ in shared]
    )
    # Robust line: medians of groups of like size.
    order = np.argsort(tokens)
    groups = np.array_split(order, min(12, len(order)))
    x = np.array([tokens[group].mean() for group in groups])
    y = np.array([np.median(extra[group]) for group in groups])
    table = np.column_stack([np.ones_like(x), x / x.max()])
    solved = nonnegative(table.T @ table + 1e-9 * np.eye(2), table.T @ y, np.array([1.0, 1.0]), 20_000)
    slope = float(solved[1] / x.max())
    most = float(max(2.0, tokens.max()))
    return ((1.0, round(float(solved[0] + slope))), (most, round(float(solved[0] + slope * most))))


def _moves(records: list[Telemetry], costs: Costs) -> DraftMoves:
    """What catching up costs, from the iterations that did it."""
    if not any(r.residency == Residency.PARKED for r in records):
        return DraftMoves()
    lags, extra, lag, took = [], [], 0, 0.0
    for record in records:
        if record.residency == Residency.CATCHING_UP:
            lag = max(lag, record.lag_total)
            if not record.prefill_tokens:
                took += max(0.0, record.iteration_ns - costs.decode_ns(record.batch_size, 0, record.context_tokens))
        elif lag:
            lags.append(float(lag))
            extra.append(took)
            lag, took = 0, 0.0
    if not lags:
        return DraftMoves(parks=True)
    x, y = np.array(lags), np.array(extra)
    table = np.column_stack([np.ones_like(x), x / x.max()])
    solved = nonnegative(table.T @ table + 1e-9 * np.eye(2), table.T @ y, np.array([1.0, 1.0]), 20_000)
    return DraftMoves(
        parks=True, catch_up_ns=round(float(solved[0])), catch_up_token_ns=round(float(solved[1] / x.max()))
    )


def _acceptance(records: list[Telemetry], longest: int) -> Acceptance:
    hits, trials = np.zeros(max(1, longest)), np.zeros(max(1, longest))
    for record in records:
        before = record.batch_size
        for position, count in enumerate(record.accepted):
            trials[position] += before
            hits[position] += count
            before = count
    rates = tuple(round(float(h / t), 4) if t else 0.0 for h, t in zip(hits, trials, strict=True))
    return Acceptance((RequestClass(rates),))
