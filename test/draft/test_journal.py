"""The journal: what is found again, what is lost when it is full, and moved slots."""

import torch

from sglang_nightjar.draft.journal import Journal

WIDTH = 4


def journal(rows: int, slots: int = 64) -> Journal:
    return Journal(slots, WIDTH, torch.float32, rows * (WIDTH * 4 + 16), "cpu")


def write(made: Journal, slots: list[int], value: float) -> None:
    """Position i gets the state [value + i, ...] and the token 1000 + value + i."""
    values = value + torch.arange(len(slots), dtype=torch.float32)
    made.write(torch.tensor(slots), values[:, None].repeat(1, WIDTH), (1000 + values).to(torch.int64))


def read(made: Journal, slots: list[int]) -> list[float | None]:
    """The value of each slot, None where it is not in the journal; state and token must belong together."""
    found = made.find(torch.tensor(slots))
    hidden, tokens = made.read(found.numbers.clamp(min=0))
    assert not found.present.any() or torch.equal(hidden[found.present, 0] + 1000, tokens[found.present].float())
    return [
        value if there else None for value, there in zip(hidden[:, 0].tolist(), found.present.tolist(), strict=True)
    ]


def test_it_holds_as_many_rows_as_the_bytes_allow_and_takes_none_before_it_is_used() -> None:
    made = journal(8)
    assert made.capacity == 8
    assert made.bytes() == {"device": 0, "host": 0}
    write(made, [3], 1.0)
    assert made.bytes()["device"] >= 8 * WIDTH * 4


def test_what_was_written_is_found_in_any_order() -> None:
    made = journal(8)
    write(made, [5, 9, 2], 10)
    write(made, [30], 20)
    assert read(made, [30, 2, 5, 7]) == [20, 12, 10, None]


def test_the_oldest_rows_make_room() -> None:
    made = journal(4)
    write(made, [1, 2, 3], 10)
    write(made, [4, 5], 20)
    assert read(made, [1, 2, 3, 4, 5]) == [None, 11, 12, 20, 21]


def test_a_slot_that_is_written_again_has_its_new_state_and_keeps_it_when_the_old_row_goes() -> None:
    made = journal(4)
    write(made, [1, 2, 3], 10)
    write(made, [1], 20)
    write(made, [6], 30)  # takes the place of the first row, which was slot 1's
    assert read(made, [1, 2, 6]) == [20, 11, 30]


def test_of_more_than_it_holds_the_end_is_kept() -> None:
    made = journal(4)
    write(made, [1, 2, 3, 4, 5, 6], 10)
    assert read(made, [1, 2, 3, 4, 5, 6]) == [None, None, 12, 13, 14, 15]


def test_moved_slots_are_found_where_they_are_now() -> None:
    made = journal(8)
    write(made, [40, 41], 10)
    write(made, [7], 20)
    made.moved(torch.tensor([40, 41, 50]), torch.tensor([7, 8, 9]))
    assert read(made, [7, 8, 9, 40, 41]) == [10, 11, None, None, None]


def test_a_journal_without_room_finds_nothing() -> None:
    made = journal(0)
    write(made, [1], 1.0)
    assert not made.find(torch.tensor([1])).present.any()


def test_random_writes_and_moves_agree_with_a_dictionary() -> None:
    draw = torch.Generator().manual_seed(1)
    made = journal(50, slots=100)
    rows: list[tuple[int, float]] = []
    for step in range(300):
        count = int(torch.randint(1, 12, (1,), generator=draw))
        slots = torch.randperm(100, generator=draw)[:count].tolist()
        write(made, slots, step * 100.0)
        rows += [(slot, step * 100.0 + i) for i, slot in enumerate(slots)]
        newest = dict(enumerate([None] * 100))
        last = {slot: number for number, (slot, _) in enumerate(rows)}
        for slot, number in last.items():
            newest[slot] = rows[number][1] if len(rows) - number <= 50 else None
        assert read(made, list(range(100))) == list(newest.values())
