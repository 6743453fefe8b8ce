"""Reports of what arrives, from an event loop."""

import asyncio
from pathlib import Path

from helpers.router import Router

from sglang_nightjar.agent.arrivals import ArrivalReporter
from sglang_nightjar.agent.link import Link
from sglang_nightjar.core.messages import Arrivals


def test_arrivals_are_added_up_and_reported_even_if_the_policy_process_comes_late(tmp_path: Path) -> None:
    path = tmp_path / "policy"

    async def arrive(router: Router) -> None:
        for _ in range(3):
            reporter.note(2, 100)
        await asyncio.sleep(0.2)
        assert reporter.reported == 0
        with router:
            while reporter.reported < 6:
                await asyncio.sleep(0.01)
            router.wait_for(lambda: router.of(Arrivals))

    link = Link(f"ipc://{path}")
    try:
        reporter, router = ArrivalReporter(link, "server/tokenizer0/x"), Router(path)
        asyncio.run(asyncio.wait_for(arrive(router), 10))
    finally:
        link.close()
    [report] = router.of(Arrivals)
    assert (report.requests, report.prompt_tokens) == (6, 300)
    assert report.interval_ns >= 150_000_000


def test_what_nobody_took_within_a_second_is_forgotten(tmp_path: Path) -> None:
    async def arrive() -> None:
        reporter.note(2, 100)
        await asyncio.sleep(1.3)

    link = Link(f"ipc://{tmp_path / 'policy'}")
    try:
        reporter = ArrivalReporter(link, "server/tokenizer0/x")
        asyncio.run(arrive())
        assert reporter._requests == 0
    finally:
        link.close()
