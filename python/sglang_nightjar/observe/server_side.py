"""What the HTTP routes need to know, asked of the schedulers and of the policy process with a bound on the waiting."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sglang_nightjar.config import OFF
from sglang_nightjar.core.messages import Reply
from sglang_nightjar.observe.control import NoAnswer, PolicyControl
from sglang_nightjar.observe.status import PolicySide, State, build
from sglang_nightjar.supervise.policy_process import PolicySetup

# Seconds. A policy process answers in a millisecond; a scheduler between two steps, and a long prefill is one step.
STATUS_TIMEOUT = 1.0
SCHEDULER_TIMEOUT = 5.0
# Loading, checking and warming a policy takes time; the policy process itself gives up after 20 s.
SWAP_TIMEOUT = 25.0

InternalStates = Callable[[], Awaitable[list[dict[str, Any]]]]


class NotSteered(Exception):
    """Nobody steers this server, so there is no policy to ask or to replace. The text is a sentence."""


class ServerSide:
    """One server, as seen from its HTTP process."""

    def __init__(self, setup: PolicySetup, internal_states: InternalStates):
        """``internal_states`` asks all schedulers for their state (one dict per DP rank)."""
        self._setup = setup
        self._internal_states = internal_states
        self._asking: asyncio.Task[list[dict[str, Any]]] | None = None
        self._control = PolicyControl(setup.endpoint, setup.server, setup.keys) if setup.endpoint is not None else None

    async def status(self) -> dict[str, Any]:
        """The object of ``GET /nightjar/status``. Answers also while the policy process or a scheduler does not."""
        policy, (states, trouble) = await asyncio.gather(self.policy_side(), self._schedulers())
        return build(policy, states, trouble)

    async def ask(self, op: str, args: dict[str, Any], timeout: float) -> Reply:
        """Ask the policy process. Raises NoAnswer, and NotSteered if there is none."""
        if self._control is None:
            raise NotSteered(
                f"No policy steers this server: {self._setup.detail}. Start it with another --nightjar-policy."
            )
        return await self._control.ask(op, args, timeout)

    async def policy_in_charge(self) -> dict[str, Any]:
        """``policy`` of the status, alone."""
        return build(await self.policy_side(), [])["policy"]

    async def policy_side(self) -> PolicySide:
        """What is known about the policy process, which is asked and may not answer."""
        setup = self._setup
        if self._control is None:
            return PolicySide("running", wanted=OFF, detail=setup.detail)
        restarts = setup.supervisor.restarts if setup.supervisor else 0
        try:
            reply = await self._control.ask("status", timeout=STATUS_TIMEOUT)
        except NoAnswer as error:
            state: State = "restarting" if setup.supervisor else "down"
            return PolicySide(state, {}, setup.policy, str(error), self._control.endpoint, restarts)
        return PolicySide("running", reply.body, setup.policy, reply.error, self._control.endpoint, restarts)

    async def _schedulers(self) -> tuple[list[dict[str, Any]], str]:
        # SGLang's question can't be withdrawn, so it is asked once and whoever wants the answer waits for that one.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._internal_states())
        try:
            return await asyncio.wait_for(asyncio.shield(self._asking), SCHEDULER_TIMEOUT), ""
        except TimeoutError:
            return [], f"the schedulers did not answer within {SCHEDULER_TIMEOUT:g} s"
