"""Accepted length after an off period, against that of the same requests at the same place without one."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from bench.one_scheduler import Arm, prompt_ids
from bench.provenance import provenance, settings_of
from sglang_nightjar.agent.decision import Decision
from sglang_nightjar.core.messages import Residency

GAMMA = 3
WARM = 16
#: Where the draft is in the off period: on the device and not used, or away, its memory lent to the KV cache.
PLACES = ("here", "away")
RETURN = ("iterations_until_back", "longest_at_0", "first_with_drafts")


def always(one: Any, prompts: list[list[int]], length: int) -> dict[str, list[tuple[int, int]]]:
    """(tokens so far, accepted) of every verify step at γ=3, for ``length`` tokens of each request."""
    one.forget()
    for i, ids in enumerate(prompts):
        one.add(f"r{i}", ids, length)
    one.run(itertools.repeat(GAMMA))
    return dict(one.verified)


def interrupted(one: Any, prompts: list[list[int]], off: int, steps: int, place: str) -> dict[str, Any]:
    """γ=3, then 0 for ``off`` iterations with the draft in ``place``, then 3 again.

    Returns the verify steps after that, and what the return cost. A draft that is away has its tail of the KV cache
    handed out first, so that what the requests gain lives in its memory and has to move.
    """
    from sglang_nightjar.draft import residency

    one.forget()
    moved = residency.current.tail.moved_tokens
    for i, ids in enumerate(prompts):
        one.add(f"r{i}", ids, WARM * 4 + off + 5 * steps)
    while len(one.used) < WARM:
        one.step(GAMMA)
    if place == "away":
        one.agent.selector.decide(Decision(((1, None, 0),), "policy", 1, "bench", "bench", 0, "host"))
    for _ in range(off):
        before = residency.current.machine.state
        one.step(0)
        if before is not Residency.OFFLOADED and residency.current.machine.state is Residency.OFFLOADED:
            allocator = one.scheduler.token_to_kv_pool_allocator
            allocator.free_pages = allocator.free_pages.flip(0)
    if place == "away" and residency.current.machine.state is not Residency.OFFLOADED:
        raise RuntimeError(f"the draft is {residency.current.machine.state.name} after {off} iterations")
    normal = statistics.median(one.seconds[-min(off, 50) :])
    lag = one.upkeep.lag()
    began = len(one.used)
    one.verified.clear()
    while sum(gamma > 0 for gamma in one.used[began:]) < steps:
        if not one.scheduler.running_batch.reqs:
            raise RuntimeError(
                f"the requests ended before their drafts were back for {steps} steps: {off} tokens of {len(prompts)} "
                "requests are more than the journal holds, or than they can make good while they run; "
                "try fewer --requests"
            )
        one.step(GAMMA)
    back = one.used[began:].index(GAMMA)
    found = {
        "verified": dict(one.verified),
        "lag": lag,
        "moved_rows": residency.current.tail.moved_tokens - moved,
        "iterations_until_back": back,
        # Iterations at γ=0 that also caught up, against those before that did not; and likewise the first with drafts.
        "longest_at_0": max(one.seconds[began : began + back], default=normal) / normal,
        "first_with_drafts": one.seconds[began + back] / statistics.median(one.seconds[began + back + 1 :]),
    }
    for req in one.scheduler.running_batch.reqs:
        req.to_finish = _aborted()
    one.run(itertools.repeat(GAMMA))
    return found


def _aborted() -> Any:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    return FINISH_ABORT("measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--off", type=int, nargs="+", default=[50, 500, 2000])
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--kv-tokens", type=int, default=32768)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    prompts = prompt_ids(args.requests)
    rows = []
    flags = {"max_total_tokens": args.kv_tokens, "max_running_requests": 32}
    with Arm(True, journal_mb=256, memory_mode="offload", **flags) as arm:
        whole = arm.ask(always, prompts, WARM * 4 + max(args.off) + 5 * args.steps)
        for off, place in itertools.product(args.off, PLACES):
            found = arm.ask(interrupted, prompts, off, args.steps, place)
            rows.append({"off": off, "draft": place, **compared(whole, found, args.steps)})
            print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(
        json.dumps({"provenance": provenance(settings=settings_of(args)), "rows": rows}, indent=1) + "\n"
    )
    lines = [
        "| off, tokens | draft | accepted length, never stopped | after the return | ratio | rows moved | "
        "iterations until back | longest of them ÷ median at γ=0 | first with drafts ÷ median at γ=3 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['off']} | {row['draft']} | {row['never_stopped']:.3f} | {row['after']:.3f} | {row['ratio']:.3f} | "
            f"{row['moved_rows']} | {row['iterations_until_back']} | {row['longest_at_0']:.2f} | "
            f"{row['first_with_drafts']:.2f} |"
        )
    (args.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def compared(whole: dict[str, list[tuple[int, int]]], found: dict[str, Any], steps: int) -> dict[str, Any]:
    """Mean accepted lengths (bonus token counted) over each request's next ``steps`` verify steps from the return."""
    after, before = [], []
    for name, verified in found["verified"].items():
        place, _ = verified[0]
        after += [accepted for _, accepted in verified][:steps]
        before += [accepted for length, accepted in whole[name] if length >= place][:steps]
    never_stopped, back = 1 + statistics.mean(before), 1 + statistics.mean(after)
    return {
        "never_stopped": never_stopped,
        "after": back,
        "ratio": back / never_stopped,
        "steps": [len(before), len(after)],
        **{key: found[key] for key in ("lag", "moved_rows", *RETURN)},
    }


if __name__ == "__main__":
    main()
