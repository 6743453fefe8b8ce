"""Gumbel noise as a function of (key, token): the draft and the target's verification throw the same dice.

argmax(logits / T + g) with independent standard Gumbel g is a draw from softmax(logits / T) (the Gumbel-max trick). If
two models that agree about a position use the same g, they mostly draw the same token, and each still draws exactly
from its own distribution (coupling without communication: Daliri, Musco, Suresh 2025, arXiv 2408.07978). The numbers
come from a counter-based hash (csrc/noise.h), so that neither has to be told what the other drew.
"""

import math

import torch

from sglang_nightjar.cpu import kernels

_MASK = 0xFFFFFFFF


def add_gumbel_(
    x: torch.Tensor, temperature: torch.Tensor, keys: torch.Tensor, ids: torch.Tensor | None = None
) -> None:
    """Add ``temperature * g(key, token)`` to every element of float32 ``x [rows, columns]``, in place.

    ``temperature`` is float32 ``[rows]`` (rows of 0 stay as they are, bit for bit), ``keys`` int64 ``[rows]``, ``ids``
    the tokens of the columns, int64 ``[columns]`` or ``[rows, columns]`` (default: 0, 1, 2, ...).
    """
    if kernels.in_use():
        torch.ops.nightjar.add_gumbel_(x, temperature, keys, ids)
    else:
        add_gumbel_in_torch_(x, temperature, keys, ids)


def add_gumbel_in_torch_(
    x: torch.Tensor, temperature: torch.Tensor, keys: torch.Tensor, ids: torch.Tensor | None = None
) -> None:
    """The same in float64 torch: the reference, and what serves without the C++ kernels."""
    tokens = torch.arange(x.shape[1]) if ids is None else ids
    low, high = (keys & _MASK)[:, None], ((keys >> 32) & _MASK)[:, None]
    hashed = _mix((_mix(((tokens ^ low) + 0x9E3779B9) & _MASK) + high) & _MASK)
    w = (hashed >> 1).double() * 2.0**-31 + 2.0**-32
    noise = -torch.log(-torch.log1p(-w))
    x += torch.where(temperature[:, None] == 0, 0.0, temperature[:, None] * noise).to(x.dtype)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (_times(x ^ (x >> 16), 0x7FEB352D)) & _MASK
    x = (_times(x ^ (x >> 15), 0x846CA68B)) & _MASK
    return x ^ (x >> 16)


def _times(x: torch.Tensor, factor: int) -> torch.Tensor:
    # Products of 32-bit numbers don't fit into int64 but wrap around, which leaves the low 32 bits right.
    return x * factor


GOLDEN = -7046029254386353131
"""2^64 divided by the golden ratio, as int64: successive positions get keys that have little in common."""


class Dice:
    """The keys of the noise: one secret number per request slot, mixed with the position of the token to be drawn.

    A request's slot is rolled anew when its prompt is processed, so no two requests share their noise. Positions are
    those of the row's input token in the target; no position of a request is committed twice.
    """

    def __init__(self) -> None:
        self._secrets = torch.zeros(0, dtype=torch.int64)

    def roll(self, slots: torch.Tensor) -> None:
        """New secrets for request slots int64 ``[n]``, from torch's generator."""
        self._make_room(slots)
        self._secrets[slots] = torch.randint(-(2**63), 2**63 - 1, (slots.numel(),))

    def keys(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """int64 ``[n]`` for slots and positions, int64 ``[n]`` each."""
        self._make_room(slots)
        return self._secrets[slots] + (positions + 1) * GOLDEN

    def _make_room(self, slots: torch.Tensor) -> None:
        needed = int(slots.max()) + 1 if slots.numel() else 0
        if needed > len(self._secrets):
            size = 2 ** math.ceil(math.log2(needed))
            grown = torch.randint(-(2**63), 2**63 - 1, (size,))
            grown[: len(self._secrets)] = self._secrets
            self._secrets = grown


dice = Dice()
