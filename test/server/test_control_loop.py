"""The whole loop on a running server under load: what is applied, and what happens when the policy process fails.

In every test no request fails, and every answer is the target's own greedy text.
"""

import itertools
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.hang_ups import hang_ups
from helpers.load import Load
from helpers.lossless import Referee
from helpers.policy_peers import PolicyProcess
from helpers.router import Router, make_plan
from helpers.serving import STRICT_CHECKS, Server, gamma_flags
from helpers.waiting import eventually, seconds_until

from sglang_nightjar.core.gammas import constant
from sglang_nightjar.core.messages import Ack, Arrivals, Plan
from sglang_nightjar.core.wire import encode

pytestmark = pytest.mark.server

FALLBACK_GAMMA = 3
CANDIDATES = [0, 1, 2, 3, 4, 5]
PROMPTS = 24


@pytest.fixture(scope="module")
def steered(eagle_flags: list[str], endpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose policy process is whatever a test puts at ``endpoint``."""
    flags = [*eagle_flags, *gamma_flags(FALLBACK_GAMMA), "--nightjar-policy-endpoint", f"ipc://{endpoint}"]
    with Server(flags, tmp_path_factory.mktemp("steered") / "log", **STRICT_CHECKS) as running:
        yield running


@pytest.fixture(scope="module")
def prompts(referee: Referee) -> list[list[int]]:
    return referee.prompts()[:PROMPTS]


def status(server: Server) -> dict[str, Any]:
    [rank] = server.ranks()
    return rank


def steered_by(server: Server, source: str) -> bool:
    return status(server)["source"] == source


def flips(seed: int) -> Callable[[], Plan]:
    """Every call another plan: one γ for small batches and another for larger ones, both at random."""
    rng = random.Random(seed)

    def flip() -> Plan:
        split = rng.randint(1, 8)
        return make_plan(gammas=((1, split, rng.choice(CANDIDATES)), (split + 1, None, rng.choice(CANDIDATES))))

    return flip


def static(endpoint: Path, gamma: int) -> PolicyProcess:
    return PolicyProcess(
        endpoint.parent, config=f"policy: {{name: static, params: {{gamma: {gamma}}}}}\n", endpoint=f"ipc://{endpoint}"
    )


def test_text_is_greedy_while_gamma_flips_at_random(
    steered: Server, endpoint: Path, referee: Referee, prompts: list[list[int]]
) -> None:
    with Router(endpoint, repeat_s=0.03) as router:
        router.wait_for_hello()
        router.repeat(flips(5))
        with Load(steered, prompts, clients=8) as load:
            router.wait_for(lambda: len(router.records()) > 300, timeout_s=300)
        records = router.records()
        acks = [ack for ack in router.of(Ack) if not ack.refused]
    load.check(referee)
    assert {record.gamma for record in records} == set(CANDIDATES)
    assert len({(a.gamma, b.gamma) for a, b in itertools.pairwise(records)}) > 20
    assert len(acks) > 20
    # Telemetry is complete and in order, and each record names the plan that really decided it.
    assert [record.iteration for record in records] == list(
        range(records[0].iteration, records[0].iteration + len(records))
    )
    first_iteration = {ack.plan_id: ack.iteration for ack in acks}
    for record in records:
        assert record.committed == record.batch_size + sum(record.accepted)
        assert record.iteration >= first_iteration.get(record.plan_id, 0)
    switches = [line for line in steered.log.read_text().splitlines() if "Nightjar: γ" in line]
    assert 1 <= len(switches) <= 2 + (records[-1].at_ns - records[0].at_ns) / 1e9


@pytest.mark.parametrize("gamma", [0, 2, 5])
def test_a_plan_applies_at_once_and_answers_say_what_was_proposed(steered: Server, endpoint: Path, gamma: int) -> None:
    with Router(endpoint) as router:
        router.wait_for_hello()
        router.repeat(plan := make_plan(gamma))
        router.wait_for(lambda: [ack for ack in router.of(Ack) if ack.plan_id == plan.plan_id])
        answer = steered.generate("Once upon a time", max_new_tokens=24, ignore_eos=True)["meta_info"]
        mine = router.wait_for(lambda: [record for record in router.records() if record.plan_id == plan.plan_id])
        router.wait_for(lambda: sum(record.committed for record in router.records()) >= 23)
    assert {record.gamma for record in mine} == {gamma}
    assert answer["spec_num_proposed_drafts"] == gamma * answer["spec_verify_ct"]
    rate = answer["spec_num_correct_drafts"] / (gamma * answer["spec_verify_ct"]) if gamma else 0.0
    assert answer["spec_accept_rate"] == pytest.approx(rate)


def test_arrivals_are_reported(steered: Server, endpoint: Path, prompts: list[list[int]]) -> None:
    with Router(endpoint) as router:
        router.wait_for_hello()
        steered.post("/generate", {"input_ids": prompts[:5], "sampling_params": {"max_new_tokens": 2}})
        # The first reports are lost if the tokenizer process is still connecting; it tries for a second.
        router.wait_for(lambda: sum(report.requests for report in router.of(Arrivals)) == 5)
        assert sum(report.prompt_tokens for report in router.of(Arrivals)) == sum(map(len, prompts[:5]))


def test_kill_9_and_return(steered: Server, endpoint: Path, referee: Referee, prompts: list[list[int]]) -> None:
    errors = status(steered)["counters"]["errors"]
    with static(endpoint, 1) as policy, Load(steered, prompts) as load:
        eventually(lambda: steered_by(steered, "policy") and status(steered)["gamma"] == 1, 30)
        policy.kill()
        # "At once" is the next iteration; asking takes longer.
        assert seconds_until(lambda: steered_by(steered, "fallback"), 5) < 1.5
        eventually(lambda: status(steered)["gamma"] == FALLBACK_GAMMA, 5)
        policy.start()
        eventually(endpoint.exists, 30)
        assert seconds_until(lambda: steered_by(steered, "policy"), 10) < 2
    load.check(referee)
    assert status(steered)["counters"]["errors"] == errors


@dataclass(frozen=True)
class Pace:
    """How fast a busy scheduler was for some seconds, by its own account.

    Attributes:
        iteration_s: the median over half seconds of the mean time of an iteration. What else the machine does comes in
            bursts, and what waits for the policy process waits in every iteration.
        busy: share of the time that its iterations account for; a long wait between two of them looks like rest.
    """

    iteration_s: float
    busy: float

    @staticmethod
    def of(server: Server, seconds: float) -> "Pace":
        def look() -> tuple[float, int, float]:
            seen = status(server)
            return time.monotonic(), seen["iterations"], sum(seen["seconds_by_gamma"].values())

        looks = [look()]
        while looks[-1][0] - looks[0][0] < seconds:
            time.sleep(0.5)
            looks.append(look())
        means = [(b[2] - a[2]) / (b[1] - a[1]) for a, b in itertools.pairwise(looks) if b[1] > a[1]]
        return Pace(statistics.median(means), (looks[-1][2] - looks[0][2]) / (looks[-1][0] - looks[0][0]))


def test_a_frozen_policy_process_holds_nothing_up(
    steered: Server, endpoint: Path, referee: Referee, prompts: list[list[int]]
) -> None:
    """The same γ all along, and iterations take as long as before and after.

    Waiting 5 ms in each would be seen: one takes about 30 ms. A machine with other work on it gets a second try.
    """
    with static(endpoint, FALLBACK_GAMMA) as policy, Load(steered, prompts[:4], clients=2, new_tokens=128) as load:
        for _ in range(2):
            eventually(lambda: steered_by(steered, "policy"), 30)
            before = Pace.of(steered, 5)
            policy.signal(signal.SIGSTOP)
            eventually(lambda: steered_by(steered, "fallback"), 5)
            frozen = Pace.of(steered, 5)
            assert status(steered)["link"]["state"] == "stale"
            policy.signal(signal.SIGCONT)
            assert seconds_until(lambda: steered_by(steered, "policy"), 10) < 2
            after = Pace.of(steered, 5)
            same = frozen.iteration_s < 1.08 * max(before.iteration_s, after.iteration_s)
            if same and frozen.busy > min(before.busy, after.busy) - 0.1:
                break
        else:
            pytest.fail(f"before: {before}, frozen: {frozen}, after: {after}")
    load.check(referee)


def test_ten_thousand_bad_frames(steered: Server, endpoint: Path, referee: Referee, prompts: list[list[int]]) -> None:
    plan, rng = make_plan(2, gammas=constant(2)), random.Random(1)
    good = encode(plan)
    replay = encode(make_plan(1))
    newer = make_plan(4)
    bad = [
        b"",
        b"{",
        rng.randbytes(200),
        good[: len(good) // 2],
        good.replace(b'"v":1', b'"v":7'),
        good.replace(b'"device"', b'"nowhere"'),
        b'"' + b"x" * 300_000 + b'"',
        b"[" * 3000,
    ]
    with Router(endpoint) as router, Load(steered, prompts) as load:
        router.wait_for_hello()
        before = status(steered)["link"]
        router.repeat(newer)
        eventually(lambda: status(steered)["plan_id"] == newer.plan_id, 10)
        for _ in range(20):
            # A router drops what its pipe does not hold, so wait for each portion.
            seen = status(steered)["link"]
            portion = [frame for frame in bad for _ in range(50)] + [replay] * 100
            router.send(*portion)
            eventually(lambda seen=seen: total(status(steered)["link"]) >= total(seen) + 500, 60)
        found = status(steered)
    load.check(referee)
    assert total(found["link"]) - total(before) == 10_000
    assert found["link"]["replayed"] - before["replayed"] == 2000
    assert found["plan_id"] == newer.plan_id
    assert found["source"] == "policy"
    # Warned, but not ten thousand times.
    warnings = [
        line for line in steered.log.read_text().splitlines() if "dropped a frame" in line or "dropped plan" in line
    ]
    assert 1 <= len(warnings) < 100


def total(link: dict[str, Any]) -> int:
    return link["rejected"] + link["replayed"]


def test_the_sockets_path_is_deleted(
    steered: Server, endpoint: Path, referee: Referee, prompts: list[list[int]]
) -> None:
    """The policy process binds again, or is started anew at the path: it is found within two seconds."""
    with static(endpoint, 1) as policy, Load(steered, prompts) as load:
        eventually(lambda: steered_by(steered, "policy") and status(steered)["gamma"] == 1, 30)
        endpoint.unlink()
        time.sleep(3)
        eventually(lambda: steered_by(steered, "policy") and status(steered)["gamma"] == 1, 2)
        policy.kill()
        eventually(lambda: steered_by(steered, "fallback"), 5)
        policy.start()
        eventually(endpoint.exists, 30)
        assert seconds_until(lambda: steered_by(steered, "policy"), 10) < 2
    load.check(referee)


def test_an_idle_server_rests_and_still_listens(steered: Server, endpoint: Path) -> None:
    import psutil

    [scheduler] = [
        child
        for child in psutil.Process(steered.process.pid).children(recursive=True)
        if "scheduler" in " ".join(child.cmdline())
    ]
    with Router(endpoint) as router:
        router.wait_for_hello()
        router.repeat(make_plan(1))
        time.sleep(1.5)
        used = sum(scheduler.cpu_times()[:2])
        time.sleep(4)
        assert sum(scheduler.cpu_times()[:2]) - used < 0.8
        router.repeat(plan := make_plan(5))
        router.wait_for(lambda: [ack for ack in router.of(Ack) if ack.plan_id == plan.plan_id])
        before = len(router.records())
        steered.generate("Hello", max_new_tokens=8, ignore_eos=True)
        router.wait_for(lambda: len(router.records()) > before)
        assert router.records()[before].gamma == 5


def test_64_clients_that_hang_up_while_gamma_flips(steered: Server, endpoint: Path) -> None:
    """γ=0, its journal and the way back included; then the server ends as it should. The last test here: it ends it."""
    before = status(steered)["counters"]
    with Router(endpoint, repeat_s=0.05) as router:
        router.wait_for_hello()
        router.repeat(flips(7))
        # How many plans fit into one round depends on how fast the machine is.
        for _ in range(5):
            hang_ups(steered)
            used = [record.gamma for record in router.records()]
            switches = sum(a != b for a, b in itertools.pairwise(used))
            if switches > 20:
                break
    after = status(steered)["counters"]
    assert switches > 20
    assert set(used) == set(CANDIDATES)
    assert after["errors"] == before["errors"] == 0
    steered.process.terminate()
    assert steered.process.wait(60) == 0
