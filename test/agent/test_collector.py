"""The telemetry record, from a scheduler, a batch and a result as SGLang has them."""

import time
from collections import deque
from types import SimpleNamespace as Fake

import pytest

from sglang_nightjar.agent.collector import Collector, accepted_by_position
from sglang_nightjar.agent.interval import ProposedInLogInterval
from sglang_nightjar.agent.selector import Launch
from sglang_nightjar.core.messages import TelemetryBatch
from sglang_nightjar.core.wire import decode, encode


@pytest.mark.parametrize(
    "correct, gamma, expected",
    [
        ([0, 1, 3, 3], 3, (3, 2, 2)),
        ([0, 0], 2, (0, 0)),
        ([5], 5, (1, 1, 1, 1, 1)),
        ([0, 0, 0], 0, ()),
        ([1, 0], 1, (1,)),
    ],
)
def test_accepted_by_position(correct: list[int], gamma: int, expected: tuple[int, ...]) -> None:
    assert accepted_by_position(correct, gamma) == expected
    assert sum(expected) == sum(correct)


def make_scheduler(queue: int = 0) -> Fake:
    return Fake(
        pool_stats_observer=Fake(get_pool_stats=lambda: Fake(full_num_used=123)),
        waiting_queue=[Fake(origin_input_ids=[0] * 10)] * queue,
        grammar_manager=Fake(grammar_queue=[]),
        running_batch=Fake(reqs=[1, 2]),
        max_total_num_tokens=1000,
    )


def make_batch(size: int = 2, extend: int | None = None) -> Fake:
    reqs = [Fake(kv_committed_len=50)] * size
    return Fake(reqs=reqs, launch_ts=time.monotonic(), extend_num_tokens=extend)


def make_result(gamma: int, correct: list[int]) -> Fake:
    return Fake(
        speculative_num_draft_tokens=gamma + 1, num_correct_drafts_per_req_cpu=correct, can_run_cuda_graph=False
    )


def test_the_record_is_credited_to_the_gamma_and_plan_of_its_launch_and_survives_the_wire() -> None:
    launches = deque([Launch(3, 7), Launch(0, 8)])
    collector = Collector(make_scheduler(queue=3), launches)
    first = collector.record(make_batch(), make_result(3, [3, 1]))
    second = collector.record(make_batch(), make_result(0, [0, 0]))
    assert (first.iteration, first.gamma, first.plan_id, first.committed, first.accepted) == (1, 3, 7, 6, (2, 1, 1))
    assert (second.iteration, second.gamma, second.plan_id, second.committed, second.accepted) == (2, 0, 8, 2, ())
    assert (first.context_tokens, first.kv_used, first.queue_length, first.queued_tokens) == (100, 123, 3, 30)
    batch = TelemetryBatch("s", 1, (first, second))
    assert decode(encode(batch)) == batch


def test_prefill_between_two_decode_iterations_is_said_once_and_its_time_is_theirs() -> None:
    collector = Collector(make_scheduler(), deque())
    collector.record(make_batch(), make_result(1, [0, 1]))
    prefill = make_batch(extend=77)
    time.sleep(0.01)
    collector.note_prefill(prefill)
    shared = collector.record(make_batch(), make_result(1, [0, 1]))
    alone = collector.record(make_batch(), make_result(1, [0, 1]))
    assert (shared.prefill_tokens, alone.prefill_tokens) == (77, 0)
    assert shared.iteration_ns >= 10_000_000 > alone.iteration_ns


def test_idle_time_is_nobodys() -> None:
    collector = Collector(make_scheduler(), deque())
    collector.record(make_batch(), make_result(1, [0, 1]))
    time.sleep(0.2)
    collector.note_prefill(make_batch(extend=5))
    assert collector.record(make_batch(), make_result(1, [0, 1])).iteration_ns < 100_000_000


def test_a_server_without_speculation_has_records_too() -> None:
    result = Fake(speculative_num_draft_tokens=None, num_correct_drafts_per_req_cpu=None, can_run_cuda_graph=True)
    record = Collector(make_scheduler(), deque()).record(make_batch(), result)
    assert (record.gamma, record.committed, record.accepted, record.cuda_graph) == (0, 2, (), 1)


def test_the_mean_gamma_of_a_log_interval() -> None:
    interval = ProposedInLogInterval()
    interval.add(5, 1)
    interval.add(1, 3)
    assert interval.mean_gamma == 2.0
    interval.clear()
    assert interval.requests == 0
