"""Clients that keep a server busy, and remember every answer."""

import http.client
import json
import threading
import time
from dataclasses import dataclass, field

from helpers.serving import Server


@dataclass
class Answer:
    """One finished request.

    Attributes:
        prompt: index into the prompts.
        tokens: what was generated.
        gaps_s: (when, how long) between two pieces of its text, by the monotonic clock.
    """

    prompt: int
    tokens: list[int]
    gaps_s: list[tuple[float, float]] = field(default_factory=list)


class Load:
    """``clients`` threads that send greedy requests, one after the other, as long as the ``with`` block lasts.

    Attributes:
        answers: what was finished.
        errors: what went wrong; a test expects none.
    """

    def __init__(self, server: Server, prompts: list[list[int]], clients: int = 4, new_tokens: int = 32):
        self.answers: list[Answer] = []
        self.errors: list[Exception] = []
        self._host = server.url.removeprefix("http://")
        self._prompts = prompts
        self._new_tokens = new_tokens
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n, clients), daemon=True) for n in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(300)
        assert not any(thread.is_alive() for thread in self._threads), "a request is stuck"

    def gaps_s(self, since: float, until: float) -> list[float]:
        """The gaps between pieces of text that ended in that time."""
        return [gap for answer in list(self.answers) for at, gap in answer.gaps_s if since <= at <= until]

    def _run(self, number: int, step: int) -> None:
        try:
            while not self._ends.is_set():
                self.answers.append(self._request(number % len(self._prompts)))
                number += step
        except Exception as error:
            self.errors.append(error)

    def _request(self, prompt: int) -> Answer:
        body = {
            "input_ids": self._prompts[prompt],
            "sampling_params": {"temperature": 0, "max_new_tokens": self._new_tokens, "ignore_eos": True},
            "stream": True,
        }
        connection = http.client.HTTPConnection(self._host, timeout=300)
        connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {response.read()[:300]!r}")
        answer, before = Answer(prompt, []), None
        while line := response.readline():
            if not line.startswith(b"data: {"):
                continue
            now = time.monotonic()
            if before is not None:
                answer.gaps_s.append((now, now - before))
            before = now
            answer.tokens = json.loads(line[6:])["output_ids"]
        connection.close()
        if len(answer.tokens) != self._new_tokens:
            raise RuntimeError(f"{len(answer.tokens)} tokens instead of {self._new_tokens}")
        return answer
