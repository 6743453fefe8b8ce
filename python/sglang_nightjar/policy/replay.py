"""A decision log again: another policy over the same telemetry, in the log's own time."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from sglang_nightjar.core import wire
from sglang_nightjar.core.bin_greedy import BUCKETS
from sglang_nightjar.core.gammas import Ranges, bucket_of, constant, lookup
from sglang_nightjar.core.messages import Arrivals, Hello, Message, TelemetryBatch
from sglang_nightjar.core.policy import Policy, check
from sglang_nightjar.errors import ConfigError

#: (bucket, γ) seen less often has no known cost.
_ENOUGH = 8


@dataclass
class Replay:
    """What a policy would have done.

    Attributes:
        iterations: decode iterations in the log.
        decisions: how often the policy changed its mind.
        same: iterations for which it had the γ that ran.
        shares: iterations by the γ that it wanted.
        ran: iterations by the γ that ran.
        known: iterations whose wanted (batch size bucket, γ) the log itself has seen often enough to know its cost.
        wanted_ns, ran_ns: mean ns per token over those, at the log's mean costs by bucket and γ.
        table: its last word, by scheduler.
        skipped: lines that are no log lines.
    """

    iterations: int = 0
    decisions: int = 0
    same: int = 0
    shares: dict[int, int] = field(default_factory=dict)
    ran: dict[int, int] = field(default_factory=dict)
    known: int = 0
    wanted_ns: float = 0.0
    ran_ns: float = 0.0
    table: dict[str, Ranges] = field(default_factory=dict)
    skipped: int = 0


def files_of(path: Path) -> list[Path]:
    """The log and what was rotated out of it, oldest first. Raises ConfigError if there is none."""
    older = [file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdigit()]
    found = sorted(older, key=lambda file: -int(file.suffix[1:])) + ([path] if path.is_file() else [])
    if not found:
        raise ConfigError(f"{path}: there is no such log")
    return found


def messages(files: list[Path], skipped: list[int]) -> Iterator[Message]:
    """What agents and tokenizer processes sent, in order; adds to ``skipped[0]`` what can't be read."""
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    entry = orjson.loads(line)
                    if type(entry) is not dict:
                        raise ValueError("no object")
                    if "frame" not in entry or "to" in entry:
                        continue
                    yield wire.decode(orjson.dumps(entry["frame"]))
                except (ValueError, TypeError):
                    skipped[0] += 1


def run(path: Path, policy: Policy) -> Replay:
    """Drive ``policy`` with the log at ``path``. Raises ConfigError for nonsense, and whatever the policy raises."""
    result, skipped = Replay(), [0]
    hellos: dict[str, Hello] = {}
    plans: dict[str, Ranges] = {}
    cells: defaultdict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    pairs: Counter[tuple[int, int, int]] = Counter()

    def obey(sender: str, decision: object) -> None:
        if decision is None:
            return
        if (wrong := check(decision, hellos[sender].candidates)) is not None:
            raise ConfigError(f"policy {policy.name}: {wrong}")
        plans[sender] = decision.gammas  # type: ignore[attr-defined]
        result.decisions += 1

    for message in messages(files_of(path), skipped):
        if isinstance(message, Hello):
            hellos[message.sender] = message
            plans.setdefault(message.sender, constant(message.start_gamma))
            obey(message.sender, policy.hello(message))
        elif isinstance(message, Arrivals):
            policy.arrivals(message)
        elif isinstance(message, TelemetryBatch) and message.sender in hellos:
            for record in message.records:
                wanted = lookup(plans[message.sender], record.batch_size)
                bucket = bucket_of(BUCKETS, record.batch_size)
                pairs[bucket, record.gamma, wanted] += 1
                if not record.prefill_tokens and record.committed:
                    cell = cells[bucket, record.gamma]
                    cell[0] += record.iteration_ns
                    cell[1] += record.committed
                    cell[2] += 1
                obey(message.sender, policy.telemetry(message.sender, record))
    _sum_up(result, pairs, {key: ns / tokens for key, (ns, tokens, count) in cells.items() if count >= _ENOUGH})
    result.table, result.skipped = plans, skipped[0]
    return result


def _sum_up(result: Replay, pairs: Counter[tuple[int, int, int]], costs: dict[tuple[int, int], float]) -> None:
    wanted_ns = ran_ns = 0.0
    for (bucket, ran, wanted), count in pairs.items():
        result.iterations += count
        result.same += count * (ran == wanted)
        result.shares[wanted] = result.shares.get(wanted, 0) + count
        result.ran[ran] = result.ran.get(ran, 0) + count
        if (bucket, ran) in costs and (bucket, wanted) in costs:
            result.known += count
            wanted_ns += count * costs[bucket, wanted]
            ran_ns += count * costs[bucket, ran]
    if result.known:
        result.wanted_ns, result.ran_ns = wanted_ns / result.known, ran_ns / result.known
