"""Several ranks, on a tiny random model: a TP group follows one plan in step, replicas follow a plan each."""

import re
import threading
from pathlib import Path

import pytest
from helpers.router import Router, make_plan
from helpers.serving import STRICT_CHECKS, Server, gamma_flags
from helpers.tiny_pair import make_tiny_pair

from sglang_nightjar.core.messages import Hello

pytestmark = pytest.mark.server

APPLIED = re.compile(r"TP(\d)\] Nightjar: decision policy (\d+) applies from iteration (\d+)")
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def tiny_flags(target: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    tiny_target, tiny_draft = make_tiny_pair(tmp_path_factory.mktemp("pair"), target)
    return [
        *("--model-path", str(tiny_target), "--max-total-tokens", "4096"),
        *("--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(tiny_draft)),
        *gamma_flags(2),
    ]


@pytest.fixture
def endpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir(mode=0o700)
    return folder / "socket"


def generate(server: Server, texts: list[str]) -> list[list[int]]:
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    answers = server.post("/generate", {"text": texts, "sampling_params": sampling})
    return [answer["output_ids"] for answer in answers]


def test_tp_ranks_apply_each_plan_in_the_same_iteration(tiny_flags: list[str], endpoint: Path, tmp_path: Path) -> None:
    flags = [
        *tiny_flags,
        *("--tp-size", "2", "--log-level", "debug", "--nightjar-policy-endpoint", f"ipc://{endpoint}"),
    ]
    texts = ["Once upon a time", "The weather", "One two three four", "A"]
    with Router(endpoint, repeat_s=0.2) as router, Server(flags, tmp_path / "log", **STRICT_CHECKS) as server:
        [hello] = {(hello.dp_rank, hello.tp_size, hello.candidates) for hello in router.of(Hello)}
        assert hello == (0, 2, (0, 1, 2, 3, 4, 5))
        expected = generate(server, texts)
        gammas = iter([0, 5, 1, 4, 2, 3] * 1000)
        router.repeat(lambda: make_plan(next(gammas)))
        for _ in range(4):
            assert generate(server, texts) == expected
        router.wait_for(lambda: {record.gamma for record in router.records()} == {0, 1, 2, 3, 4, 5}, timeout_s=60)
    applied: dict[str, list[tuple[str, str]]] = {"0": [], "1": []}
    for rank, plan, iteration in APPLIED.findall((tmp_path / "log").read_text()):
        applied[rank].append((plan, iteration))
    assert len(applied["0"]) > 10
    assert applied["0"] == applied["1"]


def test_replicas_decide_apart(tiny_flags: list[str], endpoint: Path, tmp_path: Path) -> None:
    flags = [*tiny_flags, *("--dp-size", "2", "--nightjar-policy-endpoint", f"ipc://{endpoint}")]
    with Router(endpoint) as router, Server(flags, tmp_path / "log", **STRICT_CHECKS) as server:
        router.wait_for(lambda: len({hello.dp_rank for hello in router.of(Hello)}) == 2)
        assert {(hello.server, hello.dp_size) for hello in router.of(Hello)} == {(router.of(Hello)[0].server, 2)}
        plans = {0: make_plan(0), 1: make_plan(4)}
        router.repeat_to(plans)
        states = {}

        def settled() -> bool:
            for state in server.get("/server_info")["internal_states"]:
                states[state["nightjar"]["rank"]] = state["nightjar"]["plan_id"]
            return states == {rank: plan.plan_id for rank, plan in plans.items()}

        router.wait_for(settled, timeout_s=30)
        before = len(router.received)
        threads = [threading.Thread(target=generate, args=(server, ["One", "Two", "Three"])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        used = {
            message.sender.split("/")[1]: {record.gamma for record in message.records}
            for message in router.received[before:]
            if hasattr(message, "records")
        }
    assert used == {"dp0": {0}, "dp1": {4}}
