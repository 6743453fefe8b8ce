"""γ by batch size, and the tables of other engines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_nightjar.core import gammas
from sglang_nightjar.core.messages import MAX_BATCH, MAX_GAMMA

TABLE = ((1, 4, 5), (5, 16, 2), (17, None, 0))


def test_lookup():
    assert [gammas.lookup(TABLE, size) for size in (-1, 0, 1, 4, 5, 16, 17, 10**9)] == [5, 5, 5, 5, 2, 2, 0, 0]
    with pytest.raises(ValueError, match="end before"):
        gammas.lookup(((1, 4, 5),), 5)


@given(st.lists(st.integers(2, 500), unique=True).map(sorted), st.data())
def test_from_starts_says_the_same_in_fewer_rows(later, data):
    starts = [1, *later]
    values = data.draw(st.lists(st.integers(0, 3), min_size=len(starts), max_size=len(starts)))
    ranges = gammas.from_starts(starts, values)
    assert len(ranges) > gammas.MAX_RANGES or gammas.fault(ranges, MAX_GAMMA, MAX_BATCH) is None
    assert all(left[2] != right[2] for left, right in zip(ranges, ranges[1:], strict=False))
    for size in range(1, 502):
        assert gammas.lookup(ranges, size) == values[gammas.bucket_of(starts, size)]


def test_vllms_form():
    rows = [[1, 4, 5], [5, 16, 2], [17, 64, 0]]
    assert gammas.from_vllm(rows) == TABLE
    assert gammas.to_vllm(TABLE, 64) == rows
    assert gammas.from_vllm([]) == ((1, None, 0),)
    assert gammas.from_vllm([[3, 4, 5], [9, 9, 1]]) == ((1, 2, 0), (3, 4, 5), (5, 8, 0), (9, 9, 1), (10, None, 0))
    assert gammas.to_vllm(TABLE, 10) == [[1, 4, 5], [5, 10, 2]]


@pytest.mark.parametrize(
    "rows", [[[1, 4, 5], [4, 8, 2]], [[5, 4, 1]], [[0, 4, 1]], [[1, 4, -1]], [[1, 4]], [[1, 4, "5"]], [7]]
)
def test_what_is_no_table_of_vllms_is_refused(rows):
    with pytest.raises(ValueError, match="row"):
        gammas.from_vllm(rows)


def test_tensorrt_llms_form():
    assert gammas.from_trtllm({"16": 2, 4: 5}) == TABLE
    assert gammas.to_trtllm(TABLE) == {4: 5, 16: 2}
    with pytest.raises(ValueError, match="above its last"):
        gammas.to_trtllm(((1, None, 3),))
    for wrong in ({0: 1}, {"x": 1}, {4: -1}, {4: 1.5}, {True: 1}):
        with pytest.raises(ValueError, match="batch size"):
            gammas.from_trtllm(wrong)


@given(st.dictionaries(st.integers(1, 100), st.integers(0, 9), max_size=8))
def test_tables_survive_each_others_form(schedule):
    ranges = gammas.from_trtllm(schedule)
    assert gammas.from_trtllm(gammas.to_trtllm(ranges)) == ranges
    assert gammas.from_vllm(gammas.to_vllm(ranges, 1000)) == ranges
