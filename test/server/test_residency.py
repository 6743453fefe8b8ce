"""The draft goes away and comes back on a running server under load, with SGLang's strict memory checks on.

The policy process is the test's, so transitions come when the test says. The pool is small: requests really live in the
memory that the draft gave up, and have to move when it comes back.
"""

import time
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

POOL_TOKENS = 1024
CYCLES = 4
LONG_CYCLES = 300


@pytest.fixture(scope="module")
def small(target: Path, draft: Path, endpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--model-path", str(target), "--max-total-tokens", str(POOL_TOKENS)]
    flags += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(draft), *gamma_flags(3)]
    flags += ["--nightjar-policy-endpoint", f"ipc://{endpoint}"]
    with Server(flags, tmp_path_factory.mktemp("small") / "log", **STRICT_CHECKS) as running:
        yield running


def resident_bytes(server: Server) -> int:
    """Of the scheduler, the largest of the server's processes."""
    return max(psutil.Process(pid).memory_info().rss for pid in server.children())


def go(server: Server, router: Router, residency: str, timeout_s: float = 120.0) -> dict[str, Any]:
    """Send the draft there, and wait until it is there; the status then."""
    router.repeat(make_plan(3 if residency == "device" else 0, residency=residency))
    wanted = ("OFFLOADED",) if residency == "host" else ("RESIDENT", "CATCHING_UP")
    eventually(lambda: server.ranks()[0]["residency"] in wanted, timeout_s)
    return server.ranks()[0]


def cycle(server: Server, endpoint: Path, referee: Referee, cycles: int) -> None:
    """Under a load that overflows the pool: away, stay a while, back, draft a while."""
    prompts = referee.prompts()[:12]
    before = server.ranks()[0]["counters"]
    with Router(endpoint, repeat_s=0.05) as router:
        router.wait_for_hello()
        with Load(server, prompts, clients=10, new_tokens=96) as load:
            for _ in range(cycles):
                away = go(server, router, "host")
                assert away["kv"]["capacity"] == POOL_TOKENS + away["kv"]["gain"]
                assert away["draft"]["device_bytes"] == 0
                time.sleep(1.5)
                # Ten requests may need more than fits without the tail: then it waits until some have ended.
                go(server, router, "device")
                time.sleep(0.5)
        load.check(referee)
        assert len(load.answers) >= cycles
        after = go(server, router, "device")
    assert after["counters"]["offloads"] - before["offloads"] == cycles
    assert after["counters"]["reloads"] - before["reloads"] == cycles
    assert after["counters"]["residency_failures"] == after["counters"]["errors"] == 0
    assert after["counters"]["moved_tokens"] > before["moved_tokens"], "nothing lived in the draft's place"
    assert after["kv"]["capacity"] == POOL_TOKENS


def test_memory_really_changes_hands(small: Server, endpoint: Path) -> None:
    with Router(endpoint) as router:
        hello = router.wait_for_hello()
        here = go(small, router, "device")
        small.generate("Once upon a time", max_new_tokens=16)
        held, draft_bytes = resident_bytes(small), here["draft"]["device_bytes"]
        away = go(small, router, "host")
        freed = held - resident_bytes(small)
        assert freed >= 0.95 * draft_bytes
        # What was predicted from the shapes, before anybody tried.
        assert away["kv"]["capacity"] == hello.kv_tokens_without_draft > hello.kv_tokens == POOL_TOKENS
        back = go(small, router, "device")
    assert back["kv"]["capacity"] == POOL_TOKENS
    assert back["draft"]["device_bytes"] == draft_bytes


def test_cycles_under_load(small: Server, endpoint: Path, referee: Referee) -> None:
    cycle(small, endpoint, referee, CYCLES)


@pytest.mark.long
def test_three_hundred_cycles(small: Server, endpoint: Path, referee: Referee) -> None:
    cycle(small, endpoint, referee, LONG_CYCLES)
