"""Records what the simulator is fitted to and checked against: one server of the demo pair, two loads.

``cycle`` runs every γ under load A, whose decision log is fitted. Under load B, of other batch sizes and other lengths,
fixed policies are measured by their clients. ``python -m bench.regret.validate`` compares.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

from bench.control_loop.arms import _ADMIN_KEY, FLAGS, start
from bench.control_loop.load import Phase, run
from bench.provenance import provenance

HERE = Path(__file__).parent
LOAD_A = ("8:1", "8:2", "10:4", "10:8", "12:16", "12:28")
LOAD_B = ("6:3", "8:12", "10:22", "8:6", "6:1")
TOKENS_A, TOKENS_B = 48, 80
POLICIES = {
    "off": {"name": "off"},
    "static γ=3": {"name": "static", "params": {"gamma": 3}},
    "table": {"name": "table", "params": {"ranges": [[1, 2, 3], [3, 6, 1], [7, None, 0]]}},
}


def put(url: str, policy: dict) -> None:
    """Put ``policy`` in charge."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {_ADMIN_KEY}"}
    request = urllib.request.Request(url + "/nightjar/policy", json.dumps(policy).encode(), headers, method="PUT")
    urllib.request.urlopen(request, timeout=60).close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the server's files")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--scale", type=float, default=1.0, help="on the seconds of all phases")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    phases_a, phases_b = ([_scaled(Phase.parse(text), args.scale) for text in load] for load in (LOAD_A, LOAD_B))
    measured = []
    with start("nightjar", args.folder) as server:
        server.generate("Once upon a time", max_new_tokens=8)
        put(server.url, {"path": str(HERE / "cycle.py")})
        server.generate("Once upon a time", max_new_tokens=64)
        began = time.time()
        run(server.url, phases_a, TOKENS_A, 1)
        ended = time.time()
        for name, policy in POLICIES.items():
            put(server.url, policy)
            server.generate("Once upon a time", max_new_tokens=8)
            load = run(server.url, phases_b, TOKENS_B, 2)
            latencies = [answer.ended - answer.began for answer in load.answers]
            measured.append(
                {
                    "policy": policy, "name": name, "rate": load.rate, "rates": load.rates(), "failed": load.failed,
                    "latency_s": statistics.mean(latencies), "requests": len(latencies),
                }
            )  # fmt: skip
            print(f"{name}: {load.rate:.1f} tokens/s, {1e3 * statistics.mean(latencies):.0f} ms", flush=True)
    cut(args.folder / "decisions.jsonl", args.out / "cycle.jsonl.gz", began, ended)
    result = {
        "provenance": provenance(flags=FLAGS, load_a=LOAD_A, load_b=LOAD_B, tokens_a=TOKENS_A, tokens_b=TOKENS_B),
        "phases_b": [[phase.seconds, phase.clients] for phase in phases_b],
        "measured": measured,
    }
    (args.out / "measured.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def cut(log: Path, out: Path, began: float, ended: float) -> None:
    """The part of a decision log between two Unix times, and all greetings."""
    with log.open("rb") as lines, gzip.GzipFile(out, "wb", mtime=0) as kept:
        for line in lines:
            entry = json.loads(line)
            kind = entry.get("frame", {}).get("type")
            if kind == "hello" or (kind == "telemetry" and began <= entry["at"] / 1e9 <= ended):
                kept.write(line)


def _scaled(phase: Phase, scale: float) -> Phase:
    return replace(phase, seconds=phase.seconds * scale)


if __name__ == "__main__":
    main()
