"""The control side of a policy process, answering what a test tells it to."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from sglang_nightjar.core.messages import Reply, Request
from sglang_nightjar.core.wire import decode, encode
from sglang_nightjar.policy.endpoint import Router

Answer = Callable[[str, dict[str, Any]], Reply]


class FakePolicyProcess:
    """Use it in a ``with`` block; ``answer(op, args)`` makes each reply (its seq is filled in).

    Attributes:
        endpoint: where it listens.
        asked: the requests that came.
    """

    def __init__(self, directory: Path, answer: Answer):
        self.endpoint = f"ipc://{directory}/sock"
        self.asked: list[Request] = []
        self._answer = answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "FakePolicyProcess":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _serve(self) -> None:
        context = zmq.Context()
        router = Router(context, self.endpoint)
        while not self._stop.is_set():
            if not router.socket.poll(20):
                continue
            who, frame = router.socket.recv_multipart()
            request = decode(frame)
            assert isinstance(request, Request)
            self.asked.append(request)
            reply = self._answer(request.op, request.args)
            router.socket.send_multipart([who, encode(Reply(request.seq, reply.ok, reply.error, reply.body))])
        router.close()
        context.term()
