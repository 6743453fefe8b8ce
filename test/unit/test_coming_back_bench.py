"""The arithmetic of bench/coming_back."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.coming_back.run import compared


def test_steps_are_compared_from_the_same_place_of_the_text() -> None:
    never_stopped = {"a": [(0, 3), (4, 0), (10, 1), (12, 3), (16, 9)], "b": [(0, 0), (9, 2), (12, 2)]}
    figures = {
        "lag": (5, 9),
        "moved_rows": 4,
        "iterations_until_back": 2,
        "longest_at_0": 1.1,
        "first_with_drafts": 1.0,
    }
    found = {"verified": {"a": [(10, 1), (12, 1), (14, 9)], "b": [(10, 2), (13, 0)]}} | figures
    row = compared(never_stopped, found, 2)
    # Of a the steps at 10 and 12, of b the one at 12, the first that is not before its return at 10.
    assert row["never_stopped"] == 1 + (1 + 3 + 2) / 3
    assert row["after"] == 1 + (1 + 1 + 2 + 0) / 4
    assert row["steps"] == [3, 4] and row["moved_rows"] == 4
