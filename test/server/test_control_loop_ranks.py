"""Several ranks, on a tiny random model: a TP group follows one plan in step, replicas follow a plan each."""

import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.load import Load
from helpers.processes import policy_processes
from helpers.router import Router, make_plan
from helpers.serving import STRICT_CHECKS, Server
from helpers.waiting import eventually

from sglang_nightjar.core.messages import Hello, TelemetryBatch

pytestmark = pytest.mark.server

NEW_TOKENS = 24
TEXTS = ["Once upon a time", "The weather", "One two three four", "A"]
PROMPTS = [[5, 6, 7, 8], [100, 90, 80], [3000, 2000, 1000, 500, 250], [42] * 9]


@pytest.fixture(scope="module")
def group(tiny_flags: list[str], endpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two TP ranks, whose policy process is what a test puts at ``endpoint``."""
    flags = ["--tp-size", "2", "--log-level", "debug", "--nightjar-policy-endpoint", f"ipc://{endpoint}"]
    with Server([*tiny_flags, *flags], tmp_path_factory.mktemp("group") / "log", **STRICT_CHECKS) as server:
        yield server


@pytest.fixture(scope="module")
def expected(group: Server) -> list[list[int]]:
    return generate(group)


def generate(server: Server) -> list[list[int]]:
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    answers = server.post("/generate", {"text": TEXTS, "sampling_params": sampling})
    return [answer["output_ids"] for answer in answers]


def by_rank(server: Server, line: str, since: int = 0) -> dict[str, list[tuple[str, ...]]]:
    """What each TP rank's log says from character ``since`` on, in lines that match the regular expression ``line``."""
    found = defaultdict(list)
    for rank, *groups in re.findall(r"TP(\d)\] Nightjar: " + line, server.log.read_text()[since:]):
        found[rank].append(tuple(groups))
    return found


def test_tp_ranks_apply_each_decision_in_the_same_iteration(
    group: Server, endpoint: Path, expected: list[list[int]]
) -> None:
    """Plans, and the fallback when they end in the middle of the work."""
    with Router(endpoint, repeat_s=0.2) as router:
        hello = router.wait_for_hello()
        assert (hello.dp_rank, hello.tp_size, hello.candidates) == (0, 2, (0, 1, 2, 3, 4, 5))
        gammas = iter([0, 5, 1, 4, 2, 3] * 1000)
        for _ in range(2):
            router.repeat(lambda: make_plan(next(gammas), valid_for_ms=1000))
            for _ in range(3):
                assert generate(group) == expected
            router.repeat(None)
            while group.ranks()[0]["source"] == "policy":
                assert generate(group) == expected
        router.repeat(lambda: make_plan(next(gammas), valid_for_ms=1000))
        router.wait_for(lambda: {record.gamma for record in router.records()} == {0, 1, 2, 3, 4, 5}, timeout_s=60)
    applied = by_rank(group, r"decision (policy|fallback) (\d+) applies from iteration (\d+)")
    assert len(applied["0"]) > 10
    assert applied["0"] == applied["1"]
    assert sum(source == "fallback" for source, _, _ in applied["0"]) >= 2


def test_tp_ranks_send_the_draft_away_and_back_together(group: Server, endpoint: Path) -> None:
    away_and_back(group, endpoint)


def test_tp_ranks_give_the_drafts_kv_back_together(tiny_flags: list[str], endpoint: Path, tmp_path: Path) -> None:
    """What is stale then is the same on both, or they would catch up in different shapes and wait for each other."""
    endpoint, config = endpoint.with_name("kv"), tmp_path / "config.yaml"
    config.write_text("memory: {reclaim: weights+kv}\n")
    flags = [*tiny_flags, *("--tp-size", "2", "--log-level", "debug", "--nightjar-config", str(config))]
    with Server(
        [*flags, "--nightjar-policy-endpoint", f"ipc://{endpoint}"], tmp_path / "log", **STRICT_CHECKS
    ) as server:
        away_and_back(server, endpoint)
        draft = server.ranks()[0]["draft"]
    assert draft["reclaim"] == "weights+kv"
    assert draft["catch_up"]["failures"] == draft["catch_up"]["recomputed"] == 0


def away_and_back(group: Server, endpoint: Path) -> None:
    """Each piece of the work is agreed on; requests run all the while."""
    since = len(group.log.read_text())
    with Router(endpoint, repeat_s=0.1) as router, Load(group, PROMPTS, new_tokens=96) as load:
        router.wait_for_hello()
        for cycle in (1, 2):
            router.repeat(make_plan(0, residency="host"))
            eventually(lambda: group.ranks()[0]["residency"] == "OFFLOADED", 60)
            router.repeat(make_plan(3))
            eventually(lambda: group.ranks()[0]["residency"] == "RESIDENT", 60)
            answered = len(load.answers)
            eventually(lambda answered=answered: load.errors or len(load.answers) >= answered + 4, 60)
            counters = group.ranks()[0]["counters"]
            assert (counters["offloads"], counters["reloads"]) == (cycle, cycle)
    assert load.errors == []
    assert len(set(load.answers)) == len(PROMPTS), "the same prompt had different answers"
    assert counters["residency_failures"] == counters["errors"] == 0
    moves = by_rank(group, r"draft (\w+) -> (\w+)", since)
    assert moves["0"] == moves["1"]
    for there in ("OFFLOADED", "LOADING", "RESIDENT"):
        assert sum(after == there for _, after in moves["0"]) >= 2


def test_off_is_plain_sglang_on_two_ranks(tiny_flags: list[str], expected: list[list[int]], tmp_path: Path) -> None:
    """γ is the flags' own, nobody decides anything, and the answers are those of the steered group."""
    flags = [*tiny_flags, "--tp-size", "2", "--log-level", "debug", "--nightjar-policy", "off"]
    with Server(flags, tmp_path / "log", **STRICT_CHECKS) as server:
        assert generate(server) == expected
        meta = server.generate(TEXTS[0], max_new_tokens=NEW_TOKENS, ignore_eos=True)["meta_info"]
        assert meta["spec_num_proposed_drafts"] == 2 * meta["spec_verify_ct"]
        assert policy_processes(server) == []
        assert server.ranks() == []
        assert by_rank(server, r"(decision|draft|γ) ") == {}


def test_replicas_decide_apart(tiny_flags: list[str], endpoint: Path, tmp_path: Path) -> None:
    endpoint = endpoint.with_name("replicas")
    flags = [*tiny_flags, *("--dp-size", "2", "--nightjar-policy-endpoint", f"ipc://{endpoint}")]
    with Router(endpoint) as router, Server(flags, tmp_path / "log", **STRICT_CHECKS) as server:
        router.wait_for(lambda: len({hello.dp_rank for hello in router.of(Hello)}) == 2)
        assert {(hello.server, hello.dp_size) for hello in router.of(Hello)} == {(router.of(Hello)[0].server, 2)}
        plans = {0: make_plan(0), 1: make_plan(4)}
        router.repeat_to(plans)
        wanted = {rank: plan.plan_id for rank, plan in plans.items()}
        router.wait_for(lambda: {rank["rank"]: rank["plan_id"] for rank in server.ranks()} == wanted, timeout_s=30)
        before = len(router.received)
        threads = [threading.Thread(target=generate, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        used = defaultdict(set)
        for message in router.received[before:]:
            if isinstance(message, TelemetryBatch):
                used[message.sender.split("/")[1]] |= {record.gamma for record in message.records}
    assert used == {"dp0": {0}, "dp1": {4}}
