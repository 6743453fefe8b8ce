"""What a step is made of, by itself: products in tiles and in vectors, and attention; see README.md.

python -m bench.cpu_step.parts
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from bench.cpu_step.stack import DIM, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS
from sglang_nightjar.cpu import kernels

# Gate and up lie together.
GATE_UP = 2 * INNER
ROWS = (1, 4, 8, 16, 32, 64, 128)
# Requests, and new positions of each: decoding, and verifying chains.
BATCHES = ((1, 1), (8, 1), (32, 1), (8, 4), (16, 4))


def milliseconds(runs: int, *passes: Callable[[], None]) -> list[float]:
    """The median time of each of ``passes``, which take turns."""
    took: list[list[float]] = [[] for _ in passes]
    for run in range(runs + 1):
        for times, one in zip(took, passes, strict=True):
            start = time.perf_counter()
            one()
            if run:
                times.append(1e3 * (time.perf_counter() - start))
    return [median(times) for times in took]


def multiply(x: torch.Tensor, weights: list[torch.Tensor]) -> None:
    for weight in weights:
        torch.ops.nightjar.packed_linear(x, weight, GATE_UP, None)


def products(runs: int) -> None:
    """All layers' gate and up, one layer after the other, so that weights come from memory as in a step."""
    weights = [torch.randn(GATE_UP, HIDDEN) for _ in range(LAYERS)]
    in_vectors = [torch.ops.nightjar.pack_linear_weight(weight) for weight in weights]
    in_tiles = [torch.ops.nightjar.pack_tiles(weight, True) for weight in weights]
    print("| rows | in vectors | in tiles | tiles : vectors |\n| --- | --- | --- | --- |")
    for rows in ROWS:
        x = torch.randn(rows, HIDDEN)
        vectors, tiles = milliseconds(runs, partial(multiply, x, in_vectors), partial(multiply, x, in_tiles))
        print(f"| {rows} | {vectors:.1f} ms | {tiles:.1f} ms | {tiles / vectors:.2f} |", flush=True)


def attend(query: torch.Tensor, caches: list[torch.Tensor], requests: int, length: int) -> None:
    """Every request's slots follow each other; the rows of ``query`` are the last positions of all."""
    slots = torch.arange(requests * length, dtype=torch.int32).view(requests, length)
    lengths = torch.full((requests,), length)
    new, output = torch.full_like(lengths, len(query) // requests), torch.empty_like(query)
    for keys, values in caches:
        torch.ops.nightjar.paged_attention(
            query, keys, values, output, slots, torch.arange(requests), lengths, new, DIM**-0.5, 0.0, 0
        )


def attention(runs: int, context: int) -> None:
    """All layers' attention over ``context`` positions of each request, and the new ones."""
    print("| requests | new positions | attention | read |\n| --- | --- | --- | --- |")
    for requests, new in BATCHES:
        length = context + new
        caches = [torch.randn(2, requests * length, KV_HEADS, DIM) for _ in range(LAYERS)]
        query = torch.randn(requests * new, HEADS, DIM)
        (took,) = milliseconds(runs, partial(attend, query, caches, requests, length))
        size = sum(cache.nbytes for cache in caches)
        print(f"| {requests} | {new} | {took:.1f} ms | {size / 1e6 / took:.1f} GB/s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args()
    kernels.load()
    torch.manual_seed(0)
    if kernels.use_tiles(HIDDEN):
        products(args.runs)
    else:
        print("no products in tiles: this machine has no AMX, or NIGHTJAR_CPU_KERNELS leaves it out")
    attention(args.runs, args.context)


if __name__ == "__main__":
    main()
