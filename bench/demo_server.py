"""Servers of the demo pair for benchmarks: one per γ, and batches of requests with what SGLang says about them."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "test"))

from helpers.serving import Server, gamma_flags

from sglang_nightjar.demo.pair import ensure_pair


@dataclass(frozen=True)
class Outcome:
    """One batch of requests: wall time until all are there, tokens, and what `decoded` says."""

    seconds: float
    tokens: int
    decoded: int
    verify_steps: int

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def start(gamma: int, log: Path, *flags: str) -> Server:
    """A server with speculation of length `gamma`; 0 is a server without any. Use it in a ``with`` block."""
    pair = ensure_pair()
    # Servers that wait must leave the cores to the one that is measured.
    all_flags = ["--model-path", str(pair.target), "--sleep-on-idle", "--nightjar-policy", "off", *flags]
    if gamma:
        all_flags += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(pair.draft)]
        all_flags += gamma_flags(gamma)
    return Server(all_flags, log)


def generate(url: str, texts: list[str], new_tokens: int, temperature: float, ignore_eos: bool) -> list[dict]:
    """Sends `texts` as one batch; returns SGLang's ``meta_info`` of each answer, in order."""
    sampling = {"max_new_tokens": new_tokens, "ignore_eos": ignore_eos, "temperature": temperature}
    body = json.dumps({"text": texts, "sampling_params": sampling}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=900) as response:
        return [answer["meta_info"] for answer in json.load(response)]


def timed(url: str, texts: list[str], new_tokens: int, temperature: float = 0.0) -> Outcome:
    """Throughput of one batch with forced length, prefill included."""
    began = time.perf_counter()
    metas = generate(url, texts, new_tokens, temperature, ignore_eos=True)
    seconds = time.perf_counter() - began
    return Outcome(seconds, sum(m["completion_tokens"] for m in metas), *decoded(metas))


def decoded(metas: list[dict]) -> tuple[int, int]:
    """(tokens that verify steps committed, verify steps) of some answers: each answer's first token is its prefill's.

    Their ratio is the accepted length, bonus token counted. SGLang's own ``spec_accept_length`` counts the first token
    too, and so comes out larger the shorter the answers are.
    """
    return sum(m["completion_tokens"] - 1 for m in metas), sum(m.get("spec_verify_ct", 0) for m in metas)
