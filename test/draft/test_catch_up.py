"""Catching up: bounded pieces, the longest-running request first, from the journal or anew. The models are fakes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sglang_nightjar.cpu import eagle3_draft
from sglang_nightjar.draft import catch_up as catch_up_module
from sglang_nightjar.draft import inputs
from sglang_nightjar.draft.catch_up import KEYS_AND_VALUES, ON_CPU, CatchUp, Pace
from sglang_nightjar.draft.coverage import Coverage
from sglang_nightjar.draft.extend import FirstDrafts, Piece
from sglang_nightjar.draft.inputs import StatesAndTokens, TokensAlone
from sglang_nightjar.draft.journal import Journal

WIDTH, SLOTS, ROWS = 2, 1200, 12


class Scene:
    """Requests in rows 1, 2, ...; position p of the request in row r has slot 100 r + p and token 10,000 r + p.

    A right draft row at slot s has the state s and the token after it; the target's states are made likewise.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        lengths: list[int],
        journal_rows: int = 500,
        step: int = 32,
        standalone: bool = False,
    ):
        self.coverage = Coverage(SLOTS, ROWS, "cpu")
        self.journal = Journal(SLOTS, WIDTH, torch.float32, journal_rows * (4 * WIDTH + 16) + 8 * SLOTS, "cpu")
        self.filled: list[Piece] = []
        table = (100 * torch.arange(ROWS)[:, None] + torch.arange(100)).to(torch.int32)
        rows = torch.arange(1, len(lengths) + 1)
        size = len(lengths)
        self.batch = SimpleNamespace(
            reqs=[
                SimpleNamespace(
                    origin_input_ids=[10_000 * row + p for p in range(3)],
                    output_ids=[10_000 * row + p for p in range(3, length + 1)],
                    sampling_params=SimpleNamespace(max_new_tokens=500),
                )
                for row, length in zip(rows.tolist(), lengths, strict=True)
            ],
            req_pool_indices=rows,
            req_pool_indices_cpu=rows,
            req_to_token_pool=SimpleNamespace(req_to_token=table),
            seq_lens=torch.tensor(lengths),
            seq_lens_cpu=torch.tensor(lengths),
            spec_info=SimpleNamespace(
                topk_p=torch.zeros(size, 1),
                topk_index=torch.zeros(size, 1, dtype=torch.int64),
                hidden_states=torch.zeros(size, WIDTH),
                bonus_tokens=torch.tensor(
                    [10_000 * row + n for row, n in zip(rows.tolist(), lengths, strict=True)], dtype=torch.int32
                ),
            ),
        )
        target = SimpleNamespace(model_runner="the target")
        worker = SimpleNamespace(device="cpu", draft_worker=None, target_worker=target)
        self.standalone = standalone
        kept = TokensAlone() if standalone else StatesAndTokens(self.journal, target)
        self.catch_up = CatchUp(worker, self.coverage, kept, pace=Pace(step))
        monkeypatch.setattr(catch_up_module, "draft_extend", self._extend)
        monkeypatch.setattr(inputs, "target_states", self._states)

    def miss(self, row: int, positions: list[int], journalled: bool = True) -> None:
        """The target writes positions of the request in ``row`` without the draft."""
        slots = torch.tensor([100 * row + p for p in positions])
        if journalled:
            tokens = torch.tensor([10_000 * row + p + 1 for p in positions])
            self.journal.write(slots, slots[:, None].float().repeat(1, WIDTH), tokens)
        self.coverage.skipped(slots)
        self.coverage.uncertain[row] = True

    def share(self, length: int) -> None:
        """The first positions of all requests are in the slots of the first one, as found in the radix cache."""
        self.batch.req_to_token_pool.req_to_token[:, :length] = 100 + torch.arange(length)
        for req in self.batch.reqs:
            req.origin_input_ids = self.batch.reqs[0].origin_input_ids
            req.output_ids[: length - 2] = self.batch.reqs[0].output_ids[: length - 2]

    def slot(self, piece: Piece) -> range:
        line = self.batch.req_to_token_pool.req_to_token[piece.index + 1]
        return range(int(line[piece.first]), int(line[piece.last - 1]) + 1)

    def _extend(
        self, _worker: Any, batch: Any, pieces: list[Piece], slots: Any, hidden: Any, tokens: Any, drafts: bool
    ) -> FirstDrafts | None:
        assert hidden is None if self.standalone else hidden[:, 0].tolist() == slots.tolist()
        assert slots.tolist() == [slot for piece in pieces for slot in self.slot(piece)]
        assert tokens.tolist() == [10_000 * (slot // 100) + slot % 100 + 1 for slot in slots.tolist()]
        self.filled += pieces
        lengths = batch.seq_lens_cpu.tolist()
        assert drafts == any(piece.last == lengths[piece.index] for piece in pieces)
        if not drafts:
            return None
        first = torch.tensor([[10 + piece.index] for piece in pieces])
        last = torch.tensor([[float(piece.last)] * WIDTH for piece in pieces])
        return FirstDrafts(first, torch.ones(len(pieces), 1), None if self.standalone else last)

    def _states(self, runner: Any, batch: Any, piece: Piece, tokens: Any) -> torch.Tensor:
        row = piece.index + 1
        assert runner == "the target"
        assert tokens.tolist() == [10_000 * row + p for p in range(piece.first, piece.last)]
        return torch.arange(100 * row + piece.first, 100 * row + piece.last)[:, None].float().repeat(1, WIDTH)

    def run(self) -> int:
        steps = 1
        while not self.catch_up.step(self.batch):
            steps += 1
        assert not self.coverage.stale.any()
        assert self.coverage.lags(np.arange(1, len(self.batch.reqs) + 1)) == (0, 0)
        return steps


def test_nothing_missing_is_ready_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [9, 5])
    assert scene.catch_up.step(scene.batch)
    assert scene.filled == []


def test_what_is_missing_is_filled_and_the_next_draft_starts_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [20, 9, 12])
    scene.miss(1, [17, 18, 19])
    scene.miss(3, [11])
    assert scene.run() == 1
    assert scene.filled == [Piece(0, 17, 20), Piece(2, 11, 12)]
    info = scene.batch.spec_info
    assert info.topk_index.flatten().tolist() == [10, 0, 12]
    assert info.topk_p.flatten().tolist() == [1, 0, 1]
    assert info.hidden_states[:, 0].tolist() == [20, 0, 12]


