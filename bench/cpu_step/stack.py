"""One pass through the demo target's layers, with random weights: this checkout's kernels, or against another's.

python -m bench.cpu_step.stack [--against DIR] [--weights float32|bfloat16]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from sglang_nightjar.cpu import kernels, packed_linear, threads

# SmolLM2-135M: layers, hidden size, inner size of the MLP; query heads, key heads, their size.
LAYERS, HIDDEN, INNER = 30, 576, 1536
HEADS, KV_HEADS, DIM = 9, 3, 64
# Requests, and new positions of each: decoding, and verifying chains.
BATCHES = ((1, 1), (1, 4), (2, 4), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (12, 1), (12, 2), (24, 1), (12, 4))
# The threads of a process that has answered look for work for some milliseconds before they let go of their cores.
SETTLE_S = 0.02


class Stack:
    """The layers, and a cache in which every request has ``context`` positions and room for a chain."""

    def __init__(self, context: int, weights: torch.dtype):
        kernels.load()
        most = max(requests for requests, _ in BATCHES)
        length = context + max(new for _, new in BATCHES)
        cache = torch.randn(LAYERS, 2, most * length, KV_HEADS, DIM) * 0.1
        tensors = []
        for keys, values in cache:
            shapes = ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), (HIDDEN, HEADS * DIM), (2 * INNER, HIDDEN), (HIDDEN, INNER)
            qkv, o, gate_up, down = (_packed(*shape, weights) for shape in shapes)
            tensors += [torch.ones(HIDDEN), qkv, o, torch.ones(HIDDEN), gate_up, down, keys, values]
        angles = torch.outer(torch.arange(length).float(), 1e-4 ** (torch.arange(DIM // 2) / (DIM // 2)))
        cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
        self._handle = torch.ops.nightjar.llama_create(tensors, cos_sin, HEADS, KV_HEADS, DIM, DIM**-0.5, 1e-5, True)
        self._slots = torch.arange(most * length, dtype=torch.int32).view(most, length)
        self._context = context

    def milliseconds(self, requests: int, new: int) -> float:
        """How long one pass takes: ``new`` positions of each of ``requests`` requests."""
        residual = torch.randn(requests * new, HIDDEN) * 0.1
        positions = self._context + torch.arange(new)
        slots = self._slots[:requests, positions].flatten().long()
        lengths, news = torch.full((requests,), self._context + new), torch.full((requests,), new)
        start = time.perf_counter()
        torch.ops.nightjar.llama_forward(
            self._handle,
            residual,
            None,
            positions.repeat(requests),
            slots,
            self._slots,
            torch.arange(requests),
            lengths,
            news,
            [],
            None,
        )
        return 1e3 * (time.perf_counter() - start)


def _packed(out: int, width: int, kind: torch.dtype) -> torch.Tensor:
    return packed_linear.Packed((torch.randn(out, width) * 0.02).to(kind).float()).weight


class Checkout:
    """A stack in a process of its own, with the kernels of the environment that ``python`` belongs to."""

    def __init__(self, python: str, context: int, weights: str):
        options = ["--answer", "--context", str(context), "--weights", weights]
        command = [python, str(Path(__file__).resolve()), *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def milliseconds(self, requests: int, new: int) -> float:
        assert self._process.stdin and self._process.stdout
        time.sleep(SETTLE_S)
        print(requests, new, file=self._process.stdin, flush=True)
        if not (answer := self._process.stdout.readline()):
            raise SystemExit(
                f"bench.cpu_step.stack: {self._process.args[0]} ended without an answer; its output is above"
            )
        return float(answer)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def answer(context: int, weights: torch.dtype) -> None:
    """Times passes of ``requests new``, a line each, until there is no more input."""
    stack = Stack(context, weights)
    for line in sys.stdin:
        print(stack.milliseconds(*map(int, line.split())), flush=True)


def other_python(checkout: Path) -> str:
    """The interpreter of another checkout's environment."""
    python = checkout / ".venv" / "bin" / "python"
    if not python.exists():
        raise SystemExit(
            f"bench.cpu_step.stack: --against {checkout}: there is no {python}; run `make test` there once"
        )
    return str(python)


def spread(times: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{median(times):.1f} ({min(times):.1f} to {max(times):.1f})"


def compare(pythons: list[str], context: int, weights: str, rounds: int) -> None:
    """Prints a table; checkouts take turns pass by pass, and ratios are those of neighbours."""
    checkouts = [Checkout(python, context, weights) for python in pythons]
    both = len(checkouts) > 1
    print("| requests | new positions | rows | this one, ms |" + (" the other, ms | ratio |" if both else ""))
    print("| --- | --- | --- | --- |" + (" --- | --- |" if both else ""))
    try:
        for requests, new in BATCHES:
            turns = [[c.milliseconds(requests, new) for c in checkouts] for _ in range(rounds + 1)][1:]
            cells = [str(requests), str(new), str(requests * new), *map(spread, map(list, zip(*turns, strict=True)))]
            if both:
                cells.append(f"{median(this / other for this, other in turns):.2f}")
            print("| " + " | ".join(cells) + " |", flush=True)
    finally:
        for checkout in checkouts:
            checkout.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="another checkout, with its .venv, to take turns with"
    )
    parser.add_argument("--context", type=int, default=256, help="positions that each request has (default: 256)")
    parser.add_argument(
        "--weights", choices=("float32", "bfloat16"), default="float32", help="what holds them exactly (float32)"
    )
    parser.add_argument("--rounds", type=int, default=20, help="passes of each batch (default: 20)")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    # Threads and huge pages as a server has them; the processes that compute read this when they start.
    threads.configure()
    if args.answer:
        answer(args.context, getattr(torch, args.weights))
    else:
        pythons = [sys.executable] + ([other_python(args.against)] if args.against else [])
        compare(pythons, args.context, args.weights, args.rounds)


if __name__ == "__main__":
    main()
