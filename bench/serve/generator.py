"""The load generator, a program of its own: ``python -m bench.serve.generator JOB.json OUTCOME.json``.

Apart from the one who measures, so that it can be given a lock or a processor (``--around``), so that nothing else
runs in its event loop, and so that its CPU time is its own. Ends with 130 on Ctrl-C, and then writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import uvloop

from bench.serve.client import Client
from bench.serve.job import Answer, Job, Outcome, Sample

_SAMPLE_EVERY = 1.0
_HEARTBEAT = 0.05
#: Seconds between connecting and the first arrival, so that setting up is not part of the load.
_LEAD = 0.5


async def run(job: Job) -> Outcome:
    """Sends the load and waits for the last answer."""
    origin = time.perf_counter() + _LEAD
    began = time.time() + _LEAD

    def clock() -> float:
        return time.perf_counter() - origin

    samples: list[Sample] = []
    lag = _Lag(clock)
    async with Client(job, clock) as client:
        await client.sample()
        beside = [asyncio.create_task(client.sample_every(_SAMPLE_EVERY, samples)), asyncio.create_task(lag.watch())]
        cpu = time.process_time()
        try:
            load = _closed_loop if job.clients else _open_loop
            answers = await load(job, client, clock)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        return Outcome(began, answers, samples, clock(), time.process_time() - cpu, lag.worst)


async def _until(moment: float, clock: Callable[[], float]) -> None:
    # Again, if need be: uvloop's timers are in whole milliseconds, and may be early.
    while (wait := moment - clock()) > 0:
        await asyncio.sleep(wait)


async def _open_loop(job: Job, client: Client, clock: Callable[[], float]) -> list[Answer]:
    """Every request at its time, whatever became of those before it."""
    answers = [Answer(index, request.at) for index, request in enumerate(job.requests)]
    bodies = [client.prepared(index) for index in range(len(job.requests))]
    async with asyncio.TaskGroup() as tasks:
        for answer, body in zip(answers, bodies, strict=True):
            await _until(answer.due, clock)
            tasks.create_task(client.ask(answer, body))
        # An idle end of the load belongs to it.
        await _until(job.seconds, clock)
    return answers


async def _closed_loop(job: Job, client: Client, clock: Callable[[], float]) -> list[Answer]:
    """As many requests at a time as ``job.clients`` says."""
    most = max(phase.clients for phase in job.clients)
    starts = [sum(phase.seconds for phase in job.clients[:i]) for i in range(len(job.clients))]
    answers: list[Answer] = []

    async def one(number: int) -> None:
        """Client ``number`` works in the phases that have more clients than that."""
        turn = 0
        for start, phase in zip(starts, job.clients, strict=True):
            if number >= phase.clients:
                continue
            await _until(start, clock)
            due = max(start, clock())
            while due < start + phase.seconds:
                answer = Answer((number + turn * most) % len(job.requests), due)
                turn += 1
                answers.append(answer)
                await client.ask(answer, client.prepared(answer.request))
                due = clock()

    async with asyncio.TaskGroup() as tasks:
        for number in range(most):
            tasks.create_task(one(number))
        await _until(job.seconds, clock)
    return sorted(answers, key=lambda answer: answer.due)


class _Lag:
    """How long the event loop did not come round at worst: then what was due was sent late, and what came seen late."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self.worst = clock, 0.0

    async def watch(self) -> None:
        while True:
            before = self._clock()
            await asyncio.sleep(_HEARTBEAT)
            self.worst = max(self.worst, self._clock() - before - _HEARTBEAT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("outcome", type=Path)
    args = parser.parse_args()
    job = Job.read(args.job)
    # A collection would stop the event loop just when many requests are on their way.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        outcome = uvloop.run(run(job))
    except KeyboardInterrupt:
        return 130
    args.outcome.write_bytes(orjson.dumps(outcome.as_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
