"""Draft memory, switching and texts on a CUDA GPU, in eight minutes. See README.md: it has not run on a GPU yet."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.demo_server import Server
from bench.gpu import report, servers, work
from bench.gpu.phases import Phase, Record
from bench.provenance import provenance

#: What servers need to end is on top of it, within the eight minutes.
SECONDS = 465.0

MAPPING = Phase("mapping", 40, work.mapping)
LOSSLESS = Phase("lossless", 90, work.lossless)
MEMORY = Phase("memory", 30, work.memory)
STALLS = (Phase("stalls, small batch", 45, work.stalls), Phase("stalls, large batch", 45, work.stalls))
SWITCH = Phase("switch", 60, work.switch)
SURGE = Phase("surge", 75, work.surge)
_START_DEMO, _START_LARGE = 120.0, 180.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.run", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--try-on-cpu",
        action="store_true",
        help="run this bench itself on small models and the CPU engine; its figures mean nothing",
    )
    args = parser.parse_args(argv)
    if why := why_not(not args.try_on_cpu):
        print(f"bench.gpu: {why}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / ("trial.json" if args.try_on_cpu else "results.json")
    # On a CPU everything takes longer, and nobody waits for a machine.
    patience = 5.0 if args.try_on_cpu else 1.0
    record = Record(file, time.monotonic() + patience * SECONDS, patience)
    record.note("provenance", **provenance(), gpu=gpu(), trial=args.try_on_cpu)
    measure(record, not args.try_on_cpu, args.out)
    text = report.markdown(json.loads(file.read_text()))
    file.with_suffix(".md").write_text(text)
    print(text)
    return 0 if all(found.get("state", "done") == "done" for found in record.found.values()) else 1


def why_not(on_gpu: bool) -> str:
    """Why this machine can't run the bench, as a sentence; "" if it can."""
    for module in ("torch", "sglang", "transformers"):
        if importlib.util.find_spec(module) is None:
            return f"there is no {module} here; README.md says what is needed"
    import torch

    from sglang_nightjar.demo.pair import ensure_pair
    from sglang_nightjar.errors import ConfigError

    if on_gpu and not torch.cuda.is_available():
        return "torch sees no CUDA GPU here, and on anything else these figures mean nothing (--try-on-cpu: try it out)"
    if on_gpu and importlib.util.find_spec("cuda.bindings") is None:
        return "there is no cuda.bindings here (package cuda-bindings): the draft's memory can't be mapped"
    try:
        ensure_pair(say=lambda *_: None)
    except ConfigError as error:
        return f"the demo pair is not here: {error}"
    return ""


def gpu() -> dict[str, Any]:
    """Name, memory, and the CUDA version that torch was built for; empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}


def measure(record: Record, on_gpu: bool, logs: Path) -> None:
    """All phases; whatever fails, the others go on."""
    scale = servers.FULL if on_gpu else servers.TRIAL
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        folder.chmod(0o700)
        try:
            record.run(MAPPING, on_gpu)
            with started(
                record,
                "start, demo",
                [LOSSLESS],
                _START_DEMO,
                servers.plain(folder, on_gpu),
                servers.demo(folder, on_gpu),
            ) as (plain, demo):
                if demo:
                    record.run(LOSSLESS, folder, demo.url, plain.url, scale.texts, scale.text_tokens)
            rest = [MEMORY, *STALLS, SWITCH, SURGE]
            with started(record, "start, large", rest, _START_LARGE, servers.large(folder, on_gpu, scale)) as (large,):
                if large:
                    with_server(record, large, MEMORY, folder, large.url, on_gpu)
                    for phase, batch in zip(STALLS, scale.batches, strict=True):
                        with_server(record, large, phase, folder, large.url, batch, scale.cycles)
                    with_server(record, large, SWITCH, folder, large.url, servers.KEY, scale.lags, scale.profiled)
                    with_server(record, large, SURGE, folder, large.url, *scale.surge)
        finally:
            for log in folder.glob("*.log"):
                (logs / log.name).write_bytes(log.read_bytes())


@contextmanager
def started(
    record: Record, name: str, needed_by: list[Phase], seconds: float, *those: Server
) -> Iterator[tuple[Server | None, ...]]:
    """``those`` once they are ready, or as many Nones; then the phases that need them are left out."""
    began, why = time.monotonic(), ""
    left = record.left(seconds)
    try:
        for server in those:
            why = why or servers.await_ready(server, began + left - time.monotonic())
        record.note(name, state="failed" if why else "done", seconds=round(time.monotonic() - began, 1))
        if why:
            record.note(name, error=why)
            record.leave_out(needed_by, "its server did not start")
        yield tuple(None if why else server for server in those)
    finally:
        for server in those:
            end(server)


def end(server: Server) -> None:
    """Quickly: what it measured is written, and others wait for its memory."""
    if server.process.poll() is None:
        server.process.terminate()
        with contextlib.suppress(Exception):
            server.process.wait(10)
    # Its children are in its group, which is there for as long as one of them is.
    with contextlib.suppress(ProcessLookupError):
        server.kill()


def with_server(record: Record, server: Server, phase: Phase, *arguments: Any) -> None:
    """Run a phase, unless the one before it has brought the server down."""
    if why := servers.await_ready(server, record.left(10)):
        record.leave_out([phase], why)
    else:
        record.run(phase, *arguments)


if __name__ == "__main__":
    sys.exit(main())
