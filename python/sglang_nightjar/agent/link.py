"""The socket to the policy process, used from the scheduler's own thread and therefore never waiting.

Sends and receives are NOBLOCK calls that hand a message to ZMQ's I/O thread, which has no use for Python's lock: a
Python thread of our own would compete with the scheduler for it.
"""

import enum
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import zmq
import zmq.auth

from sglang_nightjar.core import messages
from sglang_nightjar.errors import ConfigError

logger = logging.getLogger(__name__)

#: Frames that wait in ZMQ for a slow policy process; what comes after them waits with us, and is bounded there.
SEND_QUEUE = 64

#: Frames from the policy process that wait for the scheduler, which may compute for seconds. ZMQ makes the sender wait
#: when they are full, so nothing grows without bound.
RECEIVE_QUEUE = 256

#: Most frames read at once: a flood of rubbish must not hold up an iteration.
RECEIVE_AT_ONCE = 16

_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH


class LinkState(enum.Enum):
    """Whether there is a policy process at the other end."""

    CONNECTING = "connecting"
    UP = "up"
    #: Connected, but no sign of life: frozen, overloaded, or not what it should be.
    STALE = "stale"


class Link:
    """A DEALER that finds the policy process again by itself whenever it went away.

    Attributes:
        sent: frames handed to ZMQ.
        connections: how often a connection was made.
    """

    def __init__(self, endpoint: str, keys: Path | None = None):
        """``keys`` is a directory that `nightjar policy keys` made. Raises ConfigError for ``tcp://`` without keys."""
        self.endpoint = endpoint
        self.sent = 0
        self.connections = 0
        self._connected = False
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        # Without it frames for a policy process that is away would pile up, and be old news when it returns.
        self._socket.immediate = True
        self._socket.sndhwm = SEND_QUEUE
        self._socket.rcvhwm = RECEIVE_QUEUE
        self._socket.maxmsgsize = 16 * messages.MAX_FRAME_BYTES
        self._socket.reconnect_ivl = 50
        self._socket.reconnect_ivl_max = 500
        if endpoint.startswith("tcp://"):
            # A cable that was pulled says nothing; on one machine the kernel tells.
            self._socket.heartbeat_ivl = 1000
            self._socket.heartbeat_timeout = 5000
            _use_keys(self._socket, endpoint, keys)
        self._monitor = self._socket.get_monitor_socket(_EVENTS)
        self._socket.connect(endpoint)

    @property
    def connected(self) -> bool:
        return self._connected

    def notice_events(self) -> bool:
        """Look whether the connection came or went; return whether a new one was made."""
        made = False
        # Asking costs 1 µs, a receive in vain 3 µs.
        while _readable(self._monitor):
            event, _address = self._monitor.recv_multipart(zmq.NOBLOCK)
            number = int.from_bytes(event[:2], "little")
            self._connected = number == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self._connected:
                made = True
                self.connections += 1
            elif number == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                rate_limited.warning("the policy process at %s did not accept our key", self.endpoint)
        return made

    def send(self, frame: bytes) -> bool:
        """Hand ``frame`` to ZMQ; False if it can take no more now, or nobody is there."""
        try:
            self._socket.send(frame, zmq.NOBLOCK, copy=True)
        except zmq.Again:
            return False
        self.sent += 1
        return True

    def receive(self) -> Iterator[bytes]:
        """The frames that have arrived, at most RECEIVE_AT_ONCE."""
        for _ in range(RECEIVE_AT_ONCE):
            if not _readable(self._socket):
                return
            yield self._socket.recv(zmq.NOBLOCK)

    def close(self) -> None:
        """Close without waiting; what was not sent is dropped."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()


def _readable(socket: zmq.Socket) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _use_keys(socket: zmq.Socket, endpoint: str, keys: Path | None) -> None:
    if keys is None:
        raise ConfigError(f"{endpoint}: tcp:// needs keys (`nightjar policy keys DIR`, link.keys in the config)")
    try:
        socket.curve_publickey, socket.curve_secretkey = zmq.auth.load_certificate(keys / "client.key_secret")
        socket.curve_serverkey, _ = zmq.auth.load_certificate(keys / "server.key")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{endpoint}: the keys in {keys} can't be used: {error}") from None


class OncePerMinute:
    """Warnings of one kind at most once a minute; the next one says how many were left out."""

    def __init__(self, period_s: float = 60.0):
        self._period_s = period_s
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, template: str, *args: object) -> None:
        """Log ``template % args`` unless a warning with this template was logged less than a minute ago."""
        now = time.monotonic()
        if now < self._next.get(template, 0.0):
            self._left_out[template] = self._left_out.get(template, 0) + 1
            return
        self._next[template] = now + self._period_s
        left_out = self._left_out.pop(template, 0)
        logger.warning("Nightjar: " + template + (f" ({left_out} more like this)" if left_out else ""), *args)


rate_limited = OncePerMinute()
