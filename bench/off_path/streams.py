"""Greedy answers of a forced length, piece by piece as a client gets them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

_TIMEOUT_S = 600


def pieces(url: str, text: str | list[str], new_tokens: int) -> Iterator[bytes]:
    """Ask for the answers to one text, or to several as one batch; yields each piece, JSON, when it comes."""
    sampling = {"max_new_tokens": new_tokens, "ignore_eos": True, "temperature": 0}
    body = json.dumps({"text": text, "sampling_params": sampling, "stream": True}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield line[len(b"data: ") :]
