"""``nightjar profile``: measure what a running server's draft needs to come back after γ=0, and to leave and return."""

import argparse
import json
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sglang_nightjar.draft import phases_policy
from sglang_nightjar.observe.client import Client, ServerError

#: Iterations with drafts between two off periods.
_ON = 8
#: How long the draft may take to leave or to return.
_MOVE_SECONDS = 60.0


def add_profile(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "profile",
        help="measure on a running server what switching drafts on costs; it keeps the table for its next start",
        description="Run on the server's machine, while nobody else uses the server. The policy is changed meanwhile, "
        "so the server needs --admin-api-key.",
    )
    parser.add_argument("--url", help="the server (default: NIGHTJAR_URL, else http://127.0.0.1:30000)")
    parser.add_argument("--key", help="its admin API key (default: NIGHTJAR_API_KEY)")
    parser.add_argument("--lags", type=int, nargs="+", default=[4, 32, 128], help="tokens at γ=0")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="requests")
    parser.add_argument("--rounds", type=int, default=5, help="returns in each case")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit code."""
    client = Client.at(args.url, args.key)
    try:
        rank = client.status()["ranks"][0]
        gamma = max(rank["candidates"])
        if gamma == 0 or "catch_up" not in rank["draft"]:
            raise ServerError(f"the server at {client.url} has no draft that is switched on and off")
        rows = []
        with _own_policy(client):
            for lag in args.lags:
                for batch in args.batches:
                    rows.append(_measure(client, lag, batch, gamma, args.rounds))
                    if not args.json:
                        print(_line(rows[-1]), flush=True)
            if not rank["draft"].get("stays"):
                _send_away_and_back(client, gamma, args.rounds)
        draft = client.status()["ranks"][0]["draft"]
        catch_up, steps = draft["catch_up"], draft.get("steps", {})
    except (ServerError, IndexError, OSError) as error:
        print(f"nightjar: {error or 'the server has no scheduler that could be asked'}", file=sys.stderr)
        return 1
    fit = {"fixed_us": catch_up["fixed_us"], "us_per_token": catch_up["us_per_token"]}
    if args.json:
        print(json.dumps({"measured": rows, **fit, "steps": steps}))
    else:
        print(f"a return costs {fit['fixed_us'] / 1e3:.2f} ms and {fit['us_per_token']:.1f} µs a token of each request")
        print(_moves(steps, rank["draft"].get("stays", "")))
    return 0


@contextmanager
def _own_policy(client: Client) -> Iterator[None]:
    """Put the policy back that was in charge."""
    before = client.status()["policy"]
    try:
        yield
    finally:
        named = {"path": before["path"]} if before.get("path") else {"name": before["name"]}
        client.set_policy({**named, "params": before.get("params") or {}})


def _measure(client: Client, lag: int, batch: int, gamma: int, rounds: int) -> dict[str, Any]:
    """Let ``batch`` requests fall ``lag`` tokens behind and come back, ``rounds`` times."""
    params = {"iterations": [lag, _ON], "gammas": [0, gamma]}
    client.set_policy({"path": str(Path(phases_policy.__file__).resolve()), "params": params})
    before = client.status()["ranks"][0]["draft"]["catch_up"]["returns"]
    # A return takes iterations, too: on a CPU up to a third of the lag, or as many with a large draft.
    tokens = rounds * (2 * lag + (gamma + 1) * _ON)
    _generate(client, [f"{i}. Once upon a time" for i in range(batch)], tokens)
    catch_up = client.status()["ranks"][0]["draft"]["catch_up"]
    new = catch_up["returns"] - before
    # Requests begin and end; returns of the whole batch, or nearly, are those that count.
    seen = [entry for entry in catch_up["recent"][-new:] if entry[0] >= 0.75 * lag * batch] if new else []
    return {
        "lag": lag,
        "batch_size": batch,
        "returns": len(seen),
        "positions": statistics.median(positions for positions, _ in seen) if seen else None,
        "ms": statistics.median(us for _, us in seen) / 1e3 if seen else None,
    }


def _send_away_and_back(client: Client, gamma: int, rounds: int) -> None:
    """Let the draft's memory be given back and fetched again, ``rounds`` times, with no requests."""
    path = str(Path(phases_policy.__file__).resolve())
    for _ in range(rounds):
        for residency, candidate, there in (("host", 0, ("OFFLOADED",)), ("device", gamma, ("RESIDENT", "PARKED"))):
            params = {"iterations": [1], "gammas": [candidate], "residency": residency}
            client.set_policy({"path": path, "params": params})
            until = time.monotonic() + _MOVE_SECONDS
            while (state := client.status()["ranks"][0]["residency"]) not in there:
                if time.monotonic() > until:
                    raise ServerError(f"the draft is still {state} after {_MOVE_SECONDS:.0f} s")
                time.sleep(0.05)


def _moves(steps: dict[str, dict[str, float]], stays: str) -> str:
    if stays:
        return f"the draft's memory is never given back: {stays}"
    each = ", ".join(f"{step} {times['ms']:.1f}" for step, times in steps.items())
    return f"the draft's way out and back, ms: {each}" if each else "the draft has not been away"


def _generate(client: Client, texts: list[str], tokens: int) -> None:
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {client.key}"} if client.key else {})
    body = json.dumps({"text": texts, "sampling_params": sampling}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{client.url}/generate", body, headers), timeout=600).close()


def _line(row: dict[str, Any]) -> str:
    case = f"{row['batch_size']:3d} requests, {row['lag']:5d} tokens behind"
    if row["ms"] is None:
        return f"{case}: no return of the whole batch was seen"
    return f"{case}: {row['ms']:8.2f} ms for {row['positions']:.0f} positions (median of {row['returns']})"
