"""One streamed request, with the time of every piece. Lean: the generator shares the machine with the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson

from bench.serve.job import Answer, Job, Sample

_DATA, _DONE = b"data: ", b"[DONE]"


class Client:
    """Talks to the server of a job. Use it in an ``async with`` block."""

    def __init__(self, job: Job, clock: Callable[[], float]) -> None:
        """``clock`` gives the seconds since the beginning of the load."""
        self._job, self._clock = job, clock

    async def __aenter__(self) -> Client:
        headers = {"Authorization": f"Bearer {self._job.key}"} if self._job.key else {}
        # No limit on connections: one would make an open loop wait for answers. And none is used twice: a server closes
        # those that rest for some seconds, now and then in the moment in which one is used again.
        self._session = aiohttp.ClientSession(
            self._job.url,
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=self._job.timeout),
            read_bufsize=1 << 20,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def prepared(self, request: int) -> bytes:
        """The body of a request, made ahead so that sending is all that is left to do when it is due."""
        wanted = self._job.requests[request]
        sampling: dict[str, Any] = {"temperature": self._job.temperature, "max_new_tokens": wanted.new_tokens}
        if self._job.forced:
            sampling["ignore_eos"] = True
        return orjson.dumps({"input_ids": wanted.prompt, "sampling_params": sampling, "stream": True})

    async def ask(self, answer: Answer, body: bytes) -> None:
        """Send a request and fill ``answer``; what goes wrong is in its ``error``, nothing is raised."""
        answer.sent = self._clock()
        try:
            headers = {"Content-Type": "application/json"}
            async with self._session.post("/generate", data=body, headers=headers) as response:
                if response.status != 200:
                    answer.error = f"status {response.status}: {(await response.text())[:200]}"
                    return
                await self._read(answer, response)
        except TimeoutError:
            answer.error = f"no whole answer within {self._job.timeout:g} s"
        except (aiohttp.ClientError, ValueError, KeyError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        finally:
            answer.ended = self._clock()

    async def _read(self, answer: Answer, response: aiohttp.ClientResponse) -> None:
        meta: dict[str, Any] = {}
        async for line in response.content:
            if not line.startswith(_DATA) or line.startswith(_DONE, len(_DATA)):
                continue
            piece = orjson.loads(line[len(_DATA) :])
            if "error" in piece:
                answer.error = str(piece["error"])[:200]
                return
            meta = piece["meta_info"]
            made = meta["completion_tokens"]
            if not answer.pieces or made > answer.pieces[-1][1]:
                answer.pieces.append((self._clock(), made))
            answer.tokens = piece["output_ids"]
        answer.finish = (meta.get("finish_reason") or {}).get("type", "")
        answer.retractions = meta.get("num_retractions", 0)
        answer.cached = meta.get("cached_tokens", 0)
        answer.verify_steps = meta.get("spec_verify_ct", 0)
        answer.proposed = meta.get("spec_num_proposed_drafts", 0)
        answer.accepted = meta.get("spec_num_correct_drafts", 0)

    async def sample(self) -> Sample | None:
        """The server's load now; None if it does not say."""
        try:
            async with self._session.get("/v1/loads?include=core") as response:
                loads = orjson.loads(await response.read())["loads"]
        except (TimeoutError, aiohttp.ClientError, ValueError, KeyError):
            return None

        def total(key: str) -> int:
            return sum(load.get(key, 0) for load in loads)

        return Sample(
            self._clock(),
            total("num_running_reqs"),
            total("num_waiting_reqs"),
            total("num_used_tokens"),
            total("max_total_num_tokens"),
        )

    async def sample_every(self, seconds: float, into: list[Sample]) -> None:
        """Goes on until it is cancelled."""
        while True:
            if (sample := await self.sample()) is not None:
                into.append(sample)
            await asyncio.sleep(seconds)
