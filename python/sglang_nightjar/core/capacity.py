"""How many tokens of KV cache a draft's memory is worth: predicted from shapes, before anybody tries."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The buffers of a KV cache, one for the keys and one for the values of each layer.

    Attributes:
        row_bytes: bytes of a token in each buffer.
        granularity: the smallest piece of a buffer that can be backed by memory, in bytes.
        page_size: tokens that are handed out together; one page in front is padding.
    """

    row_bytes: tuple[int, ...]
    granularity: int
    page_size: int = 1

    @property
    def bytes_per_token(self) -> int:
        return sum(self.row_bytes)

    def committed_bytes(self, tokens: int) -> tuple[int, ...]:
        """Bytes of each buffer that must be backed for ``tokens`` tokens and the padding page."""
        rows, piece = tokens + self.page_size, self.granularity
        return tuple(-(-rows * size // piece) * piece for size in self.row_bytes)


def tokens_gained(freed_bytes: int, base_tokens: int, layout: KvLayout) -> int:
    """Tokens by which a cache of ``base_tokens`` can grow into ``freed_bytes``: a multiple of the page size.

    Growth takes whole pieces of each buffer; what the last base piece has to spare is used too.
    """
    base = sum(layout.committed_bytes(base_tokens))
    size = layout.page_size
    # What the base's pieces have to spare is less than a piece in each buffer, so this many pages never fit.
    spare = layout.granularity // min(layout.row_bytes) if layout.row_bytes else 0
    low, high = 0, (freed_bytes // max(1, layout.bytes_per_token) + spare) // size + 1
    while high - low > 1:
        pages = (low + high) // 2
        if sum(layout.committed_bytes(base_tokens + pages * size)) - base <= freed_bytes:
            low = pages
        else:
            high = pages
    return low * size if freed_bytes > 0 else 0


def human_bytes(count: int) -> str:
    """``count`` for people: 80.3 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} B"


def aligned_offsets(sizes: Sequence[int], alignment: int) -> tuple[list[int], int]:
    """Where to put pieces of ``sizes`` bytes, each at a multiple of ``alignment``; and the bytes of all together."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // alignment) * alignment
    return offsets, end
