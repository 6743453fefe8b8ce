"""Frames over the socket pair between the policy process and a policy's worker.

A frame is a 4-byte length, a 1-byte kind, and a payload. To the worker: `INIT` (JSON), `BATCH` (wire frames, each with
a 4-byte length before it), `ESTIMATES`, `SAVE`. From the worker: `READY` (JSON), `DONE` (JSON: the decisions of a
batch), `ESTIMATES` (JSON), `SAVED` (JSON null, well or not), `FAILED` (JSON, and then it exits).
"""

import socket
import struct
from collections.abc import Iterable, Iterator

INIT, BATCH, ESTIMATES, READY, DONE, FAILED = b"I", b"B", b"E", b"R", b"D", b"F"
SAVE, SAVED = b"S", b"W"
_HEAD = struct.Struct("<I1s")
_LENGTH = struct.Struct("<I")
#: Longer is damage: a batch of 256 wire frames of the largest size is below it.
MAX_PAYLOAD = 1 << 27


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return _HEAD.pack(len(payload), kind) + payload


def batch(messages: Iterable[bytes]) -> bytes:
    """The payload of a `BATCH`."""
    parts = []
    for message in messages:
        parts.append(_LENGTH.pack(len(message)))
        parts.append(message)
    return b"".join(parts)


def messages_of(payload: bytes) -> Iterator[bytes]:
    """The opposite of `batch`."""
    position = 0
    while position < len(payload):
        (length,) = _LENGTH.unpack_from(payload, position)
        position += _LENGTH.size + length
        yield payload[position - length : position]


class Buffer:
    """Puts frames together again from whatever pieces arrive."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Take ``data``; yield (kind, payload) of each frame that is complete. Raises ValueError for damage."""
        self._bytes += data
        while len(self._bytes) >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._bytes)
            if length > MAX_PAYLOAD:
                raise ValueError(f"a frame of {length} bytes")
            if len(self._bytes) < _HEAD.size + length:
                return
            payload = bytes(self._bytes[_HEAD.size : _HEAD.size + length])
            del self._bytes[: _HEAD.size + length]
            yield kind, payload


def receive(connection: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """Frames from a blocking socket until its other end closes."""
    buffer = Buffer()
    while data := connection.recv(1 << 18):
        yield from buffer.feed(data)
