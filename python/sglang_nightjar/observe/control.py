"""Ask the policy process something, from an asyncio program, and never wait for it longer than a moment."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from sglang_nightjar.core.messages import MAX_REPLY_BYTES, Reply, Request, make_sender_id
from sglang_nightjar.core.wire import WireError, decode, encode
from sglang_nightjar.policy import endpoint as endpoints


class NoAnswer(Exception):
    """The policy process did not answer in time: it is down, frozen or overloaded. The text is a clause."""


@dataclass(frozen=True)
class PolicyControl:
    """The control side of one policy process.

    Attributes:
        endpoint: its ZMQ endpoint.
        server: id of our server, for its log.
        keys: directory with CURVE keys, for ``tcp://``.
    """

    endpoint: str
    server: str
    keys: Path | None = None

    async def ask(self, op: str, args: dict[str, Any] | None = None, timeout: float = 1.0) -> Reply:
        """The reply to ``op`` (docs/wire-protocol.md, "Control"), within ``timeout`` seconds. Raises NoAnswer."""
        # A socket of its own for every request: what could not be delivered goes away with it. A change of policy
        # that was reported as failed must not happen a minute later.
        socket = endpoints.connect(zmq.asyncio.Context.instance(), self.endpoint, self.keys)
        try:
            request = Request(make_sender_id(self.server, "control"), 1, op, args or {})
            return await asyncio.wait_for(self._exchange(socket, request), timeout)
        except (TimeoutError, zmq.ZMQError) as error:
            why = str(error) or f"no answer within {timeout:g} s"
            raise NoAnswer(f"the policy process at {self.endpoint} can't be reached: {why}") from None
        finally:
            socket.close(0)

    @staticmethod
    async def _exchange(socket: Any, request: Request) -> Reply:
        await socket.send(encode(request))
        while True:
            try:
                message = decode(await socket.recv(), MAX_REPLY_BYTES)
            except WireError:
                continue
            if isinstance(message, Reply) and message.seq == request.seq:
                return message
