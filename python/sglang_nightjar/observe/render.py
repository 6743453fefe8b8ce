"""The status object as text for a terminal."""

from typing import Any


def policy_line(policy: dict[str, Any]) -> str:
    """``static 1 (gamma=3), running``."""
    name = " ".join(str(policy[key]) for key in ("name", "version") if policy.get(key))
    params = ", ".join(f"{key}={value}" for key, value in policy.get("params", {}).items())
    detail = f": {policy['detail']}" if policy.get("detail") else ""
    return f"{name}{f' ({params})' if params else ''}, {policy.get('state', 'state unknown')}{detail}"


def status(body: dict[str, Any], url: str) -> str:
    """Several lines; numbers as people say them."""
    lines = [
        f"Nightjar {body['version']} on SGLang {body['sglang_version']} at {url}",
        f"policy    {policy_line(body['policy'])}",
    ]
    if body["shadow"]:
        lines.append(f"shadow    {', '.join(body['shadow'])}")
    lines += [_rank(rank) for rank in body["ranks"]]
    if body.get("ranks_detail"):
        lines.append(f"ranks     {body['ranks_detail']}")
    lines += [f"{part:<9} {body[part]['error']}" for part in ("config", "log") if body.get(part, {}).get("error")]
    counters = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in body["counters"].items())
    return "\n".join([*lines, f"counted   {counters}"])


def _rank(rank: dict[str, Any]) -> str:
    kv, link, overhead = rank.get("kv", {}), rank.get("link", {}), rank.get("overhead_us", {})
    age = f", {rank['plan_age_s']:.1f} s old" if rank.get("plan_age_s") is not None else ""
    plan = f"plan {rank['plan_id']}{age}" if rank.get("plan_id") else "no plan"
    parts = [
        f"γ={rank.get('gamma')} at batch {rank.get('batch_size')} ({rank.get('source')}, {plan})",
        f"draft {rank.get('residency')}",
        f"KV {kv.get('used', 0):,}/{kv.get('capacity', 0):,} tokens",
        f"link {link.get('state')}",
        f"agent {overhead.get('p50', 0):.0f} µs, p99 {overhead.get('p99', 0):.0f} µs",
    ]
    return f"rank {rank.get('rank')}    " + "; ".join(parts)
