"""The journal: what is found again, what is lost when it is full, and moved slots."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from sglang_nightjar.draft.inputs import StatesAndTokens
from sglang_nightjar.draft.journal import Journal
from sglang_nightjar.draft.upkeep import Upkeep

WIDTH = 4


def journal(rows: int, slots: int = 64) -> Journal:
    return Journal(slots, WIDTH, torch.float32, rows * (WIDTH * 4 + 16) + 8 * slots, "cpu")


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


class FakeStream:
    """Copies of a stream are made at once; what is checked is that they are asked for in the right order."""

    def __init__(self, *_: object) -> None:
        self.waited = 0

    def wait_stream(self, _other: "FakeStream") -> None:
        self.waited += 1

    def wait_event(self, event: "FakeEvent") -> None:
        assert event.recorded, "the block that is written over has not been copied"
        event.recorded = False

    def synchronize(self) -> None:
        pass


class FakeEvent:
    def __init__(self) -> None:
        self.recorded = False

    def record(self, _stream: FakeStream) -> None:
        self.recorded = True


@pytest.fixture
def spilling(monkeypatch: pytest.MonkeyPatch) -> Journal:
    """64 rows of which the newest 16 are on a GPU that is none, in blocks of 2."""
    main = FakeStream()
    for name, fake in (
        ("Stream", FakeStream),
        ("Event", FakeEvent),
        ("current_stream", lambda *_: main),
        ("stream", lambda _: contextlib.nullcontext()),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    made = Journal(200, WIDTH, torch.float32, 64 * (WIDTH * 4 + 16) + 16 * WIDTH * 4 + 8 * 200, "cuda", device_rows=16)
    made._device = torch.device("cpu")
    return made


def test_rows_that_left_the_device_are_read_from_the_host(spilling: Journal) -> None:
    assert spilling.capacity == 64
    for first in range(0, 60, 5):
        write(spilling, list(range(first, first + 5)), float(first))
    assert spilling.bytes()["host"] == 64 * WIDTH * 4
    assert spilling._hidden.shape[0] == 16
    assert read(spilling, list(range(60))) == [float(i) for i in range(60)]
    assert read(spilling, [59, 0, 44, 43, 30]) == [59.0, 0.0, 44.0, 43.0, 30.0]


def test_random_writes_and_moves_agree_with_a_dictionary_on_two_memories(spilling: Journal) -> None:
    draw = torch.Generator().manual_seed(2)
    held: dict[int, float] = {}
    rows: list[int] = []
    for step in range(200):
        count = int(torch.randint(1, 40, (1,), generator=draw))
        slots = torch.randperm(200, generator=draw)[:count].tolist()
        write(spilling, slots, step * 100.0)
        for i, slot in enumerate(slots):
            held[slot] = step * 100.0 + i
            rows.append(slot)
        last = {slot: number for number, slot in enumerate(rows)}
        expected = [held[s] if s in last and len(rows) - last[s] <= 64 else None for s in range(200)]
        assert read(spilling, list(range(200))) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 40, 64, 1000])
def test_all_that_it_takes_fits_into_what_it_may_take(spilling: Journal, device: str, rows: int) -> None:
    limit = rows * (WIDTH * 4 + 16)
    made = Journal(20, WIDTH, torch.float32, limit, device, device_rows=16)
    made._device = torch.device("cpu")
    made.allocate()
    taken = made.bytes()
    assert taken["device"] + taken["host"] <= limit
    assert device == "cpu" or made._device_rows <= 16
    assert rows < 40 or made.capacity >= 16


@pytest.mark.parametrize("here", [True, False])
def test_without_memory_for_it_on_any_rank_there_is_no_journal(
    here: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = StatesAndTokens(journal(8), None)
    if here:
        monkeypatch.setattr(torch, "full", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    kept.reserve(lambda code: 0)
    monkeypatch.undo()
    assert kept.status() == {"bytes": {"device": 0, "host": 0}, "capacity": 0, "written": 0}
    assert len(caplog.records) == 1
    write(kept.journal, [1], 1.0)
    assert not kept.kept(torch.tensor([1])).any()


def test_one_of_several_ranks_ends_when_it_cannot_catch_up() -> None:
    """At γ=0 alone it would leave the others waiting for good."""
    keeper = object.__new__(Upkeep)
    keeper.available, keeper.failures = True, 0
    keeper.catch_up = SimpleNamespace(can_pay=lambda *_: True, step=lambda _batch: 1 / 0)
    keeper._scheduler = SimpleNamespace(ps=SimpleNamespace(tp_size=1))
    assert keeper._ready(None, 3) is False
    keeper._scheduler.ps.tp_size = 2
    with pytest.raises(ZeroDivisionError):
        keeper._ready(None, 3)
