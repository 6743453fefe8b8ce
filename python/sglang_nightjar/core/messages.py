"""The messages between schedulers, tokenizer processes, control clients and the policy process.

Bytes: `sglang_nightjar.core.wire` (``encode``, ``decode``). Meaning, layout and examples: docs/wire-protocol.md.

Sockets. The policy process binds one ROUTER. Every agent (one per scheduler that decides: rank 0 of a TP group, one per
DP rank), every tokenizer process and every control client connects a DEALER of its own, with the routing id that ZMQ
makes up, and sends one message per single-part ZMQ message. The default endpoint is ``ipc://`` in a directory of mode
0700. ``tcp://`` works only with CURVE keys: without keys both ends refuse the endpoint, and the policy process lets in
only clients whose public key it was given. `sglang_nightjar.policy.endpoint` makes the sockets of both ends.

Senders. ``sender`` is unique per process start (``make_sender_id``: server, role, nonce), so several servers can share
an endpoint and a restart is seen. ``seq`` counts the frames of a sender from 1; a frame whose ``seq`` is not larger
than the sender's last one is a replay and is dropped. After ``Hello``, an agent may be sent ``HelloWanted`` at any time
(the policy process was restarted): it answers with another ``Hello``.

Units: durations and points in time are nanoseconds unless the name says otherwise; ``at_ns`` is the sender's monotonic
clock. Every integer is in [0, 2**63).
"""

import enum
import secrets
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sglang_nightjar.core.gammas import Ranges, lookup

VERSION = 1
#: An int64: nanoseconds since a boot pass 2**53 after 104 days.
MAX_INT = 2**63 - 1
MAX_GAMMA = 64
MAX_BATCH = 65_536
#: An iteration that took longer was no decode iteration: a suspended process, a clock that jumped.
LONGEST_ITERATION_NS = 60_000_000_000
MAX_RECORDS = 256
MAX_TEXT = 512
#: What an inbound frame may weigh. A Reply alone may weigh MAX_REPLY_BYTES.
MAX_FRAME_BYTES = 262_144
MAX_REPLY_BYTES = 4_194_304


class Residency(enum.IntEnum):
    """Where the draft is (`Telemetry.residency`)."""

    RESIDENT = 0
    PARKED = 1
    OFFLOADING = 2
    OFFLOADED = 3
    SHRINKING = 4
    LOADING = 5
    CATCHING_UP = 6


def make_sender_id(server: str, role: str) -> str:
    """``server/role/nonce``; ``role`` is ``dp<rank>`` for a scheduler, ``tokenizer<n>``, or a client's name."""
    return f"{server}/{role}/{secrets.token_hex(6)}"


@dataclass(frozen=True, slots=True)
class Hello:
    """agent → policy, when it connects and when asked: who decides with which means.

    Attributes:
        sender: id of the agent.
        seq: frame counter.
        server: id of the server, the same for all its schedulers and tokenizer processes.
        dp_rank, dp_size, tp_size: the scheduler's place.
        target, draft: model ids (``draft`` is "" for a draft without weights).
        hardware: name of the device; schedulers of equal target, draft, hardware and tp_size may pool what they learn.
        candidates: Γ, the γ that this scheduler can run, ascending and distinct; 0 is drafting nothing.
        start_gamma: γ in force until the first plan, and the one to fall back to; one of ``candidates``.
        max_batch_size: most requests that decode together.
        kv_tokens, kv_tokens_without_draft: KV capacity with the draft on the device, and with its memory given back.
        draft_bytes: the draft's weights on the device, bytes.
        switch_costs: (largest lag in tokens, batch size, ns) rows of what going from γ=0 to γ>0 costs; may be empty.
        sglang_version, nightjar_version: versions.
    """

    sender: str
    seq: int
    server: str
    dp_rank: int
    dp_size: int
    tp_size: int
    target: str
    draft: str
    hardware: str
    candidates: tuple[int, ...]
    start_gamma: int
    max_batch_size: int
    kv_tokens: int
    kv_tokens_without_draft: int
    draft_bytes: int
    switch_costs: tuple[tuple[int, int, int], ...] = ()
    sglang_version: str = ""
    nightjar_version: str = ""

    @property
    def pool(self) -> tuple[str, str, str, int]:
        """Schedulers with the same key have the same costs."""
        return (self.target, self.draft, self.hardware, self.tp_size)


