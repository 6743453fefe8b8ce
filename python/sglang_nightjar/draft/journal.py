"""What an EAGLE draft would have read, kept while it is parked or away: the target's hidden states of new tokens.

A ring of rows, found by KV slot: a slot's draft row depends on the target's state at that position and on the token
after it, both known when the target computes the position. Rows outlive their request as long as the ring has room, so
a prefix from the radix cache can be caught up too. A slot that is used again is simply written again.

On a GPU the newest rows are on the device, in blocks; a full block is copied to pinned host memory on a stream of its
own, long before its place is needed again. On a CPU there is one memory and no copy; there it is noted for a few steps
together whose rows they are, because what that costs is the calls, not the bytes.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

#: Rows of the ring that stay on a GPU, in so many blocks.
DEVICE_ROWS = 8192
_BLOCKS = 8
#: Rows that wait on a CPU until it is noted whose they are.
_TOGETHER = 64


@dataclass(frozen=True)
class Found:
    """Where slots are in the journal.

    Attributes:
        numbers: int64 ``[n]``, the rows' numbers; undefined where ``present`` is False.
        present: bool ``[n]`` on the host.
    """

    numbers: torch.Tensor
    present: torch.Tensor


class Journal:
    """A bounded journal.

    Attributes:
        capacity: rows that it can hold.
        written: rows written since the start, without those of which it was not noted yet whose they are.
    """

    def __init__(
        self, slots: int, width: int, dtype: torch.dtype, max_bytes: int, device: Any, device_rows: int = DEVICE_ROWS
    ):
        """For ``slots`` KV slots and hidden states ``[width]``; all that it allocates fits into ``max_bytes``."""
        self.written = 0
        self._slots, self._width, self._dtype = slots, width, dtype
        self._device = torch.device(device)
        state = width * dtype.itemsize
        room = max(0, max_bytes - slots * torch.int64.itemsize)
        self.capacity = room // (state + 2 * torch.int64.itemsize)
        self._spills = False
        if self._device.type == "cuda" and self.capacity > device_rows:
            self._block_rows = device_rows // _BLOCKS
            # Whole blocks, so that a block never wraps around the end of the host's ring.
            both = (room - device_rows * state) // (state + 2 * torch.int64.itemsize)
            both -= both % self._block_rows
            self._spills = both > device_rows
            self.capacity = max(both, device_rows)
        self._device_rows = min(device_rows, self.capacity) if self._device.type == "cuda" else self.capacity
        self._allocated = False
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._rows_waiting = 0

    def bytes(self) -> dict[str, int]:
        """Bytes allocated: on the device, and on the host if that is another memory."""
        if not self._allocated:
            return {"device": 0, "host": 0}
        index = sum(t.nbytes for t in (self._tokens, self._owner, self._place))
        return {"device": self._hidden.nbytes + index, "host": self._host.nbytes if self._spills else 0}

    def allocate(self) -> None:
        """Take the memory, if not yet done. Raises RuntimeError or MemoryError; then nothing is taken."""
        if self._allocated or not self.capacity:
            return
        hidden = torch.empty((self._device_rows, self._width), dtype=self._dtype, device=self._device)
        self._tokens = torch.zeros(self.capacity, dtype=torch.int64, device=self._device)
        self._owner = torch.full((self.capacity,), -1, dtype=torch.int64, device=self._device)
        self._place = torch.full((self._slots,), -1, dtype=torch.int64, device=self._device)
        if self._spills:
            pinned = self._device.type == "cuda"
            self._host = torch.empty((self.capacity, self._width), dtype=self._dtype, pin_memory=pinned)
            self._stream = torch.cuda.Stream(self._device)
            self._copied = [torch.cuda.Event() for _ in range(_BLOCKS)]
        self._hidden, self._allocated = hidden, True

    def close(self) -> None:
        """Give the memory back, and hold nothing from now on."""
        self.capacity, self._allocated, self._spills = 0, False, False
        self._waiting, self._rows_waiting = [], 0
        self._hidden = self._tokens = self._owner = self._place = self._host = torch.empty(0)

    def write(self, slots: torch.Tensor, hidden: torch.Tensor, tokens: torch.Tensor) -> None:
        """Append positions: their slots int64 ``[n]``, hidden states ``[n, width]``, and the tokens after them.

        On a CPU slots and tokens are kept for a while: nobody may change them.
        """
        if not self.capacity:
            return
        self.allocate()
        if self._device.type == "cpu" and not self._spills and len(slots) < _TOGETHER:
            self._put(self.written + self._rows_waiting, hidden)
            self._waiting.append((slots, tokens))
            self._rows_waiting += len(slots)
            if self._rows_waiting >= _TOGETHER:
                self._note_waiting()
            return
        self._note_waiting()
        if len(slots) > self.capacity:
            # Of a prompt longer than the journal the end is kept: a request's beginning is computed anew first.
            slots, hidden, tokens = (value[-self.capacity :] for value in (slots, hidden, tokens))
        at = 0
        while at < len(slots):
            place = self.written % self._device_rows
            count = min(len(slots) - at, self._device_rows - place)
            if self._spills:
                count = min(count, self._block_rows - place % self._block_rows)
                self._before_overwriting(place)
            part = slice(at, at + count)
            _copy(self._hidden[place : place + count], hidden[part])
            self._note(slots[part], tokens[part])
            at += count
            if self._spills and self.written % self._block_rows == 0:
                self._spill(place // self._block_rows)

    def _put(self, row: int, hidden: torch.Tensor) -> None:
        """States ``[n, width]`` to rows ``row``, ``row + 1`` ... since the start, on a CPU."""
        place = row % self.capacity
        room = self.capacity - place
        here = hidden[:room]
        _copy(self._hidden[place : place + len(here)], here)
        if len(hidden) > room:
            self._put(row + room, hidden[room:])

    def _note_waiting(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting, self._rows_waiting = self._waiting, [], 0
        slots, tokens = zip(*waiting, strict=True)
        self._note(torch.cat(slots), torch.cat(tokens))

    def _note(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """The next rows are those of ``slots``, with ``tokens`` after them."""
        at = 0
        while at < len(slots):
            first = self.written % self.capacity
            count = min(len(slots) - at, self.capacity - first)
            part = slice(at, at + count)
            self._tokens[first : first + count] = tokens[part]
            self._owner[first : first + count] = slots[part]
            self._note_places(slots[part], first)
            self.written += count
            at += count

    def find(self, slots: torch.Tensor) -> Found:
        """Look int64 ``[n]`` slots up. Waits for the device."""
        self._note_waiting()
        if not self._allocated:
            return Found(slots, torch.zeros(len(slots), dtype=torch.bool))
        places = self._place[slots]
        present = (places >= 0) & (self._owner[places] == slots)
        return Found(places, present.cpu())

    def read(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states ``[n, width]`` and tokens int64 ``[n]`` of rows that `find` found, on the device."""
        tokens = self._tokens[numbers]
        if not self._spills:
            return self._hidden[numbers], tokens
        # A row's age says where it is: the newest rows are still on the device.
        age = (self.written - 1 - numbers) % self.capacity
        near = age < self._device_rows - self._block_rows
        # Rows that are both here and there: the place on the device follows from the row's number since the start.
        hidden = self._hidden[(self.written - 1 - age) % self._device_rows]
        far = torch.nonzero(~near).flatten()
        if len(far):
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            self._stream.synchronize()
            hidden[far] = self._host[numbers[far].cpu()].to(self._device, non_blocking=True)
        return hidden, tokens

    def moved(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Slots ``source`` now live in ``target``; the two have no slot in common."""
        self._note_waiting()
        if not self._allocated:
            return
        places = self._place[source]
        held = (places >= 0) & (self._owner[places] == source)
        self._place[target] = torch.where(held, places, -1)
        self._owner[places[held]] = target[held]

    def _note_places(self, slots: torch.Tensor, first: int) -> None:
        """``slots`` are in the rows from ``first`` on."""
        if self._device.type == "cpu":
            # A slot may be there twice, freed and taken again while it waited: with NumPy the last one counts.
            self._place.numpy()[slots.numpy()] = np.arange(first, first + len(slots))
        else:
            self._place[slots] = torch.arange(first, first + len(slots), device=self._device)

    def _before_overwriting(self, place: int) -> None:
        if place % self._block_rows == 0 and self.written >= self._device_rows:
            torch.cuda.current_stream(self._device).wait_event(self._copied[place // self._block_rows])

    def _spill(self, block: int) -> None:
        """Copy a full block to the host, behind what writes it and beside what follows."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        first = block * self._block_rows
        at = (self.written - self._block_rows) % self.capacity
        with torch.cuda.stream(self._stream):
            self._host[at : at + self._block_rows].copy_(
                self._hidden[first : first + self._block_rows], non_blocking=True
            )
            self._copied[block].record(self._stream)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """``source`` into ``target``, which is contiguous; on this thread where both are in host memory.

    A copy of more than 32,768 values wakes torch's other threads, which takes longer than the copy; NumPy takes twice
    as long for bytes as the system does.
    """
    if target.device.type == source.device.type == "cpu" and target.dtype == source.dtype:
        ctypes.memmove(target.data_ptr(), source.contiguous().data_ptr(), target.nbytes)
    else:
        target.copy_(source)
