"""γ by batch size as ranges, and the table forms of other engines.

A ``Ranges`` value is ``((first, last, γ), ...)``: it starts at batch size 1, leaves no gap, and its last row's ``last``
is None, "and above".
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

Ranges = tuple[tuple[int, int | None, int], ...]
MAX_RANGES = 128


def lookup(ranges: Ranges, batch_size: int) -> int:
    """γ for ``batch_size``; sizes below 1 count as 1."""
    for _, last, gamma in ranges:
        if last is None or batch_size <= last:
            return gamma
    raise ValueError(f"γ ranges end before batch size {batch_size}: {ranges}")


def fault(ranges: Any, max_gamma: int, max_batch: int) -> str | None:
    """What is wrong with ``ranges``, given as sequences of any kind; None if nothing is."""
    if not isinstance(ranges, list | tuple) or not 1 <= len(ranges) <= MAX_RANGES:
        return f"γ ranges must be a list of 1 to {MAX_RANGES} rows [first, last, γ], not {str(ranges)[:80]}"
    expected = 1
    for index, row in enumerate(ranges):
        if not isinstance(row, list | tuple) or len(row) != 3:
            return f"γ range {index} must be [first, last, γ], not {str(row)[:80]}"
        first, last, gamma = row
        if type(gamma) is not int or not 0 <= gamma <= max_gamma:
            return f"γ of range {index} must be an integer from 0 to {max_gamma}, not {str(gamma)[:80]}"
        if type(first) is not int or first != expected:
            return f"γ range {index} must start at batch size {expected}, not {str(first)[:80]}"
        if index == len(ranges) - 1:
            return None if last is None else "the last γ range must end with null, that is, have no end"
        if type(last) is not int or not first <= last <= max_batch:
            return f"γ range {index} must end at a batch size from {first} to {max_batch}, not {str(last)[:80]}"
        expected = last + 1
    return None


def constant(gamma: int) -> Ranges:
    """The same γ for every batch size."""
    return ((1, None, gamma),)


def from_starts(starts: Sequence[int], gammas: Sequence[int]) -> Ranges:
    """Ranges from where each begins (ascending, the first counts as 1) and its γ; equal neighbours are merged."""
    merged: list[tuple[int, int]] = []
    for start, gamma in zip(starts, gammas, strict=True):
        if not merged or merged[-1][1] != gamma:
            merged.append((start if merged else 1, gamma))
    ends = [start - 1 for start, _ in merged[1:]] + [None]
    return tuple((start, end, gamma) for (start, gamma), end in zip(merged, ends, strict=True))


def from_vllm(rows: Sequence[Sequence[int]]) -> Ranges:
    """vLLM's ``[[lo, hi, K], ...]``: both ends inclusive. A gap, and what is above the last row, is γ=0.

    Raises ValueError for rows that overlap, are out of order, or are no such rows.
    """
    starts, gammas, free = [1], [0], 1
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != 3 or any(type(value) is not int for value in row):
            raise ValueError(f"a row must be [lo, hi, K] with integers, not {row!r}")
        lo, hi, gamma = row
        if not free <= lo <= hi or gamma < 0:
            raise ValueError(f"row {list(row)} must have {free} <= lo <= hi and K >= 0: rows ascend and don't overlap")
        starts += [lo, hi + 1]
        gammas += [gamma, 0]
        free = hi + 1
    return _from_changes(starts, gammas)


def to_vllm(ranges: Ranges, max_batch: int) -> list[list[int]]:
    """The opposite of `from_vllm`; vLLM's rows have an end, so the last one gets ``max_batch``."""
    rows = [[first, max_batch if last is None else min(last, max_batch), gamma] for first, last, gamma in ranges]
    return [row for row in rows if row[0] <= row[1]]


def from_trtllm(schedule: Mapping[Any, int]) -> Ranges:
    """TensorRT-LLM's ``{batch size: length}``: each length holds up to and with its batch size; above the last, 0.

    Keys may be strings, as JSON and YAML make them. Raises ValueError for what is no such table.
    """
    rows = {}
    for key, gamma in schedule.items():
        size = int(key) if isinstance(key, str) and key.isdigit() else key
        if type(size) is not int or size < 1 or type(gamma) is not int or gamma < 0:
            raise ValueError(f"{key!r}: {gamma!r} must be a batch size from 1 and a length from 0")
        rows[size] = gamma
    sizes = sorted(rows)
    return from_starts([1, *(size + 1 for size in sizes)], [*(rows[size] for size in sizes), 0])


def to_trtllm(ranges: Ranges) -> dict[int, int]:
    """The opposite of `from_trtllm`. Raises ValueError if γ has no end of being positive: that form can't say so."""
    if ranges[-1][2] != 0:
        raise ValueError("TensorRT-LLM's table is 0 above its last batch size; end the table with γ=0")
    return {last: gamma for _, last, gamma in ranges if last is not None}


def _from_changes(starts: list[int], gammas: list[int]) -> Ranges:
    """Like `from_starts`, where a later entry of the same start replaces the earlier one."""
    table = dict(zip(starts, gammas, strict=True))
    ordered = sorted(table)
    return from_starts(ordered, [table[start] for start in ordered])


def bucket_of(starts: Sequence[int], batch_size: int) -> int:
    """Index of the bucket that ``batch_size`` falls into; below the first it is the first."""
    return max(0, bisect_right(starts, batch_size) - 1)
