"""The telemetry record, from a scheduler, a batch and a result as SGLang has them."""

import time
from collections import deque
from types import SimpleNamespace as Fake

import numpy as np
import pytest
import torch
from helpers.router import make_plan

from sglang_nightjar.agent.collector import Collector, accepted_by_position
from sglang_nightjar.agent.decision import from_plan
from sglang_nightjar.agent.interval import ProposedInLogInterval
from sglang_nightjar.agent.sampler import Sampler
from sglang_nightjar.agent.selector import Launch
from sglang_nightjar.core.messages import Telemetry, TelemetryBatch
from sglang_nightjar.core.wire import decode, encode
from sglang_nightjar.cpu import trim


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
        is_hybrid_swa=False,
        is_hybrid_ssm=False,
        token_to_kv_pool_allocator=Fake(available_size=lambda: 800),
        tree_cache=Fake(evictable_size=lambda: 77),
        waiting_queue=[Fake(origin_input_ids=[0] * 10)] * queue,
        grammar_manager=Fake(grammar_queue=[]),
        running_batch=Fake(reqs=[Fake(kv_committed_len=53)] * 2),
        max_total_num_tokens=1000,
    )


def make_batch(size: int = 2, extend: int | None = None) -> Fake:
    return Fake(reqs=[None] * size, launch_ts=time.monotonic(), extend_num_tokens=extend)


def make_result(gamma: int, correct: list[int]) -> Fake:
    return Fake(
        speculative_num_draft_tokens=gamma + 1, num_correct_drafts_per_req_cpu=correct, can_run_cuda_graph=False
    )


class Bench:
    """A sampler and the collector that reads it."""

    def __init__(self, launches: deque[Launch] | None = None, queue: int = 0):
        self.sampler = Sampler(make_scheduler(queue), deque() if launches is None else launches, 100)
        self.collector = Collector()

    def decode(self, result: Fake) -> Telemetry:
        self.sampler.decode(make_batch(), result, 5000)
        return self.collector.record(self.sampler.samples.popleft(), self.sampler.pressure())

    def prefill(self, batch: Fake) -> None:
        self.sampler.prefill(batch)
        self.collector.note_prefill(self.sampler.samples.popleft())


def test_the_record_is_credited_to_the_gamma_and_plan_of_its_launch_and_survives_the_wire() -> None:
    launches = deque(Launch(gamma, from_plan(make_plan(gamma, plan_id=plan), 0)) for gamma, plan in ((3, 7), (0, 8)))
    bench = Bench(launches, queue=3)
    first = bench.decode(make_result(3, [3, 1]))
    second = bench.decode(make_result(0, [0, 0]))
    assert (first.iteration, first.gamma, first.plan_id, first.committed, first.accepted) == (1, 3, 7, 6, (2, 1, 1))
    assert (second.iteration, second.gamma, second.plan_id, second.committed, second.accepted) == (2, 0, 8, 2, ())
    assert (first.context_tokens, first.running, first.kv_used, first.kv_capacity) == (106, 2, 123, 1000)
    assert (first.queue_length, first.queued_tokens) == (3, 30)
    assert (first.rows, second.rows) == (8, 2)
    batch = TelemetryBatch("s", 1, (first, second))
    assert decode(encode(batch)) == batch


def test_drafts_left_out_of_verification_count_for_acceptance_and_not_for_tokens() -> None:
    bench, result = Bench(), make_result(3, [1, 0])
    kept = trim.Kept(torch.tensor([2, 1]), torch.tensor([0, 1, 4]), np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    result.accept_lens = torch.tensor([2, 1], dtype=torch.int32)
    trim.tell(result, kept)
    record = bench.decode(result)
    assert (record.rows, record.committed, record.accepted) == (3, 3, (2, 2, 1))
    assert (bench.collector.totals.accepted, bench.collector.totals.proposed) == (1, 6)


def test_prefill_between_two_decode_iterations_is_said_once_and_its_time_is_theirs() -> None:
    bench = Bench()
    bench.decode(make_result(1, [0, 1]))
    prefill = make_batch(extend=77)
    time.sleep(0.01)
    bench.prefill(prefill)
    shared = bench.decode(make_result(1, [0, 1]))
    alone = bench.decode(make_result(1, [0, 1]))
    assert (shared.prefill_tokens, alone.prefill_tokens) == (77, 0)
    assert shared.iteration_ns >= 10_000_000 > alone.iteration_ns


def test_idle_time_is_nobodys() -> None:
    bench = Bench()
    bench.decode(make_result(1, [0, 1]))
    bench.sampler.was_idle = True
    time.sleep(0.2)
    bench.prefill(make_batch(extend=5))
    assert bench.decode(make_result(1, [0, 1])).iteration_ns < 100_000_000


def test_work_between_two_batches_is_the_iterations_however_long_it_takes() -> None:
    """A piece of the draft's return runs in front of the batch; the scheduler is not idle then."""
    bench = Bench()
    assert bench.decode(make_result(1, [0, 1])).iteration_ns < 100_000_000
    time.sleep(0.05)
    assert bench.decode(make_result(1, [0, 1])).iteration_ns >= 50_000_000


def test_the_scheduler_says_itself_that_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang_nightjar.agent import scheduler_agent
    from sglang_nightjar.patches import scheduler

    agent = scheduler_agent.SchedulerAgent.__new__(scheduler_agent.SchedulerAgent)
    agent._sampler = Bench().sampler
    monkeypatch.setattr(scheduler_agent, "current", agent)
    scheduler.note_idle(None, Fake())
    agent._sampler.prefill(make_batch(extend=5))
    agent._sampler.prefill(make_batch(extend=5))
    assert [sample.after_idle for sample in agent._sampler.samples] == [True, False]


def test_a_server_without_speculation_has_records_too() -> None:
    result = Fake(speculative_num_draft_tokens=None, num_correct_drafts_per_req_cpu=None, can_run_cuda_graph=True)
    record = Bench().decode(result)
    assert (record.gamma, record.committed, record.accepted, record.cuda_graph) == (0, 2, (), 1)


def test_the_mean_gamma_of_a_log_interval() -> None:
    interval = ProposedInLogInterval()
    interval.add(5, 1)
    interval.add(1, 3)
    assert interval.mean_gamma == 2.0
    interval.clear()
    assert interval.requests == 0
