"""The socket to the policy process. Nothing here ever waits: every send and receive is a NOBLOCK call."""

import enum
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq
import zmq.backend

from sglang_nightjar.once_a_minute import rate_limited
from sglang_nightjar.policy import endpoint as endpoints

#: Most frames read at once: a flood of rubbish must not hold up an iteration.
RECEIVE_AT_ONCE = 16

#: How often to ask whether the connection came or went; a send that fails is the quicker sign of it.
LOOK_EVERY_S = 0.02

_POLLIN, _POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)


class LinkState(enum.Enum):
    """Whether there is a policy process at the other end."""

    CONNECTING = "connecting"
    UP = "up"
    #: Connected, but no sign of life: frozen, overloaded, or not what it should be.
    STALE = "stale"


class Link:
    """A DEALER that finds the policy process again by itself whenever it went away.

    Attributes:
        connected: whether anybody is at the other end, as of the last `notice_events`.
        sent: frames handed to ZMQ.
        connections: how often a connection was made.
    """

    def __init__(self, endpoint: str, keys: Path | None = None):
        """``keys`` is a directory of CURVE keys. Raises ConfigError for ``tcp://`` without keys."""
        self.endpoint = endpoint
        self.connected = False
        self.sent = 0
        self.connections = 0
        self._context = zmq.Context(io_threads=1)
        # A batch thread pushes nobody off a core when a send wakes it; that cost 100 µs and more.
        self._context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_BATCH)
        self._socket = endpoints.connect(self._context, endpoint, keys)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._socket_events = _events_of(self._socket)
        self._monitor_events = _events_of(self._monitor)
        self._next_look = 0.0

    def notice_events(self) -> bool:
        """Look whether the connection came or went; return whether a new one was made."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY_S
        # Asking costs 1 µs, a receive in vain 3 µs.
        while self._monitor_events() & _POLLIN:
            event, _address = self._monitor.recv_multipart(zmq.NOBLOCK)
            self.connected = False
            if int.from_bytes(event[:2], "little") == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                rate_limited.warning("Nightjar: the policy process at %s does not accept our key", self.endpoint)
        # Without a connection nothing can be sent (the socket is "immediate"), so being able to means there is one.
        if self.connected or not self._socket_events() & _POLLOUT:
            return False
        self.connected = True
        self.connections += 1
        return True

    def send(self, frame: bytes) -> bool:
        """Hand ``frame`` to ZMQ; False if it can take no more now, or nobody is there."""
        try:
            self._socket.send(frame, zmq.NOBLOCK, copy=True)
        except zmq.Again:
            # The first thing that is seen of a policy process that went away.
            self._next_look = 0.0
            return False
        self.sent += 1
        return True

    def receive(self) -> Iterator[bytes]:
        """The frames that have arrived, at most RECEIVE_AT_ONCE."""
        for _ in range(RECEIVE_AT_ONCE):
            if not self._socket_events() & _POLLIN:
                return
            yield self._socket.recv(zmq.NOBLOCK)

    def close(self) -> None:
        """Close without waiting; what was not sent is dropped."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()


def _events_of(socket: zmq.Socket) -> Callable[[], Any]:
    """What is possible on ``socket`` now. pyzmq's own attribute makes an enum of it, at three times the cost."""
    return functools.partial(zmq.backend.Socket.get, socket, int(zmq.EVENTS))
