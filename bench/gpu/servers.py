"""The servers of the bench: the demo pair, its target alone, and a pair of the 8B shape with random weights."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from bench.demo_server import Server
from bench.gpu import models
from bench.gpu.work import GAMMA
from sglang_nightjar.demo.pair import ensure_pair

KEY = "bench"
#: Accepted drafts of each chain plus one, on average; SGLang then makes the tokens up.
ACCEPTED_LENGTH = "2.5"
_STRICT = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1", "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1"}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        shape: of the pair with random weights.
        kv_tokens: of its cache, with the draft on the device.
        batches: requests that decode while the draft goes and comes.
        cycles: how often it does.
        surge: repetitions, requests and new tokens of each.
        lags, profiled: cases of C_switch.
        texts, text_tokens: compared with the target's.
    """

    shape: models.Shape
    kv_tokens: int
    batches: tuple[int, int]
    cycles: int
    surge: tuple[int, int, int]
    lags: tuple[int, ...]
    profiled: tuple[int, ...]
    texts: int
    text_tokens: int


FULL = Scale(models.LARGE, 16_384, (8, 32), 4, (2, 96, 256), (8, 64, 256), (1, 8, 32), 8, 96)
TRIAL = Scale(models.SMALL, 1024, (2, 4), 1, (1, 8, 160), (4, 16), (1, 2), 2, 24)


def plain(folder: Path, on_gpu: bool) -> Server:
    """The demo target without speculation."""
    flags = ["--model-path", str(ensure_pair().target), "--nightjar-policy", "off", *_common(on_gpu, "0.2")]
    return Server([*flags, "--max-total-tokens", "8192"], folder / "plain.log")


def demo(folder: Path, on_gpu: bool) -> Server:
    """The demo pair with this bench for a policy process, and SGLang's strict memory checks on."""
    pair = ensure_pair()
    # Too small for all texts at once: some live in the draft's place, and have to move.
    flags = ["--model-path", str(pair.target), "--max-total-tokens", "1024", *_common(on_gpu, "0.2")]
    flags += _drafting(pair.draft, folder)
    return Server(flags, folder / "demo.log", **_STRICT)


def large(folder: Path, on_gpu: bool, scale: Scale) -> Server:
    """The pair of the 8B shape: random weights, simulated acceptance."""
    target, draft = models.write(scale.shape, ensure_pair().target, folder / "large")
    flags = ["--model-path", str(target), "--load-format", "dummy", "--admin-api-key", KEY]
    flags += ["--max-total-tokens", str(scale.kv_tokens), *_common(on_gpu, "0.7"), *_drafting(draft, folder)]
    if on_gpu:
        # Its prompts are short, and its start has a deadline.
        flags.append("--disable-prefill-cuda-graph")
    return Server(flags, folder / "large.log", SGLANG_SIMULATE_ACC_LEN=ACCEPTED_LENGTH)


def _common(on_gpu: bool, memory: str) -> list[str]:
    # Speculation would lower an unset number of running requests to 48 in its own arm only.
    flags = ["--max-running-requests", "128"]
    if on_gpu:
        # Triton: its draft-extend is captured too, and it compiles nothing with nvcc at first use. Graphs are captured
        # for every γ after the KV cache was sized, so there are few, and the cache leaves them room.
        flags += ["--attention-backend", "triton", "--mem-fraction-static", memory]
        flags += ["--cuda-graph-bs-decode", *map(str, (1, 2, 4, 8, 16, 32, 48, 64, 96, 128))]
    return flags


def _drafting(draft: Path, folder: Path) -> list[str]:
    config = folder / f"{draft.parent.name}.json"
    config.write_text(json.dumps({"gamma": {"candidates": [0, GAMMA]}}))
    return [
        *("--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(draft)),
        *("--nightjar-config", str(config), "--nightjar-strict"),
        *("--nightjar-policy-endpoint", f"ipc://{folder / 'policy'}"),
    ]


def await_ready(server: Server, seconds: float) -> str:
    """Why ``server`` can't be used, after at most ``seconds``; "" if it can."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            return f"the server ended with {server.process.returncode}:\n{server.tail(20)}"
        try:
            urllib.request.urlopen(server.url + "/health", timeout=5).close()
            return ""
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    return f"the server was not ready after {seconds:.0f} s:\n{server.tail(20)}"
