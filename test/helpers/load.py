"""Clients that keep a server busy, and remember every answer."""

import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from helpers.lossless import Referee
from helpers.serving import Server


@dataclass(frozen=True)
class Answer:
    """One finished request.

    Attributes:
        prompt: index into the prompts.
        tokens: what was generated.
    """

    prompt: int
    tokens: tuple[int, ...]


def stream(server: Server, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """POST /generate; each piece of the answer as it comes. Closing the generator hangs up.

    Raises RuntimeError for a status that is not 200.
    """
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=300)
    try:
        connection.request("POST", "/generate", json.dumps({**body, "stream": True}), server.headers())
        # Whoever asks for nothing more now hangs up before the answer begins.
        yield {}
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {response.read()[:300]!r}")
        while line := response.readline():
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])
    finally:
        connection.close()


class Load:
    """``clients`` threads that send greedy requests, one after the other, as long as the ``with`` block lasts.

    Attributes:
        answers: what was finished.
        errors: what went wrong; a test expects none.
    """

    def __init__(self, server: Server, prompts: list[list[int]], clients: int = 4, new_tokens: int = 32):
        self.answers: list[Answer] = []
        self.errors: list[Exception] = []
        self._server = server
        self._prompts = prompts
        self._new_tokens = new_tokens
        self._judged: set[Answer] = set()
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

    def check(self, referee: Referee) -> None:
        """No request failed, each client had an answer, and every answer so far is the target's own."""
        assert self.errors == []
        assert len(self.answers) >= len(self._threads)
        for answer in set(self.answers) - self._judged:
            assert referee.not_greedy(self._prompts[answer.prompt], list(answer.tokens)) == []
            self._judged.add(answer)

    def _run(self, number: int, step: int) -> None:
        try:
            while not self._ends.is_set():
                self.answers.append(self._request(number % len(self._prompts)))
                number += step
        except Exception as error:
            self.errors.append(error)

    def _request(self, prompt: int) -> Answer:
        sampling = {"temperature": 0, "max_new_tokens": self._new_tokens, "ignore_eos": True}
        tokens: list[int] = []
        for piece in stream(self._server, {"input_ids": self._prompts[prompt], "sampling_params": sampling}):
            tokens = piece.get("output_ids", [])
        if len(tokens) != self._new_tokens:
            raise RuntimeError(f"{len(tokens)} tokens instead of {self._new_tokens}")
        return Answer(prompt, tuple(tokens))