class Telemetry(NamedTuple):
    """One decode iteration. A tuple, not a dataclass: the policy process makes 20,000 of them a second on one core.

    Attributes:
        iteration: counts the scheduler's decode iterations from 1; the batch that this record is about.
        at_ns: when its result was processed.
        iteration_ns: from the previous result to this one, or from the launch of the batch if the scheduler was idle.
        batch_size: requests that decoded (never those that prefilled).
        gamma: the γ recorded on this iteration's result.
        committed: tokens that the requests gained, at most batch_size · (gamma + 1).
        context_tokens: length of the running requests, together. This, the queue, ``running`` and ``kv_`` are as of the
            moment when the record is made, up to 10 ms later.
        prefill_tokens: prompt tokens computed within ``iteration_ns``; above 0 the iteration was shared.
        queue_length, queued_tokens: waiting requests, and their prompt tokens.
        running: requests that are running, prefilling ones included.
        kv_used, kv_capacity: tokens.
        retractions: requests retracted since the scheduler started.
        lag_max, lag_total: tokens that the draft's KV is behind: of the worst request, of all.
        residency: a `Residency`.
        cuda_graph: 1 if the target ran from a CUDA graph.
        plan_id: plan whose γ this was; 0 is the fallback.
        rows: tokens that the target's pass computed: batch_size · (gamma + 1), less what was left out of verification
            (`Plan.trim`). 0 if the sender does not say; it is all of them then.
        accepted: at position i the number of requests whose i-th draft token was accepted, or was left out of
            verification (`Plan.trim`) and would have been, as a coin with the draft's own probability says: together
            at least ``committed - batch_size``. ``gamma`` long, or empty if the scheduler can't tell.
    """

    iteration: int
    at_ns: int
    iteration_ns: int
    batch_size: int
    gamma: int
    committed: int
    context_tokens: int = 0
    prefill_tokens: int = 0
    queue_length: int = 0
    queued_tokens: int = 0
    running: int = 0
    kv_used: int = 0
    kv_capacity: int = 0
    retractions: int = 0
    lag_max: int = 0
    lag_total: int = 0
    residency: int = 0
    cuda_graph: int = 0
    plan_id: int = 0
    rows: int = 0
    accepted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TelemetryBatch:
    """agent → policy: the records that became due, oldest first; one when the link is fast, at most `MAX_RECORDS`.

    Attributes:
        dropped: records that the agent dropped, oldest first, because they could not be sent; since its start.
    """

    sender: str
    seq: int
    records: tuple[Telemetry, ...]
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """tokenizer process → policy, for every interval that had any: a surge, before the scheduler's queue shows it.

    Attributes:
        server: the server's id, as in `Hello`.
        at_ns, interval_ns: end and length of the interval.
        requests, prompt_tokens: what arrived in it.
    """

    sender: str
    seq: int
    server: str
    at_ns: int
    interval_ns: int
    requests: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class HelloWanted:
    """policy → agent: this policy process does not know you; send `Hello`. ``process`` names its start."""

    process: str


@dataclass(frozen=True, slots=True)
class Plan:
    """policy → agent: γ for every batch size, when the policy's mind changes, and again as a sign of life.

    Attributes:
        plan_id: grows with every new plan, also over restarts of the policy process; a repeated plan keeps its id.
        policy, policy_version: who decided.
        gammas: (first, last, γ) rows; they start at 1, leave no gap, and end with ``last`` None, which is "and above".
        residency: where the draft should live: ``device``, or ``host`` (disable and offload).
        reason: one line for people.
        valid_for_ms: from its receipt; without a new or repeated plan until then, the agent falls back.
        echo_ns: ``at_ns`` of the telemetry record that this answers, to measure the round trip; 0 is none.
        trim: where the scheduler can, drafts that are too unlikely to pay for their verification are left out of it.
    """

    plan_id: int
    policy: str
    policy_version: str
    gammas: Ranges
    residency: str
    reason: str
    valid_for_ms: int
    echo_ns: int = 0
    trim: bool = False

    def gamma_for(self, batch_size: int) -> int:
        """γ for ``batch_size`` requests."""
        return lookup(self.gammas, batch_size)


@dataclass(frozen=True, slots=True)
class Ack:
    """agent → policy: what became of a new plan (not of a repeated one).

    Attributes:
        plan_id: the plan.
        iteration: first iteration that it decides; 0 if it was refused.
        refused: why it was refused; "" if it was not.
    """

    sender: str
    seq: int
    plan_id: int
    iteration: int
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """control client → policy. ``op`` and its ``args``: docs/wire-protocol.md, "Control".

    ``status``; ``decisions`` {n}; ``policy_get``; ``policy_set`` {name | path, params}; ``policy_list``.
    """

    sender: str
    seq: int
    op: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """policy → control client: the answer to the request of the same ``seq``.

    Attributes:
        ok: it was done.
        error: what was wrong; "" if ``ok``.
        body: the answer. For a failed ``policy_set`` the policy that stays in charge.
    """

    seq: int
    ok: bool
    error: str = ""
    body: dict[str, Any] = field(default_factory=dict)


Message = Hello | TelemetryBatch | Arrivals | HelloWanted | Plan | Ack | Request | Reply
