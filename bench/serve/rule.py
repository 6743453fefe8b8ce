"""γ of SGLang's own rule over time, which SGLang tells nobody: from its log's changes, and the requests that ran.

The rule keeps a γ for each range of batch sizes and logs that one of them changed, but not which
(``speculative/adaptive_spec_params.py`` of SGLang 0.5.17).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.serve.job import Sample
from sglang_nightjar.core.gammas import bucket_of

_CONFIG_FLAG = "--speculative-adaptive-config"
_START = re.compile(r"AdaptiveSpeculativeParams initialized: steps=(\d+)")
_CHANGE = re.compile(r"^\[([\d-]+ [\d:]+)[^]]*\] Adaptive spec params updated: steps (\d+) -> (\d+)")


@dataclass(frozen=True)
class Change:
    """One range's γ became another, at a Unix time in s (a log's times are of whole seconds)."""

    at: float
    before: int
    after: int


@dataclass
class Range:
    """Batch sizes from ``smallest`` up to the next range's: γ may be one of ``candidates``, and is ``gamma``."""

    smallest: int
    candidates: Sequence[int]
    gamma: int

    @classmethod
    def of(cls, smallest: int, candidates: Sequence[int], start: int) -> Range:
        """As SGLang begins: with the server's γ, where that is no candidate with the middle one."""
        return cls(smallest, candidates, start if start in candidates else candidates[len(candidates) // 2])

    def fits(self, change: Change) -> bool:
        return self.gamma == change.before and change.after in self.candidates


def ranges(flags: Sequence[str] = ()) -> dict[int, list[int]]:
    """Candidates by smallest batch size, of ``--speculative-adaptive`` on a server with these flags."""
    from sglang.srt.speculative.adaptive_spec_params import DEFAULT_ADAPTIVE_CONFIG

    words = [word for flag in flags for word in flag.split("=", 1)]
    config: dict[str, Any] = DEFAULT_ADAPTIVE_CONFIG
    if _CONFIG_FLAG in words:
        config = json.loads(Path(words[words.index(_CONFIG_FLAG) + 1]).read_text())
    return {int(size): sorted(entry["candidate_steps"]) for size, entry in config.items() if size.isdigit()}


def read(log: Path) -> tuple[int | None, list[Change]]:
    """(γ at the start, None if the rule never started; every change since) of a server's log."""
    start, changes = None, []
    for line in log.read_text(errors="replace").splitlines():
        if found := _START.search(line):
            start = int(found[1])
        elif found := _CHANGE.match(line):
            at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").timestamp()
            changes.append(Change(at, int(found[2]), int(found[3])))
    return start, changes


def over_time(
    log: Path, candidates: dict[int, list[int]], samples: Sequence[Sample], began: float, until: float
) -> dict[str, Any]:
    """γ at every sample of a load that began at ``began`` (Unix s) and lasted ``until`` s, in the form of
    `server_side.from_log`: series, seconds by γ while requests ran, and how often a range's γ changed.
    ``candidates`` are those of `ranges`.

    A change that fits more than one range is of the range that the running requests were in; before the load, which is
    the warm-up, of the first that it fits. Empty without the rule in the log.
    """
    start, changes = read(log)
    if start is None:
        return {}
    slots = [Range.of(size, gammas, start) for size, gammas in sorted(candidates.items())]
    seconds: list[dict[str, float]] = []
    time_by_gamma: dict[int, float] = {}
    applied = 0
    for sample, lasted in _with_lengths(samples, until):
        own = slots[bucket_of([slot.smallest for slot in slots], sample.running)]
        while applied < len(changes) and changes[applied].at <= began + sample.at:
            _apply(changes[applied], slots, own, began)
            applied += 1
        if sample.running:
            seconds.append({"at": sample.at, "gamma": own.gamma})
            time_by_gamma[own.gamma] = time_by_gamma.get(own.gamma, 0.0) + lasted
    return {
        "seconds": seconds,
        "seconds_by_gamma": {str(gamma): round(s, 1) for gamma, s in sorted(time_by_gamma.items())},
        "gamma_switches": sum(0 <= change.at - began < until for change in changes),
    }


def _apply(change: Change, slots: Iterable[Range], running_in: Range, began: float) -> None:
    fitting = [slot for slot in slots if slot.fits(change)]
    if running_in in fitting and change.at >= began:
        fitting = [running_in]
    if fitting:
        fitting[0].gamma = change.after


def _with_lengths(samples: Sequence[Sample], until: float) -> Iterator[tuple[Sample, float]]:
    """Each with the seconds until the next one, or until the end."""
    ends = [*(sample.at for sample in samples[1:]), until]
    for sample, end in zip(samples, ends, strict=False):
        yield sample, max(0.0, end - sample.at)
