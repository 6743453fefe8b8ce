"""A running server whose draft gives its KV cache back with its weights (``memory.reclaim: weights+kv``).

The policy process is the test's. The pool is filled once, so that all of both caches is in physical memory.
"""

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.load import Load
from helpers.lossless import Referee
from helpers.router import Router, make_plan
from helpers.serving import STRICT_CHECKS, Server, gamma_flags
from helpers.waiting import eventually

pytestmark = pytest.mark.server

POOL_TOKENS, PROMPT, NEW = 8192, 500, 64


@pytest.fixture(scope="module")
def server(target: Path, draft: Path, endpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("reclaim")
    (folder / "config.yaml").write_text("memory: {reclaim: weights+kv}\n")
    flags = ["--model-path", str(target), "--max-total-tokens", str(POOL_TOKENS), *gamma_flags(3)]
    flags += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(draft)]
    flags += ["--nightjar-policy-endpoint", f"ipc://{endpoint}", "--nightjar-config", str(folder / "config.yaml")]
    with Server(flags, folder / "log", **STRICT_CHECKS) as running:
        yield running


def go(server: Server, router: Router, residency: str) -> dict[str, Any]:
    """Send the draft there, and wait until it is there; the status then."""
    router.repeat(make_plan(3 if residency == "device" else 0, residency=residency))
    wanted = "OFFLOADED" if residency == "host" else "RESIDENT"
    eventually(lambda: server.ranks()[0]["residency"] == wanted, 120)
    return server.ranks()[0]


def ask(server: Server, prompts: list[list[int]], new: int = NEW) -> list[list[int]]:
    sampling = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
    answers = server.post("/generate", {"input_ids": prompts, "sampling_params": sampling})
    return [answer["output_ids"] for answer in answers]


def asked_alone(server: Server, router: Router, prompts: list[list[int]]) -> tuple[list[list[int]], float]:
    """Answers, and the mean number of tokens that a verification gave."""
    before = len(router.records())
    answers = ask(server, prompts)
    time.sleep(0.2)
    drafted = [record for record in router.records()[before:] if record.gamma]
    return answers, 1 + sum(sum(r.accepted) for r in drafted) / sum(r.batch_size for r in drafted)


def flush(server: Server) -> None:
    time.sleep(0.2)
    urllib.request.urlopen(server.url + "/flush_cache", data=b"", timeout=60).close()


def resident_bytes(server: Server) -> int:
    """Of the scheduler, the largest of the server's processes."""
    return max(psutil.Process(pid).memory_info().rss for pid in server.children())


def test_both_are_given_back(server: Server, endpoint: Path) -> None:
    with Router(endpoint) as router:
        hello = router.wait_for_hello(30)
        go(server, router, "device")
        # Every slot is written once, by the target and by the draft.
        ask(server, [[10 + i] * PROMPT for i in range(POOL_TOKENS // PROMPT + 2)], new=2)
        held = resident_bytes(server)
        away = go(server, router, "host")
        freed = held - resident_bytes(server)
        back = go(server, router, "device")
    draft = away["draft"]
    assert draft["reclaim"] == "weights+kv" and draft["kv_stays"] == ""
    assert draft["device_bytes"] == draft["kv_device_bytes"] == 0
    assert draft["freed_bytes"] == back["draft"]["device_bytes"] + back["draft"]["kv_device_bytes"]
    # Its weights alone are less than nine tenths of that.
    assert back["draft"]["device_bytes"] < 0.9 * draft["freed_bytes"]
    assert freed >= 0.95 * draft["freed_bytes"]
    assert away["kv"]["capacity"] == hello.kv_tokens_without_draft == POOL_TOKENS + away["kv"]["gain"]
    assert back["kv"]["capacity"] == POOL_TOKENS


def test_cached_prompts_are_as_good_as_new(server: Server, endpoint: Path, referee: Referee) -> None:
    """The draft had read them before it went, and its rows of them went with it."""
    prompts = referee.prompts()[:8]
    with Router(endpoint) as router:
        router.wait_for_hello(30)
        go(server, router, "device")
        flush(server)
        alone, length = asked_alone(server, router, prompts)
        flush(server)
        ask(server, prompts, new=1)
        before = go(server, router, "host")["draft"]["catch_up"]
        go(server, router, "device")
        again, length_again = asked_alone(server, router, prompts)
        after = server.ranks()[0]["draft"]["catch_up"]
    # Beginnings in common are there once.
    beginnings = {tuple(prompt[:length]) for prompt in prompts for length in range(1, len(prompt))}
    assert after["tokens"] - before["tokens"] >= len(beginnings)
    assert after["recomputed"] == before["recomputed"] == 0
    for prompt, *texts in zip(prompts, alone, again, strict=True):
        assert [referee.not_greedy(prompt, text) for text in texts] == [[], []]
    assert length_again >= 0.95 * length > 1.2


def test_requests_that_run_lose_nothing_but_time(server: Server, endpoint: Path, referee: Referee) -> None:
    prompts = referee.prompts()[:6]
    before = server.ranks()[0]["counters"]
    with Router(endpoint, repeat_s=0.05) as router:
        router.wait_for_hello(30)
        with Load(server, prompts, clients=6, new_tokens=96) as load:
            for _ in range(2):
                go(server, router, "host")
                time.sleep(1.0)
                go(server, router, "device")
                time.sleep(1.0)
        load.check(referee)
        after = go(server, router, "device")
    assert after["counters"]["reloads"] - before["reloads"] == 2
    assert after["counters"]["residency_failures"] == after["counters"]["errors"] == 0
    assert after["draft"]["catch_up"]["failures"] == after["draft"]["catch_up"]["recomputed"] == 0
