"""What a draft reads of positions that the target has computed: one class for each kind of draft.

A draft's row at a position follows from the token after it (SGLang keeps every draft one token ahead). An EAGLE draft
also reads the target's hidden state there, which is gone unless it was kept. A STANDALONE draft is a complete model and
reads tokens alone; requests have them, so nothing is kept and nothing is ever lost.
"""

import logging
from typing import Any, Protocol

import torch

from sglang_nightjar.draft.agreement import Agree
from sglang_nightjar.draft.extend import Piece, target_states
from sglang_nightjar.draft.journal import Journal
from sglang_nightjar.patches.seams import Seam

logger = logging.getLogger(__name__)

_UTILS = "sglang.srt.speculative.eagle_utils"

SEAMS = (
    Seam(f"{_UTILS}:_eagle_prefill_tail_tokens", ("batch", "next_token_ids"), "call", "tokens after a prompt's end"),
    Seam(f"{_UTILS}:get_draft_input_from_target_hidden_dim", ("model_runner",), "call", "width of the journal"),
    Seam("sglang.srt.speculative.spec_info:SpeculativeAlgorithm.is_standalone", (), "call", "what kind of draft it is"),
)


class DraftInputs(Protocol):
    """Attributes:
    reads: what a draft of this kind reads at a position, for people.
    recomputed: positions for which the target had to compute it anew, since the start.
    """

    reads: str
    recomputed: int

    def reserve(self, agree: Agree) -> None:
        """Take all memory that may be needed, now; on all ranks, or on none."""

    def note(self, slots: torch.Tensor, hidden: torch.Tensor | None, tokens: torch.Tensor) -> None:
        """The target wrote int64 ``[n]`` slots and the draft did not.

        ``hidden`` ``[n, width]`` are the target's states there, ``tokens`` the tokens after them.
        """

    def note_prompt(self, batch: Any, hidden: torch.Tensor | None, next_tokens: torch.Tensor) -> None:
        """The same for the prompts in ``batch``, of which ``next_tokens`` ``[requests]`` were sampled."""

    def kept(self, slots: torch.Tensor) -> torch.Tensor:
        """Where what the draft reads at ``slots`` can be had without the target: bool ``[n]``, on the host."""

    def read(self, batch: Any, pieces: list[Piece], slots: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """For ``pieces``, whose slots are ``slots``, end to end: hidden states ``[n, width]``, and tokens ``[n]``."""

    def moved(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Slots ``source`` now live in ``target``; the two have no slot in common."""

    def status(self) -> dict[str, Any]:
        """What is kept, for people: plain JSON types."""


class TokensAlone:
    """A STANDALONE draft's."""

    reads = "tokens"
    recomputed = 0

    def reserve(self, agree: Agree) -> None:
        pass

    def note(self, slots: torch.Tensor, hidden: torch.Tensor | None, tokens: torch.Tensor) -> None:
        pass

    def note_prompt(self, batch: Any, hidden: torch.Tensor | None, next_tokens: torch.Tensor) -> None:
        pass

    def kept(self, slots: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(slots), dtype=torch.bool)

    def read(self, batch: Any, pieces: list[Piece], slots: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, tokens_after(batch, pieces, slots.device)

    def moved(self, source: torch.Tensor, target: torch.Tensor) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {"bytes": {"device": 0, "host": 0}, "capacity": 0, "written": 0}


class StatesAndTokens:
    """An EAGLE draft's: from a journal, or computed anew by the target.

    Attributes:
        journal: what is kept.
    """

    reads = "hidden states and tokens"

    def __init__(self, journal: Journal, target_worker: Any):
        self.recomputed = 0
        self.journal = journal
        self._target_worker = target_worker

    def reserve(self, agree: Agree) -> None:
        error = ""
        try:
            self.journal.allocate()
        except (RuntimeError, MemoryError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        if not agree(int(not error)):
            self.journal.close()
            logger.warning(
                "Nightjar: no memory for the draft's journal (%s): what is missed at γ=0 is computed anew. "
                "Lower memory.journal_mb or --mem-fraction-static",
                error or "on another rank",
            )

    def note(self, slots: torch.Tensor, hidden: torch.Tensor | None, tokens: torch.Tensor) -> None:
        assert hidden is not None
        self.journal.write(slots, hidden, tokens)

    def note_prompt(self, batch: Any, hidden: torch.Tensor | None, next_tokens: torch.Tensor) -> None:
        self.note(batch.out_cache_loc, hidden, tokens_after_prompts(batch, next_tokens))

    def kept(self, slots: torch.Tensor) -> torch.Tensor:
        return self.journal.find(slots).present

    def read(self, batch: Any, pieces: list[Piece], slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.journal.find(slots)
        if bool(found.present.all()):
            return self.journal.read(found.numbers)
        spans = slots.split([len(piece) for piece in pieces])
        parts = [self._read_piece(batch, piece, span) for piece, span in zip(pieces, spans, strict=True)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _read_piece(self, batch: Any, piece: Piece, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.journal.find(slots)
        if bool(found.present.all()):
            return self.journal.read(found.numbers)
        self.recomputed += len(piece)
        known = _tokens(batch.reqs[piece.index], piece.first, piece.last)
        ids = torch.tensor(known, dtype=torch.int64).to(slots.device)
        hidden = target_states(self._target_worker.model_runner, batch, piece, ids)
        return hidden, tokens_after(batch, [piece], slots.device)

    def moved(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self.journal.moved(source, target)

    def status(self) -> dict[str, Any]:
        journal = self.journal
        return {"bytes": journal.bytes(), "capacity": journal.capacity, "written": journal.written}


def of(worker: Any, slots: int, journal_bytes: int) -> DraftInputs:
    """Those of SGLang's ``EAGLEWorkerV2`` or ``StandaloneWorkerV2``, for a KV cache of so many slots."""
    from sglang.srt.speculative import eagle_utils

    runner = worker.draft_worker.draft_runner
    if runner.spec_algorithm.is_standalone():
        return TokensAlone()
    width = eagle_utils.get_draft_input_from_target_hidden_dim(runner)
    journal = Journal(slots, width, runner.model_config.dtype, journal_bytes, worker.device)
    return StatesAndTokens(journal, worker.target_worker)


def tokens_after_prompts(batch: Any, next_tokens: torch.Tensor) -> torch.Tensor:
    """The tokens after the new positions of the prompts in ``batch``, end to end: int64 ``[positions]``.

    After each position that is the next one's, and after a prompt's last what was sampled of it, ``next_tokens``
    ``[requests]``; after a chunk's last the next chunk's first.
    """
    from sglang.srt.speculative.eagle_utils import _eagle_prefill_tail_tokens

    tokens = torch.roll(batch.input_ids, -1)
    ends = torch.tensor(batch.extend_lens, device=tokens.device).cumsum(0) - 1
    tokens[ends] = _eagle_prefill_tail_tokens(batch, next_tokens)
    return tokens


def tokens_after(batch: Any, pieces: list[Piece], device: torch.device) -> torch.Tensor:
    """The tokens after the positions of ``pieces``, end to end: int64 ``[n]`` on ``device``."""
    known: list[int] = []
    places, indices = [], []
    for piece in pieces:
        tokens = _tokens(batch.reqs[piece.index], piece.first + 1, piece.last + 1)
        if len(tokens) < len(piece):
            # The newest token has not come to the host yet.
            places.append(len(known) + len(tokens))
            indices.append(piece.index)
            tokens.append(0)
        known += tokens
    after = torch.tensor(known, dtype=torch.int64).to(device)
    if places:
        after[places] = batch.spec_info.bonus_tokens[indices].to(torch.int64)
    return after


def _tokens(req: Any, first: int, last: int) -> list[int]:
    """The tokens at positions [first, last) of a request, as far as the host knows them."""
    prompt = len(req.origin_input_ids)
    answer = req.output_ids[max(0, first - prompt) : max(0, last - prompt)]
    return [*req.origin_input_ids[first : min(last, prompt)], *answer]