def test_pieces_are_bounded_and_the_longest_running_request_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [90, 60], step=32)
    scene.miss(1, list(range(20, 90)))
    scene.miss(2, list(range(50, 60)))
    assert not scene.catch_up.step(scene.batch)
    assert scene.filled == [Piece(0, 20, 52)]
    assert scene.batch.spec_info.topk_index.flatten().tolist() == [0, 0]
    assert scene.run() == 2
    assert sum(len(piece) for piece in scene.filled) == 80


def test_the_newest_positions_come_last_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is ready early waits with its newest position, so that the draft's head is read once."""
    scene = Scene(monkeypatch, lengths=[40, 60], step=16)
    scene.miss(1, list(range(36, 40)))
    scene.miss(2, list(range(20, 60)))
    left = []
    while not scene.catch_up.step(scene.batch):
        assert not any(piece.last == (40, 60)[piece.index] for piece in scene.filled)
        left.append(sum(last - first for runs in scene.catch_up.missing(scene.batch).values() for first, last in runs))
    assert left == [28, 12]
    assert [piece for piece in scene.filled if piece.last == (40, 60)[piece.index]] == scene.filled[-2:]
    assert scene.batch.spec_info.topk_index.flatten().tolist() == [10, 11]


def test_what_the_journal_lost_is_computed_anew_in_smaller_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [90], journal_rows=20, step=32)
    scene.miss(1, list(range(30, 90)))
    scene.run()
    assert scene.catch_up.recomputed == 40
    assert [piece.last for piece in scene.filled][-1] == 90
    assert max(len(p) for p in scene.filled if p.last <= 70) <= Pace(32).recomputed == 4


def test_without_a_journal_the_newest_token_comes_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [10])
    scene.batch.reqs[0].output_ids.pop()
    scene.miss(1, [8, 9], journalled=False)
    scene.run()
    assert scene.catch_up.recomputed == 2


def test_holes_in_a_prefix_are_filled_from_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [30])
    scene.miss(1, [3, 4, 10, 29])
    scene.run()
    assert scene.filled == [Piece(0, 3, 5), Piece(0, 10, 11), Piece(0, 29, 30)]


def test_returns_from_the_journal_are_timed_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [90, 40])
    scene.miss(1, list(range(10, 90)))
    scene.run()
    ((positions, ns),) = scene.catch_up.watch.finished()
    assert positions == 80 and ns > 0
    scene.miss(2, [39], journalled=False)
    scene.run()
    assert scene.catch_up.watch.finished() == []


