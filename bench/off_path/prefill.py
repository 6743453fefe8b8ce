"""What a draft costs a prefill: servers without one, at γ=0 and at γ=1, one request of a token at a time, by turns."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "test"))

from helpers.serving import Server

from bench.off_path.served import flags, ratio
from sglang_nightjar.demo.corpus import held_out, render

_NONE = "no speculation"
_KINDS = (_NONE, "γ=0", "γ=1")
_WARM_UP = 3
#: Characters; longer ones would weigh more than the others together.
_LONGEST = 400


def flags_of(kind: str, folder: Path, kv_tokens: int) -> list[str]:
    """The launcher's, of one of `_KINDS`."""
    if kind == _NONE:
        return flags("none", folder, kv_tokens)
    config = folder / f"{kind}.json"
    config.write_text(json.dumps({"policy": {"name": "static", "params": {"gamma": int(kind[-1])}}}))
    # The last of a flag given twice counts.
    return [*flags("off", folder, kv_tokens), "--nightjar-config", str(config)]


def ms(url: str, text: str) -> float:
    """From a request to its only token."""
    sampling = {"max_new_tokens": 1, "ignore_eos": True, "temperature": 0}
    body = json.dumps({"text": text, "sampling_params": sampling}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    before = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as response:
        response.read()
    return 1e3 * (time.perf_counter() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--kv-tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    prompts = [text for text in map(render, held_out(512)) if len(text) < _LONGEST][: args.prompts + _WARM_UP]
    times: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            kind: stack.enter_context(Server(flags_of(kind, folder, args.kv_tokens), folder / f"{kind}.log"))
            for kind in _KINDS
        }
        for number, text in enumerate(prompts):
            for kind in draw.sample(_KINDS, len(_KINDS)):
                taken = ms(servers[kind].url, text)
                if number >= _WARM_UP:
                    times[kind].append(taken)
    print("| | ms, median | ratio, median (quartiles) |\n| --- | --- | --- |")
    for kind, found in times.items():
        print(f"| {kind} | {statistics.median(found):.1f} | {ratio(times[_NONE], found)} |")


if __name__ == "__main__":
    main()
