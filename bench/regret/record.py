"""Records what the simulator is fitted to and checked against: one server of the demo pair, two loads.

``cycle`` runs every γ under load A, whose decision log is fitted. Under load B, of other batch sizes and other lengths,
fixed policies are measured by their clients. ``python -m bench.regret.validate`` compares. Lengths of load B differ
from answer to answer: equal ones would keep all clients in step, and tokens within a phase would hang on when it ends.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import threading
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench.crossover.run import rendered_prompts
from bench.demo_server import Server
from bench.provenance import provenance
from sglang_nightjar.demo.pair import ensure_pair
from sglang_nightjar.sim.loads import Lengths

HERE = Path(__file__).parent
#: (seconds, clients) of the two closed loops, and tokens of their answers.
LOAD_A = ((10, 1), (10, 2), (14, 4), (14, 8), (16, 16), (18, 28))
LOAD_B = ((5, 3), (6, 12), (8, 22), (6, 6), (5, 1))
OUTPUT_A, OUTPUT_B = Lengths(48), Lengths(80, 0.3, 32, 200)
FLAGS = ("--max-running-requests", "32", "--max-total-tokens", "8192", "--disable-radix-cache", "--sleep-on-idle")
POLICIES = {
    "off": {"name": "off"},
    "static γ=3": {"name": "static", "params": {"gamma": 3}},
    "table": {"name": "table", "params": {"ranges": [[1, 2, 3], [3, 6, 1], [7, None, 0]]}},
}
_ADMIN_KEY = "bench"


class ClosedLoop:
    """Clients whose number follows phases; each sends its next prompt when it has its answer.

    Attributes:
        answers: (start, end, tokens) of each, s from the beginning.
        failed: requests without an answer.
    """

    def __init__(self, url: str, phases: tuple[tuple[int, int], ...], output: Lengths, seed: int) -> None:
        self.url, self.phases, self.seed = url, phases, seed
        self.texts = rendered_prompts(None, 256, seed)
        self.new_tokens = output.draw(len(self.texts), np.random.default_rng(seed))
        self.answers: list[tuple[float, float, int]] = []
        self.failed = 0
        self._wanted, self._stopping = phases[0][1], threading.Event()
        self._began = 0.0

    def run(self) -> None:
        """The whole load; requests that still run at its end are waited for."""
        threads = [
            threading.Thread(target=self._client, args=(number,), daemon=True)
            for number in range(max(clients for _, clients in self.phases))
        ]
        self._began = time.time()
        for thread in threads:
            thread.start()
        for seconds, clients in self.phases:
            self._wanted = clients
            time.sleep(seconds)
        self._stopping.set()
        for thread in threads:
            thread.join(120)

    @property
    def rate(self) -> float:
        """Tokens per second within the phases; an answer's tokens are spread evenly over its time."""
        end = sum(seconds for seconds, _ in self.phases)
        return sum(tokens * max(0.0, min(b, end) - a) / (b - a) for a, b, tokens in self.answers) / end

    def _client(self, number: int) -> None:
        turn = 0
        while not self._stopping.is_set():
            if number >= self._wanted:
                time.sleep(0.02)
                continue
            index = (number * 7 + turn * 31 + self.seed) % len(self.texts)
            turn += 1
            began = time.time() - self._began
            tokens = self._ask(self.texts[index], self.new_tokens[index])
            if tokens is None:
                self.failed += 1
            else:
                self.answers.append((began, time.time() - self._began, tokens))

    def _ask(self, text: str, new_tokens: int) -> int | None:
        sampling = {"max_new_tokens": new_tokens, "ignore_eos": True, "temperature": 0}
        body = json.dumps({"text": text, "sampling_params": sampling}).encode()
        request = urllib.request.Request(f"{self.url}/generate", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return int(json.load(response)["meta_info"]["completion_tokens"])
        except (OSError, ValueError):
            return None


def start(folder: Path, port: int | None) -> Server:
    """A server of the demo pair that keeps a decision log in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pair, config = ensure_pair(), folder / "nightjar.yaml"
    config.write_text(f"policy: {{name: static}}\nlog: {{path: {folder / 'decisions.jsonl'}, max_mb: 1000}}\n")
    flags = ["--model-path", str(pair.target), *FLAGS, "--admin-api-key", _ADMIN_KEY, "--nightjar-config", str(config)]
    flags += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(pair.draft)]
    return Server([*flags, "--speculative-eagle-topk", "1"], folder / "server.log", port=port)


def put(server: Server, policy: dict) -> None:
    """Put ``policy`` in charge. The plan reaches the scheduler with its next requests."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {_ADMIN_KEY}"}
    request = urllib.request.Request(
        server.url + "/nightjar/policy", json.dumps(policy).encode(), headers, method="PUT"
    )
    urllib.request.urlopen(request, timeout=60).close()
    server.generate("Once upon a time", max_new_tokens=16)


def cut(log: Path, out: Path, began: float, ended: float) -> None:
    """The telemetry of a decision log between two Unix times, and all greetings."""
    with log.open("rb") as lines, gzip.GzipFile(out, "wb", mtime=0) as kept:
        for line in lines:
            entry = json.loads(line)
            kind = entry.get("frame", {}).get("type")
            if kind == "hello" or (kind == "telemetry" and began <= entry["at"] / 1e9 <= ended):
                kept.write(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the server's files")
    parser.add_argument("--port", type=int)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    measured: list[dict] = []
    windows: list[tuple[float, float]] = []
    with start(args.folder, args.port) as server:
        server.generate("Once upon a time", max_new_tokens=8)
        put(server, {"path": str(HERE / "cycle.py")})
        began = time.time()
        load = ClosedLoop(server.url, LOAD_A, OUTPUT_A, 1)
        load.run()
        ended = time.time()
        print(f"cycle: {load.rate:.1f} tokens/s, {load.failed} failed", flush=True)
        for name, policy in POLICIES.items():
            put(server, policy)
            load, at = ClosedLoop(server.url, LOAD_B, OUTPUT_B, 2), time.time()
            load.run()
            windows.append((at, time.time()))
            latency = statistics.mean(b - a for a, b, _ in load.answers)
            line = {"name": name, "policy": policy, "rate": load.rate, "latency_s": latency}
            measured.append(line | {"requests": len(load.answers), "failed": load.failed})
            print(f"{name}: {load.rate:.1f} tokens/s, {1e3 * latency:.0f} ms, {load.failed} failed", flush=True)
    cut(args.folder / "decisions.jsonl", args.out / "cycle.jsonl.gz", began, ended)
    for index, window in enumerate(windows):
        cut(args.folder / "decisions.jsonl", args.out / f"load-b-{index}.jsonl.gz", *window)
    said = provenance(flags=FLAGS, load_a=LOAD_A, load_b=LOAD_B, output_a=asdict(OUTPUT_A), output_b=asdict(OUTPUT_B))
    text = json.dumps({"provenance": said, "measured": measured}, indent=1, ensure_ascii=False)
    (args.out / "measured.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
