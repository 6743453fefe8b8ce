"""The draft's memory changing hands on one running server: what is freed, gained, stalled and helped.

The bench is the policy process: it says when the draft goes and comes. See README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from helpers.router import Router, make_plan
from helpers.serving import Server

from bench import demo_server
from bench.provenance import provenance
from bench.residency.report import stalls, table
from sglang_nightjar.core.messages import Residency
from sglang_nightjar.demo.pair import ensure_pair

#: An arm is where the draft lives while γ=0.
ARMS = ("device", "host")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool-tokens", type=int, default=1536, help="KV cache with the draft on the device")
    parser.add_argument("--cycles", type=int, default=8, help="times that the draft goes and comes while 8 decode")
    parser.add_argument("--repetitions", type=int, default=4, help="surges for each arm")
    parser.add_argument("--requests", type=int, default=48, help="of a surge")
    parser.add_argument("--new-tokens", type=int, default=80, help="of each request of a surge")
    parser.add_argument("--start-only", metavar="DIR", help="start the server with its socket in DIR, and wait")
    parser.add_argument("--running", nargs=3, metavar=("DIR", "URL", "PID"), help="measure a server that runs already")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(args.start_only or stack.enter_context(tempfile.TemporaryDirectory()))
        if args.running:
            folder, url, pid = Path(args.running[0]), args.running[1], int(args.running[2])
        else:
            folder.chmod(0o700)
            server = stack.enter_context(start(args.pool_tokens, folder))
            url, pid = server.url, max(server.children(), key=lambda p: psutil.Process(p).memory_info().rss)
        if args.start_only:
            print(f"--running {folder} {url} {pid}", flush=True)
            stop = folder / "stop"
            while not stop.exists():
                time.sleep(0.5)
            return
        result = measure(folder, url, pid, args)
    result["provenance"] = provenance(settings={name: str(value) for name, value in vars(args).items()})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def start(pool_tokens: int, folder: Path) -> Server:
    pair = ensure_pair()
    flags = ["--model-path", str(pair.target), "--max-total-tokens", str(pool_tokens)]
    flags += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(pair.draft)]
    flags += ["--nightjar-policy-endpoint", f"ipc://{folder / 'policy'}"]
    return Server(flags, folder / "log")


def measure(folder: Path, url: str, pid: int, args: argparse.Namespace) -> dict[str, Any]:
    with Router(folder / "policy", repeat_s=0.05) as router:
        hello = router.wait_for_hello(60)
        engine = Engine(router, url, pid)
        engine.go("device")
        demo_server.generate(url, ["Once upon a time"] * 8, 32, 0.0, True)
        result = {
            "predicted": {"freed_bytes": hello.draft_bytes, "tokens": hello.kv_tokens_without_draft - hello.kv_tokens},
            "memory": engine.memory(),
            "stalls": engine.cycles(args.cycles),
            "surges": engine.surges(args),
        }
        engine.go("device")
    return result


class Engine:
    """One server in the hands of the bench."""

    def __init__(self, router: Router, url: str, pid: int):
        self.router, self.url, self.process = router, url, psutil.Process(pid)

    def status(self) -> dict[str, Any]:
        import urllib.request

        with urllib.request.urlopen(f"{self.url}/server_info", timeout=60) as response:
            return json.load(response)["internal_states"][0]["nightjar"]

    def go(self, residency: str) -> dict[str, Any]:
        """γ=0 and the draft there; the status once it is."""
        self.router.repeat(make_plan(0, residency=residency))
        wanted = "OFFLOADED" if residency == "host" else "PARKED"
        deadline = time.monotonic() + 120
        while (seen := self.status())["residency"] != wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the draft is {seen['residency']}, not {wanted}")
            time.sleep(0.02)
        return seen

    def memory(self) -> dict[str, Any]:
        """Idle: resident bytes of the scheduler, and the capacity, with the draft and without."""
        here = self.go("device")
        held = self.process.memory_info().rss
        away = self.go("host")
        freed = held - self.process.memory_info().rss
        self.go("device")
        return {
            "draft_bytes": here["draft"]["device_bytes"],
            "freed_resident_bytes": freed,
            "tokens": away["kv"]["capacity"] - here["kv"]["capacity"],
        }

    def cycles(self, count: int) -> list[dict[str, Any]]:
        """Eight requests decode; the draft goes and comes meanwhile. Each record of an iteration without a prefill."""
        length = 40 + 24 * count
        before = len(self.router.records())
        texts = [f"Tell me about the number {i}." for i in range(8)]
        sender = threading.Thread(target=demo_server.generate, args=(self.url, texts, length, 0.0, True), daemon=True)
        sender.start()
        time.sleep(1.0)
        while sender.is_alive():
            for residency, rest in (("host", Residency.OFFLOADED), ("device", Residency.PARKED)):
                self.router.repeat(make_plan(0, residency=residency))
                # By telemetry: asking for the status would itself take milliseconds from the iterations.
                while sender.is_alive() and self.router.records()[-1].residency != rest:
                    time.sleep(0.05)
                time.sleep(0.5)
        sender.join()
        time.sleep(0.3)
        return stalls(self.router.records()[before:], batch_size=8)

    def surges(self, args: argparse.Namespace) -> list[dict[str, Any]]:
        """The same requests at once, with the draft here and away in turn."""
        texts = [f"Write a story about {i} birds." for i in range(args.requests)]
        runs = []
        for repetition in range(args.repetitions):
            for arm in ARMS if repetition % 2 else reversed(ARMS):
                status = self.go(arm)
                before = status["counters"]["retractions"]
                first = len(self.router.records())
                outcome = demo_server.timed(self.url, texts, args.new_tokens)
                retractions = self.status()["counters"]["retractions"] - before
                runs.append(
                    {
                        "arm": arm,
                        "rate": outcome.rate,
                        "seconds": outcome.seconds,
                        "retractions": retractions,
                        "capacity": status["kv"]["capacity"],
                        "mean_batch": statistics.mean(one.batch_size for one in self.router.records()[first:]),
                    }
                )
        return runs


if __name__ == "__main__":
    main()
