"""The results of bench/gpu as Markdown; nothing here runs anything. What a phase did not find is left out."""

from __future__ import annotations

import statistics
from typing import Any

from bench.residency.report import stall_table, surge_table

#: Both servers compute in half precision: a text may miss the target's best token by as much as the plain server's.
_SLACK = 2.0


def markdown(found: dict[str, Any]) -> str:
    """All that ``found`` has to say."""
    origin = found.get("provenance", {})
    device = origin.get("gpu") or {}
    lines = ["# bench/gpu", ""]
    if origin.get("trial"):
        lines += ["**A trial of the bench itself on a CPU with small models. The figures mean nothing.**", ""]
    lines += [
        f"{device.get('name', 'no GPU')}, commit {origin.get('commit', '?')}, {origin.get('time', '?')}, "
        f"torch {origin.get('versions', {}).get('torch', '?')}.",
        "",
        "| phase | | seconds |",
        "| --- | --- | --- |",
    ]
    for name, one in found.items():
        if "state" in one:
            why = f": {one['error'].strip().splitlines()[-1]}" if one.get("error") else ""
            lines.append(f"| {name} | {one['state']}{why} | {one.get('seconds', '')} |")
    for write in (_mapping, _lossless, _memory, _stalls, _switch, _surge):
        if part := write(found):
            lines += ["", *part]
    return "\n".join(lines) + "\n"


def _mapping(found: dict[str, Any]) -> list[str]:
    one = found.get("mapping", {})
    if "ms" not in one:
        return []
    lines = [
        "| elastic memory, median of 5 | map | first write | copy from the host | unmap |",
        "| --- |" + " --- |" * 4,
    ]
    for mib in sorted({row["mib"] for row in one["ms"]}):
        rows = [row for row in one["ms"] if row["mib"] == mib]
        cells = (
            statistics.median(row[what] for row in rows) for what in ("map", "first_write", "copy_from_host", "unmap")
        )
        lines.append(f"| {mib} MiB | " + " | ".join(f"{cell:.2f} ms" for cell in cells) + " |")
    if "graph_outlives_unmapping" in one:
        lines += [
            "",
            f"A CUDA graph over memory that was unmapped and mapped again: "
            f"{'right' if one['graph_outlives_unmapping'] else '**wrong**'} values.",
        ]
    return lines


def _lossless(found: dict[str, Any]) -> list[str]:
    one = found.get("lossless", {})
    if "misses" not in one:
        return []
    ours, plain = max(one["misses"]), max(one["plain_misses"])
    verdict = "lossless" if ours <= _SLACK * plain or ours == 0 else "**not shown to be lossless**"
    counters = one["counters"]
    names = {"offloads": "offloads", "reloads": "reloads", "moved_tokens": "rows moved"}
    names |= {"residency_failures": "failures", "errors": "errors"}
    happened = ", ".join(f"{counters[name]} {words}" for name, words in names.items())
    return [
        f"Texts: {one['same_as_plain']} of {one['texts']} are the plain server's. Worst token below the target's best: "
        f"{ours:.4f} logits, the plain server's {plain:.4f}: {verdict}. Meanwhile {happened}."
    ]


def _memory(found: dict[str, Any]) -> list[str]:
    one = found.get("memory", {})
    if "found" not in one:
        return []
    settings = ", ".join(f"{name} {value}" for name, value in one["settings"].items())
    return [
        f"Pair of the 8B shape: {settings}.",
        "",
        f"Draft: {one['found']['draft_bytes'] / 1e6:.1f} MB; without it {one['found']['tokens']} tokens more than "
        f"{one['kv_tokens']}, predicted {one['predicted_tokens']}. Memory in use on the GPU falls by "
        f"{one['found']['freed_resident_bytes'] / 1e6:.1f} MB: the cache has grown into the rest.",
    ]


def _stalls(found: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for one in found.values():
        if "batch" in one:
            graphs = ", ".join(f"{gamma} {share:.0%}" for gamma, share in sorted(one["share_from_graphs"].items()))
            lines += [*stall_table(one["iterations"], one["batch"]), "", f"Iterations from CUDA graphs: {graphs}.", ""]
    return lines[:-1]


def _switch(found: dict[str, Any]) -> list[str]:
    profile = found.get("switch", {}).get("profile")
    if not profile:
        return []
    lines = ["| C_switch | requests | positions | returns | median |", "| --- | --- | --- | --- | --- |"]
    for row in profile["measured"]:
        cost = "not seen" if row["ms"] is None else f"{row['ms']:.2f} ms"
        lines.append(f"| {row['lag']} tokens | {row['batch_size']} | {row['positions']} | {row['returns']} | {cost} |")
    line = f"Fitted: {profile['fixed_us']:.0f} µs and {profile['us_per_token']:.2f} µs a position."
    steps = profile.get("steps", {})
    lines += (
        ["", line, "", "| step, idle | ms | of it on the scheduler's thread |", "| --- | --- | --- |"]
        if steps
        else ["", line]
    )
    return lines + [f"| {step} | {times['ms']:.1f} | {times['busy_ms']:.1f} |" for step, times in steps.items()]


def _surge(found: dict[str, Any]) -> list[str]:
    one = found.get("surge", {})
    return surge_table(one["runs"], one["extra_tokens"], one["requests"]) if "runs" in one else []