def test_a_prefix_that_requests_share_is_filled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [30] * 10)
    scene.share(20)
    scene.miss(1, list(range(20)))
    for row in range(1, 11):
        scene.miss(row, list(range(20 + row // 2, 30)))
    scene.run()
    assert scene.catch_up.tokens == 20 + sum(10 - row // 2 for row in range(1, 11))


def test_a_prefix_that_was_filled_for_a_request_in_another_batch_is_not_filled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, [30, 30])
    scene.share(20)
    scene.miss(1, list(range(20)))
    scene.coverage.start(2, 20, 0, [(0, 20)])
    scene.coverage.wrote(torch.arange(100, 120))
    scene.coverage.uncertain[1] = False
    assert scene.catch_up.step(scene.batch)
    assert scene.catch_up.tokens == 0


@pytest.mark.parametrize("left, pays", [(7, False), (9, True)])
def test_coming_back_is_left_alone_where_it_cannot_pay(monkeypatch: pytest.MonkeyPatch, left: int, pays: bool) -> None:
    """24 positions that the journal lost are 6 passes; 3 drafts of which all are accepted save 3 steps of 4."""
    scene = Scene(monkeypatch, [40, 10])
    scene.miss(1, list(range(10, 34)), journalled=False)
    scene.miss(1, list(range(34, 40)))
    for req, tokens in zip(scene.batch.reqs, (left, left - 1), strict=True):
        req.sampling_params.max_new_tokens = len(req.output_ids) + tokens
    assert scene.catch_up.can_pay(scene.batch, 3) is pays
    assert scene.catch_up.too_dear == (not pays)


@pytest.mark.parametrize("left, pays", [(6, False), (7, True)])
def test_requests_that_end_before_their_drafts_are_back_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, left: int, pays: bool
) -> None:
    """180 positions, of which an iteration fills 32 while two requests gain one each: 6 iterations."""
    scene = Scene(monkeypatch, [95, 95])
    scene.miss(1, list(range(5, 95)))
    scene.miss(2, list(range(5, 95)))
    for req in scene.batch.reqs:
        req.sampling_params.max_new_tokens = len(req.output_ids) + left
    assert scene.catch_up.can_pay(scene.batch, 3) is pays
    assert scene.catch_up.too_dear == (not pays)


def test_what_the_journal_has_pays_if_it_is_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, [40])
    scene.miss(1, list(range(10, 40)))
    scene.batch.reqs[0].sampling_params.max_new_tokens = len(scene.batch.reqs[0].output_ids) + 1
    assert scene.catch_up.can_pay(scene.batch, 3)


def test_a_standalone_draft_needs_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest may not have come to the host yet; nothing is lost, and the target is not asked."""
    scene = Scene(monkeypatch, [60, 30], step=16, standalone=True)
    scene.batch.reqs[1].output_ids.pop()
    scene.miss(1, list(range(0, 60)), journalled=False)
    scene.miss(2, [28, 29], journalled=False)
    assert scene.catch_up.can_pay(scene.batch, 1)
    assert scene.run() == 4
    assert scene.catch_up.recomputed == 0
    assert scene.batch.spec_info.topk_index.flatten().tolist() == [10, 11]


def test_a_larger_draft_fills_fewer_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(width: int) -> torch.nn.Module:
        return torch.nn.ModuleDict({"layers": torch.nn.Linear(10, width), "embed_tokens": torch.nn.Embedding(999, 10)})

    def pace(draft: int) -> Pace:
        runners = [SimpleNamespace(model=model(width)) for width in (100, draft)]
        worker = SimpleNamespace(
            device="cpu",
            target_worker=SimpleNamespace(model_runner=runners[0]),
            draft_worker=SimpleNamespace(draft_runner=runners[1]),
        )
        return CatchUp(worker, Coverage(1, 1, "cpu"), TokensAlone()).pace

    ours = SimpleNamespace(needs_last_alone=True)
    for found, usual in ((None, ON_CPU), (ours, KEYS_AND_VALUES)):
        monkeypatch.setattr(eagle3_draft, "draft_of", lambda _worker, found=found: found)
        most = usual.tokens
        assert [pace(width) for width in (1, 10)] == [usual, usual]
        assert [pace(width).tokens for width in (20, 100)] == [most // 2, most // 10]
        assert {pace(width).tokens_per_request for width in (20, 100)} == {2}
