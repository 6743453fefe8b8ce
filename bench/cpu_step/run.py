"""Measure decode and verification steps of the CPU engine against their floor; see README.md.

make bench BENCH=cpu_step
"""

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import sglang_nightjar  # noqa: F401  (before sglang)
from bench.cpu_step import probe
from bench.cpu_step.floor import WARM_UP_PASSES
from bench.provenance import provenance
from sglang_nightjar.demo.pair import ensure_pair

SEED = 0
# Steps at the start of a request that are left out, as many as passes of the floor.
WARM_UP_STEPS = WARM_UP_PASSES


class Bench:
    """One engine, with or without speculation, and what to ask of it."""

    def __init__(
        self, model: str, draft: str | None, gamma: int, context: int, vocabulary: int, kv_cache_dtype: str = "auto"
    ):
        from sglang.srt.entrypoints.engine import Engine

        class ProbedEngine(Engine):
            run_scheduler_process_func = staticmethod(probe.run_scheduler_process)

        speculation: dict[str, Any] = {}
        if gamma:
            speculation = {
                "speculative_algorithm": "EAGLE3",
                "speculative_draft_model_path": draft,
                "speculative_num_steps": gamma,
                "speculative_eagle_topk": 1,
                "speculative_num_draft_tokens": gamma + 1,
            }
        self.engine = ProbedEngine(
            model_path=model,
            # Both modes in SGLang's synchronous loop, which is the one that the probe times.
            disable_overlap_schedule=True,
            random_seed=SEED,
            kv_cache_dtype=kv_cache_dtype,
            log_level="error",
            **speculation,
        )
        self.gamma, self.context, self.vocabulary = gamma, context, vocabulary
        self.folder = Path(tempfile.mkdtemp())
        self.prompts: dict[int, list[list[int]]] = {}

    def floor(self, rows: int, passes: int) -> list[float]:
        path = self.folder / "floor.json"
        self.engine.collective_rpc("write_floor", path=str(path), rows=rows, passes=passes)
        return json.loads(path.read_text())

    def steps(self, batch: int, count: int) -> list[dict[str, Any]]:
        """Decode iterations of ``batch`` requests around ``context`` tokens of context.

        The prompts are the same in every round, so that all but the first take them from the radix cache.
        """
        path = self.folder / "iterations.jsonl"
        self.engine.collective_rpc("write_iterations", path=str(path))
        # The steps measured are centred on the context asked for.
        length = self.context - (count // 2 + WARM_UP_STEPS)
        if batch not in self.prompts:
            source = random.Random(SEED + batch)
            self.prompts[batch] = [
                [source.randrange(100, self.vocabulary) for _ in range(length)] for _ in range(batch)
            ]
        new_tokens = (count + WARM_UP_STEPS + 4) * (1 if self.gamma == 0 else 2)
        sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
        self.engine.generate(input_ids=self.prompts[batch], sampling_params=sampling)
        self.engine.collective_rpc("write_iterations", path=str(path))
        iterations = [json.loads(line) for line in path.read_text().splitlines()]
        full = [i for i in iterations if i["mode"] == "DECODE" and i["batch"] == batch]
        return full[WARM_UP_STEPS : WARM_UP_STEPS + count]


def measure(bench: Bench, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """Median milliseconds of one batch size; floor and steps alternate, so that a noisy minute hits both."""
    rows = batch * (bench.gamma + 1)
    floors: list[float] = []
    iterations: list[dict[str, Any]] = []
    for _ in range(rounds):
        floors += bench.floor(rows, passes=steps)
        iterations += bench.steps(batch, steps)

    def middle(value: Any) -> float:
        return round(median(value(i) for i in iterations) * 1e3, 3)

    row = {"batch": batch, "gamma": bench.gamma, "rows": rows, "floor": round(median(floors) * 1e3, 3)}
    row["forward"] = middle(lambda i: i["forward"])
    row["iteration"] = middle(lambda i: i["iteration"])
    if bench.gamma:
        row["draft"] = middle(lambda i: i["draft"] + i["draft_extend"])
        row["verify"] = middle(lambda i: i["verify"])
    # A step is the iteration without what only the draft does.
    row["step"] = middle(lambda i: i["iteration"] - i.get("draft", 0.0) - i.get("draft_extend", 0.0))
    row["forward_to_floor"] = round(row["forward"] / row["floor"], 3)
    row["step_to_floor"] = round(row["step"] / row["floor"], 3)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, milliseconds; "rest" is what the step takes beside the target's forward pass."""
    lines = [
        "| step | batch | rows | floor | forward pass | step | rest | draft | forward : floor | step : floor |",
        "| --- |" + " --- |" * 9,
    ]
    for r in rows:
        name = f"verify, γ={r['gamma']}" if r["gamma"] else "decode"
        times = (r["floor"], r["forward"], r["step"], r["step"] - r["forward"], r.get("draft", 0.0))
        ratios = (r["forward_to_floor"], r["step_to_floor"])
        figures = [*(f"{ms:.1f}" for ms in times), *(f"{ratio:.2f}" for ratio in ratios)]
        lines.append(f"| {name} | {r['batch']} | {r['rows']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def save(path: Path, rows: list[dict[str, Any]], origin: dict[str, Any]) -> None:
    """Write ``rows`` with where they come from; rows of other steps that the file has already stay."""
    known = json.loads(path.read_text()) if path.exists() else []
    new = {(row["gamma"], row["batch"]): {**row, "provenance": origin} for row in rows}
    kept = [row for row in known if (row["gamma"], row["batch"]) not in new]
    ordered = sorted([*kept, *new.values()], key=lambda row: (row["gamma"], row["batch"]))
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the demo pair")
    parser.add_argument("--draft", help="needed with --model and --verify-batches")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--decode-batches", type=int, nargs="*", default=[1, 4, 16, 32])
    parser.add_argument("--verify-batches", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "results.json")
    arguments = parser.parse_args()
    if arguments.model is None:
        pair = ensure_pair()
        arguments.model, arguments.draft = str(pair.target), str(pair.draft)
    # Plain SGLang around the engine that is measured.
    os.environ["NIGHTJAR_POLICY"] = "off"
    vocabulary = json.loads((Path(arguments.model) / "config.json").read_text())["vocab_size"]
    rows = []
    for gamma, batches in ((0, arguments.decode_batches), (arguments.gamma, arguments.verify_batches)):
        if not batches:
            continue
        bench = Bench(arguments.model, arguments.draft, gamma, arguments.context, vocabulary, arguments.kv_cache_dtype)
        for batch in batches:
            rows.append(measure(bench, batch, arguments.rounds, arguments.steps))
            print(json.dumps(rows[-1]), flush=True)
        bench.engine.shutdown()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save(
        arguments.output,
        rows,
        provenance(seed=SEED, context=arguments.context, kv_cache_dtype=arguments.kv_cache_dtype),
    )
    print(table(rows))


if __name__ == "__main__":
    main()
