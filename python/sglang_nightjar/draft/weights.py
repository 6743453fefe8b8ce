"""The draft's own weights in one elastic buffer, with a copy on the host from which they come back.

What the draft shares with the target stays where it is: a parameter is the draft's own if its storage is none of the
target's. Where the CPU engine keeps a rearranged copy of a weight (cpu/packed_linear.py), that copy moves in too.
The copy on the host is made once, so going away copies nothing.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

from sglang_nightjar.core.capacity import aligned_offsets
from sglang_nightjar.cpu import packed_linear
from sglang_nightjar.memory import elastic
from sglang_nightjar.memory.elastic import ElasticBuffer

logger = logging.getLogger(__name__)

#: Each weight starts at a multiple of this, which every kernel is content with.
ALIGNMENT = 256

#: What is copied or given back between two decode iterations, on a CPU. Into fresh pages, 4 MiB take 2 to 3 ms.
CPU_PIECE_BYTES = 4 << 20
#: What is mapped between two iterations on a GPU; copying runs beside them.
CUDA_PIECE_BYTES = 256 << 20


class _Place:
    """A storage of the draft's, with those who look at it.

    ``views`` are called with the new storage-wide byte tensor, and point their owner to it.
    """

    def __init__(self, source: torch.Tensor):
        self.source: torch.Tensor | None = source
        self.nbytes = source.nbytes
        self.views: list[Callable[[torch.Tensor], None]] = []
        self.offset = 0


class DraftWeights:
    """Attributes:
    model: the draft.
    nbytes: what going away frees, in bytes.
    on_device: all of it is there, and valid.
    """

    def __init__(
        self,
        draft: torch.nn.Module,
        target: torch.nn.Module | None,
        reserve: Callable[..., ElasticBuffer] = elastic.reserve,
    ):
        """Moves the weights into the buffer. Raises ValueError if the draft has none of its own."""
        self.model = draft
        self._homes: _Homes = []
        places = _private_places(draft, target, self._homes)
        if not places:
            raise ValueError("the draft shares all its weights with the target")
        offsets, total = aligned_offsets([place.nbytes for place in places], ALIGNMENT)
        for place, offset in zip(places, offsets, strict=True):
            place.offset = offset
        self._places = places
        self.device = next(iter(places)).source.device  # type: ignore[union-attr]
        is_cuda = self.device.type == "cuda"
        self._piece = CUDA_PIECE_BYTES if is_cuda else CPU_PIECE_BYTES
        self._host = torch.empty(total, dtype=torch.uint8, pin_memory=is_cuda)
        # The packed weights that the CPU engine makes lie in huge pages too.
        self._buffer = reserve(total, self.device, total)
        self._all = self._buffer.tensor(torch.uint8, (total,))
        self._stream = torch.cuda.Stream(self.device) if is_cuda else None
        self._bytes = total
        # By way of the host, so that a GPU never holds the weights twice.
        self._copy_out()
        for place in places:
            place.source = None
            for view in place.views:
                view(self._all[place.offset : place.offset + place.nbytes])
        if is_cuda:
            torch.cuda.empty_cache()
        packed_linear.epoch += 1
        self.on_device = False
        self.load_now()
        self.nbytes = self._buffer.committed

    @property
    def device_bytes(self) -> int:
        """What the weights take on the device now."""
        return self._buffer.committed

    def release(self) -> Generator[None, None, None]:
        """Give the memory back, a bounded piece per step. Nothing may read the weights from the first step on."""
        self.on_device = False
        if self._stream is not None:
            torch.cuda.synchronize(self.device)
            self._buffer.release(0)
        while self._buffer.committed:
            self._buffer.release(max(0, self._buffer.committed - self._piece))
            yield

    def load(self) -> Generator[None, None, None]:
        """Bring the weights back, a bounded piece per step; on a GPU, copies run on a stream of their own.

        They are valid when the iterator ends. Raises MemoryRefusedError; then, and when it is closed early, `release`
        gives back what came.
        """
        if self._stream is None:
            for start in range(0, self._bytes, self._piece):
                end = min(start + self._piece, self._bytes)
                self._buffer.commit(end)
                self._fetch(start, end)
                yield
        else:
            yield from self._load_beside(self._stream)
        self.on_device = True

    def load_now(self) -> None:
        """Bring the weights back at once."""
        for _ in self.load():
            pass

    def renew(self) -> None:
        """After the model's weights were changed in place: take the new values over into buffer and host copy.

        Raises RuntimeError while the weights are away.
        """
        if not self.on_device:
            raise RuntimeError("the draft's weights are away")
        for found, home, parameter in self._homes:
            found.refresh(parameter)
            # In another type it does not fit in, and stays outside.
            if found.weight.dtype == home.dtype:
                home.copy_(found.weight)
                found.weight = home
        packed_linear.epoch += 1
        self._host.copy_(self._all)

    def _load_beside(self, stream: torch.cuda.Stream) -> Iterator[None]:
        for end in [*range(self._piece, self._bytes, self._piece), self._bytes]:
            self._buffer.commit(end)
            yield
        with torch.cuda.stream(stream):
            for start in range(0, self._bytes, self._piece):
                end = min(start + self._piece, self._bytes)
                self._fetch(start, end)
            arrived = torch.cuda.Event()
            arrived.record(stream)
        while not arrived.query():
            yield
        # For the host they have arrived; whatever stream reads them was not started yet, or must see them as well.
        torch.cuda.current_stream(self.device).wait_event(arrived)

    def _fetch(self, start: int, end: int) -> None:
        """Bytes ``start`` to ``end`` from the host; on a GPU, on the current stream."""
        self._all[start:end].copy_(self._host[start:end], non_blocking=True)

    def _copy_out(self) -> None:
        for place in self._places:
            assert place.source is not None
            self._host[place.offset : place.offset + place.nbytes].copy_(place.source)


#: A packed form, its memory in the buffer, and what it is the packed form of.
_Homes = list[tuple[Any, torch.Tensor, torch.Tensor]]


def _private_places(draft: torch.nn.Module, target: torch.nn.Module | None, homes: _Homes) -> list[_Place]:
    shared = {p.untyped_storage().data_ptr() for p in target.parameters()} if target is not None else set()
    places: dict[int, _Place] = {}
    for parameter in draft.parameters():
        storage = parameter.untyped_storage()
        if storage.data_ptr() in shared or storage.nbytes() == 0:
            continue
        place = places.setdefault(storage.data_ptr(), _Place(_bytes_of(parameter)))
        place.views.append(_parameter_view(parameter))
        if not packed_linear.can_pack(parameter) or not _is_linear(draft, parameter):
            continue
        # Made now if it was not used yet, or it would be made outside of the buffer later.
        found = packed_linear.packed(parameter)
        # oneDNN's packed weights have no plain memory that could be moved; they stay.
        if found.is_float32:
            copy = places.setdefault(found.weight.untyped_storage().data_ptr(), _Place(_bytes_of(found.weight)))
            copy.views.append(_packed_view(found, parameter, homes))
    return list(places.values())


def _is_linear(model: torch.nn.Module, parameter: torch.Tensor) -> bool:
    """Whether a module multiplies with it; embeddings only look rows up, unless they are the head too."""
    if getattr(getattr(model, "lm_head", None), "weight", None) is parameter:
        return True
    owners = (name for name, module in model.named_modules() if getattr(module, "weight", None) is parameter)
    return any("embed" not in name.rsplit(".", 1)[-1] for name in owners)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage behind ``tensor``, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _parameter_view(parameter: torch.Tensor) -> Callable[[torch.Tensor], None]:
    shape, stride, offset, dtype = parameter.shape, parameter.stride(), parameter.storage_offset(), parameter.dtype

    def point(memory: torch.Tensor) -> None:
        whole = memory.view(dtype)
        parameter.data = torch.as_strided(whole, shape, stride, whole.storage_offset() + offset)

    return point


def _packed_view(found: Any, parameter: torch.Tensor, homes: _Homes) -> Callable[[torch.Tensor], None]:
    weight = found.weight
    shape, stride, offset, dtype = weight.shape, weight.stride(), weight.storage_offset(), weight.dtype

    def point(memory: torch.Tensor) -> None:
        whole = memory.view(dtype)
        found.weight = torch.as_strided(whole, shape, stride, whole.storage_offset() + offset)
        found.source = parameter.data_ptr()
        homes.append((found, found.weight, parameter))

    return point
