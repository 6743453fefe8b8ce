"""The load generator against a server that takes as long as a test wants."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import uvloop
from aiohttp import web

from bench.serve import generator
from bench.serve.job import Clients, Job, Outcome, Request

ROOT = Path(__file__).resolve().parents[2]


class SlowServer:
    """Answers ``/generate`` like SGLang, one token every ``gap`` s; says how many it answers at a time.

    Attributes:
        most: the most requests at a time.
        bodies: what was asked.
        fail: requests with this many new tokens fail.
    """

    def __init__(self, gap: float) -> None:
        self.gap, self.now, self.most, self.bodies = gap, 0, 0, []
        self.fail = -1
        self.url = ""

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        tokens = body["sampling_params"]["max_new_tokens"]
        if tokens == self.fail:
            return web.json_response({"error": "planted"}, status=500)
        self.now += 1
        self.most = max(self.most, self.now)
        response = web.StreamResponse()
        await response.prepare(request)
        for made in range(1, tokens + 1):
            await asyncio.sleep(self.gap)
            meta = {"completion_tokens": made, "finish_reason": {"type": "length"} if made == tokens else None}
            meta |= {"spec_verify_ct": 3, "spec_num_proposed_drafts": 6, "spec_num_correct_drafts": 2}
            piece = {"output_ids": list(range(made)), "meta_info": meta}
            await response.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        self.now -= 1
        return response

    async def loads(self, _request: web.Request) -> web.Response:
        load = {"num_running_reqs": self.now, "num_waiting_reqs": 0, "num_used_tokens": 5, "max_total_num_tokens": 9}
        return web.json_response({"loads": [load]})


@asynccontextmanager
async def serving(gap: float) -> AsyncIterator[SlowServer]:
    server = SlowServer(gap)
    app = web.Application()
    app.add_routes([web.post("/generate", server.generate), web.get("/v1/loads", server.loads)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


def play(gap: float, fail: int = -1, **job: object) -> tuple[Outcome, SlowServer]:
    async def both() -> tuple[Outcome, SlowServer]:
        async with serving(gap) as server:
            server.fail = fail
            return await generator.run(Job(server.url, **job)), server  # type: ignore[arg-type]

    # As the generator's own process does.
    return uvloop.run(both())


def test_an_open_loop_does_not_wait_for_answers() -> None:
    requests = [Request(0.1 * i, [1, 2, i], 4) for i in range(10)]
    outcome, server = play(0.5, requests=requests, seconds=1.0)
    # Each answer takes two seconds, and all ten were sent within one.
    assert server.most == 10
    assert [a.due for a in outcome.answers] == [r.at for r in requests]
    assert all(0 <= a.sent - a.due < 0.1 for a in outcome.answers)
    assert [body["input_ids"] for body in server.bodies] == [r.prompt for r in requests]
    for answer in outcome.answers:
        assert [count for _, count in answer.pieces] == [1, 2, 3, 4]
        assert all(0.4 < b - a < 1.0 for (a, _), (b, _) in itertools.pairwise(answer.pieces))
        assert (answer.tokens, answer.finish, answer.error) == ([0, 1, 2, 3], "length", "")
        assert (answer.verify_steps, answer.proposed, answer.accepted) == (3, 6, 2)
    assert outcome.wall_s >= 2.9 and 0 < outcome.cpu_s < 1.0
    assert {(s.kv_used, s.kv_capacity) for s in outcome.samples} == {(5, 9)} and len(outcome.samples) >= 3


def test_the_idle_end_of_a_load_belongs_to_it() -> None:
    outcome, _ = play(0.01, requests=[Request(0.0, [1], 2)], seconds=1.2)
    assert 1.2 <= outcome.wall_s < 2.0


def test_a_closed_loop_keeps_its_number_of_clients() -> None:
    requests = [Request(0.0, [i], 2) for i in range(12)]
    clients = [Clients(0.6, 1), Clients(0.8, 4), Clients(0.6, 1)]
    outcome, server = play(0.05, requests=requests, seconds=2.0, clients=clients)
    assert server.most == 4

    def at_a_time(moment: float) -> int:
        return sum(a.sent <= moment < a.ended for a in outcome.answers)

    assert [max(at_a_time(start + 0.01 * i) for i in range(20, 50)) for start in (0.0, 0.6, 1.4)] == [1, 4, 1]
    # Client 0 sends requests 0, 4, 8, 0, ... whatever the others do.
    alone = [a.request for a in outcome.answers if a.due < 0.6]
    assert len(alone) >= 4 and alone == ([0, 4, 8] * 5)[: len(alone)]
    assert all(a.due < 2.0 for a in outcome.answers)


def test_a_failed_request_is_an_answer_with_an_error() -> None:
    requests = [Request(0.0, [1], 2), Request(0.05, [1], 3), Request(0.1, [1], 2)]
    outcome, _ = play(0.02, fail=3, requests=requests, seconds=0.3)
    assert [bool(a.error) for a in outcome.answers] == [False, True, False]
    assert "500" in outcome.answers[1].error and "planted" in outcome.answers[1].error


def test_a_server_that_hangs_is_a_failed_request() -> None:
    outcome, _ = play(5.0, requests=[Request(0.0, [1], 2)], seconds=0.1, timeout=0.5)
    assert "no whole answer within 0.5 s" in outcome.answers[0].error


def test_a_server_that_is_gone_is_a_failed_request() -> None:
    outcome = asyncio.run(generator.run(Job("http://127.0.0.1:9", [Request(0.0, [1], 2)], seconds=0.1)))
    assert "Cannot connect" in outcome.answers[0].error and outcome.samples == []


def test_outcomes_travel_whole(tmp_path: Path) -> None:
    outcome, _ = play(0.01, requests=[Request(0.0, [1], 2)], seconds=0.1)
    assert Outcome.from_json(json.loads(json.dumps(outcome.as_json()))) == outcome
    job = Job("http://x", [Request(0.5, [1], 2)], 1.0, [Clients(1.0, 2)])
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job


def test_an_interrupted_generator_writes_nothing(tmp_path: Path) -> None:
    Job("http://127.0.0.1:9", [Request(30.0, [1], 2)], seconds=60.0).write(tmp_path / "job.json")
    command = [sys.executable, "-m", "bench.serve.generator", str(tmp_path / "job.json"), str(tmp_path / "out.json")]
    # What a shell puts into the background ignores SIGINT, and what is started from there inherits that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=heed) as process:
        # Python alone takes seconds to start on a busy machine; the load's first request is due after 30.
        time.sleep(10)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    assert not (tmp_path / "out.json").exists()
