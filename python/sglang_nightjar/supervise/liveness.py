"""Whether the policy process still answers, asked once a second by whoever supervises it."""

import zmq

from sglang_nightjar.core.messages import Request, make_sender_id
from sglang_nightjar.core.wire import encode
from sglang_nightjar.policy import endpoint as endpoints

# It answers in a millisecond, but on a crowded machine its start alone takes half a minute.
PATIENCE_CHECKS = 60


class Liveness:
    """Counts checks without an answer, not seconds: if this process was frozen too, nobody is to blame."""

    def __init__(self, endpoint: str, server: str):
        self._endpoint = endpoint
        self._server = server
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None
        self._silent = 0

    def restart(self) -> None:
        """The process is started anew."""
        self.close()
        self._silent = 0

    def is_broken(self) -> str | None:
        """Ask it, and say so if it has not answered for a minute. Never waits."""
        if self._socket is None:
            self._socket = endpoints.connect(self._context, self._endpoint)
            self._sender, self._asked = make_sender_id(self._server, "supervisor"), 0
        self._silent += 1
        try:
            while self._socket.recv(zmq.DONTWAIT):
                self._silent = 0
        except zmq.Again:
            pass
        try:
            self._asked += 1
            self._socket.send(encode(Request(self._sender, self._asked, "policy_get")), zmq.DONTWAIT)
        except zmq.Again:
            pass
        return f"it did not answer for {PATIENCE_CHECKS} s" if self._silent >= PATIENCE_CHECKS else None

    def close(self) -> None:
        """Close the connection; the next check makes another."""
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
