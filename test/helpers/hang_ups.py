"""Many clients at once, many of whom hang up."""

import random
import threading
import urllib.error
import urllib.request
from contextlib import closing

from helpers.load import stream
from helpers.serving import Server
from helpers.waiting import eventually

CLIENTS = 64
REQUESTS_EACH = 2


class Client(threading.Thread):
    """Streams some requests, one after the other; hangs up on about half of them, at a random moment."""

    def __init__(self, server: Server, number: int):
        super().__init__(daemon=True)
        self.server = server
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
        sampling = {"temperature": self.random.choice([0, 0.8]), "max_new_tokens": length, "ignore_eos": True}
        last = {}
        with closing(stream(self.server, {"text": f"Write about {words}.", "sampling_params": sampling})) as pieces:
            for count, last in enumerate(pieces):  # noqa: B007
                if count == hang_up_after:
                    self.cancelled += 1
                    return
        assert last["meta_info"]["completion_tokens"] == length
        self.finished += 1


def hang_ups(server: Server) -> None:
    """All of them at once; afterwards nothing is stuck or leaked, and what was finished is right.

    The server checks its pools after every iteration (STRICT_CHECKS): a leak would end it.
    """
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
    eventually(lambda: _flushed(server), within=60)
    assert server.process.poll() is None
    assert "leak" not in server.log.read_text().lower()
    assert server.generate("The capital of France is", max_new_tokens=2)["text"].strip().startswith("Paris")


def _flushed(server: Server) -> bool:
    try:
        urllib.request.urlopen(server.url + "/flush_cache", data=b"", timeout=60).close()
        return True
    except urllib.error.HTTPError:
        return False
