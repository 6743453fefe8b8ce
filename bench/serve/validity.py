"""Is a run worth anything? Each fault is a sentence, with whose fault it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.serve.job import Answer, Job, Outcome
from bench.serve.measures import percentile

#: A request sent this late (p99), or an event loop that stood still for so long, measured the generator.
LATE_S = 0.1
STILL_S = 0.5
#: Of one core; more than this the generator took away from the server.
GENERATOR_SHARE = 0.25
#: Of all cores; more than this, and what else the machine did was measured.
OTHERS_SHARE = 0.05

Kind = Literal["arm", "measurement"]


@dataclass(frozen=True)
class Fault:
    """Attributes:
    kind: ``arm``: the arm did not do what all arms have to do, and none of its figures in this scenario counts;
        ``measurement``: this run alone tells nothing, and may be made again.
    text: a clause.
    """

    kind: Kind
    text: str


def of_answers(job: Job, answers: Sequence[Answer]) -> list[Fault]:
    """Requests that failed, and answers that are shorter than what was asked for."""
    faults = []
    failed = [a for a in answers if a.error]
    if failed:
        faults.append(Fault("arm", f"{len(failed)} of {len(answers)} requests failed, first: {failed[0].error}"))
    cut = [a for a in answers if not a.error and _is_cut(job, a)]
    if cut:
        worst = cut[0]
        wanted = job.requests[worst.request].new_tokens
        faults.append(
            Fault(
                "arm",
                f"{len(cut)} answers are cut short, first: {len(worst.tokens)} of {wanted} tokens "
                f"(finish_reason {worst.finish or 'missing'})",
            )
        )
    if not answers:
        faults.append(Fault("measurement", "no request was due"))
    return faults


def _is_cut(job: Job, answer: Answer) -> bool:
    wanted = job.requests[answer.request].new_tokens
    if answer.finish == "length" or job.forced:
        return len(answer.tokens) != wanted
    return answer.finish != "stop"


def of_generator(job: Job, outcome: Outcome) -> list[Fault]:
    """A generator that lagged, or that took the machine from the server."""
    faults = []
    late = percentile([a.sent - a.due for a in outcome.answers], 99)
    if late > LATE_S:
        faults.append(Fault("measurement", f"the generator lagged: 1% of the requests were sent {late:.3f} s late"))
    if outcome.worst_lag > STILL_S:
        faults.append(Fault("measurement", f"the generator stood still for {outcome.worst_lag:.2f} s"))
    share = outcome.cpu_s / max(outcome.wall_s, 1e-9)
    if share > GENERATOR_SHARE:
        faults.append(Fault("measurement", f"the generator used {share:.0%} of a core"))
    if outcome.wall_s < job.seconds - 0.1:
        faults.append(Fault("measurement", f"the load ended after {outcome.wall_s:.1f} of {job.seconds:.1f} s"))
    return faults


def of_machine(others_s: float, idle_s: float, wall_s: float, cores: int) -> list[Fault]:
    """A machine that did something else: CPU seconds of the servers that should have idled beside the one that was
    measured (``idle_s``), and of everybody but all servers and the generator (``others_s``)."""
    shares = {what: s / max(wall_s * cores, 1e-9) for what, s in (("other work", others_s), ("idle servers", idle_s))}
    return [
        Fault("measurement", f"{what} took {share:.0%} of the machine's cores")
        for what, share in shares.items()
        if share > OTHERS_SHARE
    ]


def of_capacity(wanted: tuple[int, int], found: tuple[int, int]) -> list[Fault]:
    """A cap on running requests, or a KV cache, that is not that of the other arms."""
    names = ("max_running_requests", "KV cache")
    return [
        Fault("arm", f"{name} is {is_} instead of {should}")
        for name, should, is_ in zip(names, wanted, found, strict=True)
        if should != is_
    ]


def of_policy(wanted: str, name: str, counted: Mapping[str, int]) -> list[Fault]:
    """A policy that was not in charge all the time. ``counted`` are the differences of counters over the run."""
    faults = []
    if name != wanted:
        faults.append(Fault("arm", f"policy {name!r} was in charge instead of {wanted!r}"))
    for counter, what in (
        ("policy_restarts", "the policy failed and was started again"),
        ("policy_swaps", "the policy was changed"),
        ("fallbacks", "the policy lost its say and the fallback decided"),
        ("agent_errors", "exceptions in the agent"),
    ):
        if counted.get(counter, 0) > 0:
            faults.append(Fault("arm", f"{what} ({counted[counter]} times)"))
    return faults


def of_texts(wrong: Sequence[int]) -> list[Fault]:
    """Answers (indices of requests) that are not the target's own."""
    if not wrong:
        return []
    return [Fault("arm", f"{len(wrong)} answers differ from the target's own, first: that of request {wrong[0]}")]
