"""The draft's memory changing hands on one running server: what is freed, gained, stalled and helped.

The bench is the policy process: it says when the draft goes and comes. See README.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from bench import demo_server
from bench.demo_server import Server
from bench.provenance import provenance
from bench.residency.engine import Engine, Router
from bench.residency.larger_draft import widen
from bench.residency.report import table
from bench.residency.standalone_draft import cut
from sglang_nightjar.demo.pair import ensure_pair

#: Requests that decode while the draft goes and comes.
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool-tokens", type=int, default=1536, help="KV cache with the draft on the device")
    parser.add_argument("--wider", type=int, default=1, help="MLP of the draft so many times as wide (larger_draft.py)")
    parser.add_argument(
        "--standalone", type=int, default=0, metavar="LAYERS", help="a draft of so many layers (standalone_draft.py)"
    )
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
            server = stack.enter_context(start(args.pool_tokens, args.wider, args.standalone, folder))
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
    name = "results" if args.wider == 1 else f"wider-{args.wider}"
    name = f"standalone-{args.standalone}" if args.standalone else name
    (args.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def start(pool_tokens: int, wider: int, standalone: int, folder: Path) -> Server:
    pair = ensure_pair()
    algorithm = "STANDALONE" if standalone else "EAGLE3"
    if standalone:
        draft = cut(pair.target, standalone, folder / "draft")
    else:
        draft = pair.draft if wider == 1 else widen(pair.draft, wider, folder / "draft")
    flags = ["--model-path", str(pair.target), "--max-total-tokens", str(pool_tokens)]
    flags += ["--speculative-algorithm", algorithm, "--speculative-draft-model-path", str(draft)]
    flags += ["--nightjar-policy-endpoint", f"ipc://{folder / 'policy'}"]
    return Server(flags, folder / "log")


def measure(folder: Path, url: str, pid: int, args: argparse.Namespace) -> dict[str, Any]:
    process = psutil.Process(pid)
    with Router(folder / "policy", repeat_s=0.05) as router:
        hello = router.wait_for_hello(60)
        engine = Engine(router, url)
        engine.go("device")
        demo_server.generate(url, ["Once upon a time"] * BATCH, 32, 0.0, True)
        result = {
            "predicted": {"freed_bytes": hello.draft_bytes, "tokens": hello.kv_tokens_without_draft - hello.kv_tokens},
            "requests": args.requests,
            "memory": engine.memory(lambda: process.memory_info().rss),
            # As long as fits eight times, with a quarter to spare: the draft's return waits for room.
            "stalls": engine.cycles(args.cycles, BATCH, hello.kv_tokens * 3 // 4 // BATCH - 24, 3),
            "surges": engine.surges(args.repetitions, args.requests, args.new_tokens),
        }
        engine.go("device")
    return result


if __name__ == "__main__":
    main()
