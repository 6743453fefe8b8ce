"""Accepted length of the demo pair on a real server, by category of prompt, greedy and sampled."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from bench import demo_server
from bench.provenance import provenance, settings_of
from sglang_nightjar.demo.corpus import held_out, render
from sglang_nightjar.demo.recipe import read_prompts


def prompts_by_category(file: Path | None, own: int) -> dict[str, list[str]]:
    """Chat-template texts: the held-out part of our own prompts, and the first turns of a JSONL file by category."""
    groups = {"our own, held out": [render(c) for c in held_out(own)]}
    for category, conversation in read_prompts(file) if file else ():
        groups.setdefault(category, []).append(render(conversation))
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gamma", type=int, default=3)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--held-out", type=int, default=96, help="how many of our own prompts")
    parser.add_argument("--prompts", type=Path, help='JSON lines {"category": ..., "turns": [...]}')
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    groups = prompts_by_category(args.prompts, args.held_out)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    with tempfile.TemporaryDirectory() as logs, demo_server.start(args.gamma, Path(logs) / "server.log") as server:
        for category, texts in groups.items():
            for temperature in args.temperatures:
                metas = demo_server.generate(server.url, texts, args.new_tokens, temperature, ignore_eos=False)
                found.setdefault(category, {})[str(temperature)] = demo_server.decoded(metas)
            print(
                f"{category}: " + ", ".join(f"{length(c):.2f} at {t}" for t, c in found[category].items()), flush=True
            )
    write(args, found)


def length(counted: tuple[int, int]) -> float:
    """Committed tokens a verify step, the bonus token counted (see `demo_server.decoded`)."""
    tokens, steps = counted
    return tokens / steps


def write(args: argparse.Namespace, found: dict[str, dict[str, tuple[int, int]]]) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"provenance": provenance(settings=settings_of(args)), "decoded_tokens_and_verify_steps": found}
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| prompts | " + " | ".join(f"temperature {t}" for t in args.temperatures) + " |"]
    lines.append("| --- |" + " --- |" * len(args.temperatures))
    for category, by_temperature in found.items():
        lines.append(f"| {category} | " + " | ".join(f"{length(c):.2f}" for c in by_temperature.values()) + " |")
    others = [c for name, c in found.items() if name != "our own, held out"]
    if others:
        sums = [tuple(map(sum, zip(*(c[str(t)] for c in others), strict=True))) for t in args.temperatures]
        lines.append("| all of the file | " + " | ".join(f"{length(s):.2f}" for s in sums) + " |")
    (args.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
