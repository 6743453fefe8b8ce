"""Many clients at once, many of whom hang up: nothing leaks, nothing is stuck, and what is finished is right."""

import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request

import pytest
from helpers.serving import Server

pytestmark = pytest.mark.server

CLIENTS = 64
REQUESTS_EACH = 2


class Client(threading.Thread):
    """Streams some requests, one after the other; hangs up on about half of them, at a random moment."""

    def __init__(self, server: Server, number: int):
        super().__init__(daemon=True)
        self.host = server.url.removeprefix("http://")
        self.random = random.Random(number)
        self.finished = 0
        self.cancelled = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for _ in range(REQUESTS_EACH):
                self.request()
        except Exception as error:
            self.error = error

    def request(self) -> None:
        length = self.random.randint(4, 24)
        hang_up_after = self.random.randint(0, 12) if self.random.random() < 0.5 else None
        words = " ".join(self.random.choices(["red", "stone", "river", "seven", "cloud", "bread"], k=length))
        body = {
            "text": f"Write about {words}.",
            "sampling_params": {
                "temperature": self.random.choice([0, 0.8]),
                "max_new_tokens": length,
                "ignore_eos": True,
            },
            "stream": True,
        }
        connection = http.client.HTTPConnection(self.host, timeout=300)
        connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
        if hang_up_after == 0:
            connection.close()
            self.cancelled += 1
            return
        response = connection.getresponse()
        assert response.status == 200
        chunks = 0
        last = None
        while line := response.readline():
            if line.startswith(b"data: {"):
                last = json.loads(line[6:])
                chunks += 1
                if chunks == hang_up_after:
                    connection.close()
                    self.cancelled += 1
                    return
        assert last is not None
        assert last["meta_info"]["completion_tokens"] == length
        self.finished += 1


def test_64_clients_that_hang_up(server: Server) -> None:
    """The server checks its pools after every iteration (STRICT_CHECKS): a leak would end it."""
    clients = [Client(server, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(600)
    assert not [client for client in clients if client.is_alive()]
    assert not [client.error for client in clients if client.error]
    assert sum(client.finished for client in clients) > CLIENTS // 2
    assert sum(client.cancelled for client in clients) > CLIENTS // 4
    assert sum(client.finished + client.cancelled for client in clients) == CLIENTS * REQUESTS_EACH

    # The cache can be flushed only if no request is left anywhere.
    deadline = time.monotonic() + 30
    while not flushed(server):
        assert time.monotonic() < deadline, "some request is stuck"
        time.sleep(0.5)
    assert server.process.poll() is None
    assert "leak" not in server.log.read_text().lower()
    assert server.generate("The capital of France is", max_new_tokens=2)["text"].strip().startswith("Paris")


def flushed(server: Server) -> bool:
    try:
        urllib.request.urlopen(server.url + "/flush_cache", data=b"", timeout=60).close()
        return True
    except urllib.error.HTTPError:
        return False
