"""What γ=0 costs a user: a server with a draft that a policy process keeps at γ=0, against one without a draft.

Beside the scheduler there is what `bench.off_path.run` leaves out: HTTP, streams, telemetry and the policy process,
which want the same cores; which of their threads takes how much CPU is shown, too. Two servers of one kind differ as
well, by where their memory lies: ``--servers 3`` shows by how much.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "test"))

from helpers.serving import Server

from bench.off_path import thread_cpu
from bench.off_path.run import ARMS, quartiles
from bench.off_path.streams import pieces, short_prompts
from bench.provenance import provenance, settings_of
from sglang_nightjar.demo.pair import ensure_pair

#: Of each answer's pieces, the part at the beginning that does not count: the prefill, and a batch that fills up.
_WARM_UP = 0.2


def flags(name: str, folder: Path, kv_tokens: int, gamma: int = 0) -> list[str]:
    """The launcher's, of one of `ARMS`; one with a draft stays at ``gamma``."""
    pair = ensure_pair()
    common = ["--model-path", str(pair.target), "--sleep-on-idle", "--max-total-tokens", str(kv_tokens)]
    if name == "none":
        return [*common, "--nightjar-policy", "off"]
    config = folder / f"gamma-{gamma}.json"
    config.write_text(json.dumps({"policy": {"name": "static", "params": {"gamma": gamma}}}))
    draft = ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(pair.draft)]
    return [*common, *draft, "--nightjar-config", str(config)]


def ms_per_iteration(url: str, texts: list[str], new_tokens: int) -> float:
    """Stream ``texts`` as one batch with forced length; milliseconds between two pieces of the same answer."""
    times = [time.perf_counter() for _ in pieces(url, texts, new_tokens)]
    counted = times[int(_WARM_UP * len(times)) :]
    return 1e3 * (counted[-1] - counted[0]) * len(texts) / (len(counted) - 1)


def mean_of_kind(by_server: dict[str, list[float]], kind: str) -> list[float]:
    """Of each repetition, the mean of the servers of one of `ARMS`."""
    return [statistics.fmean(times) for times in zip(*(by_server[n] for n in names(by_server, kind)), strict=True)]


def names(by_server: Iterable[str], kind: str) -> list[str]:
    """The servers of one of `ARMS`: ``none #1``, ``none #2``."""
    return [name for name in by_server if kind_of(name) == kind]


def kind_of(name: str) -> str:
    """That of `ARMS` which a server's name begins with."""
    return name.partition(" #")[0]


def ratio(first: list[float], second: list[float]) -> str:
    """Of neighbours, the second to the first: median and quartiles."""
    low, middle, high = quartiles([b / a for a, b in zip(first, second, strict=True)])
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def table_of_servers(cells: dict[str, dict[str, list[float]]]) -> str:
    """How much longer each server takes than the first one without a draft, by streams."""
    servers = list(next(iter(cells.values())))
    first = names(servers, ARMS[0])[0]
    lines = ["| streams | " + " | ".join(servers) + " |", "| --- |" + " --- |" * len(servers)]
    for streams, by_server in cells.items():
        shown = [ratio(by_server[first], by_server[server]) for server in servers]
        lines.append(f"| {streams} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def table(cells: dict[str, dict[str, list[float]]]) -> str:
    """Medians over the repetitions, and the median of the ratios of neighbours."""
    lines = ["| streams | no speculation, ms | γ=0, ms | ratio, median (quartiles) |", "| --- | --- | --- | --- |"]
    for streams, by_server in cells.items():
        by_kind = [mean_of_kind(by_server, kind) for kind in ARMS]
        none, ours = map(statistics.median, by_kind)
        lines.append(f"| {streams} | {none:.2f} | {ours:.2f} | {ratio(*by_kind)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 24])
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--servers", type=int, default=1, help="of each kind (1; each takes 3 GB)")
    parser.add_argument("--kv-tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    draw = random.Random(args.seed)
    prompts = short_prompts(256)
    cells: dict[str, dict[str, list[float]]] = {}
    cpu: dict[str, dict[str, list[Counter[str]]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for number, kind in itertools.product(range(1, args.servers + 1), ARMS):
            name = f"{kind} #{number}"
            server = Server(flags(kind, folder, args.kv_tokens), folder / f"{name}.log")
            servers[name] = stack.enter_context(server)
        for server in servers.values():
            ms_per_iteration(server.url, prompts[:4], 32)
        for streams, repetition in itertools.product(args.streams, range(args.repetitions)):
            cells.setdefault(str(streams), {name: [] for name in servers})
            cpu.setdefault(str(streams), {kind: [] for kind in ARMS})
            texts = [prompts[(repetition * streams + i) % len(prompts)] for i in range(streams)]
            for name in draw.sample(list(servers), len(servers)):
                before = thread_cpu.cpu_ms(servers[name])
                found = ms_per_iteration(servers[name].url, texts, args.new_tokens)
                cells[str(streams)][name].append(found)
                taken = thread_cpu.cpu_ms(servers[name]) - before
                by_step = Counter({thread: ms / args.new_tokens for thread, ms in taken.items()})
                cpu[str(streams)][kind_of(name)].append(by_step)
            print(f"{streams} streams, repetition {repetition + 1} of {args.repetitions}", file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"provenance": provenance(settings=settings_of(args)), "ms_per_iteration": cells, "cpu_ms_per_step": cpu}
    (args.out / "served.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(cells) + ("\n" + table_of_servers(cells) if args.servers > 1 else "")
    for streams, by_kind in cpu.items():
        text += f"\n{streams} streams:\n\n{thread_cpu.table(by_kind)}"
    (args.out / "served.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
