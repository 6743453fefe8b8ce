"""Greedy answers of a forced length, piece by piece as a client gets them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

from sglang_nightjar.demo.corpus import held_out, render

_TIMEOUT_S = 600
#: Characters; long prompts would leave little of the cache to many answers.
_LONGEST = 600


def short_prompts(count: int) -> list[str]:
    """The short ones among the first ``count`` that the draft head never saw."""
    return [text for text in map(render, held_out(count)) if len(text) < _LONGEST]


def pieces(url: str, text: str | list[str], new_tokens: int) -> Iterator[bytes]:
    """Ask for the answers to one text, or to several as one batch; yields each piece, JSON, when it comes."""
    sampling = {"max_new_tokens": new_tokens, "ignore_eos": True, "temperature": 0}
    body = json.dumps({"text": text, "sampling_params": sampling, "stream": True}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        for line in response:
            if line.startswith(b"data: {"):
                yield line[len(b"data: ") :]
