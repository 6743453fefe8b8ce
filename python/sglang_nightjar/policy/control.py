"""Answers control requests: status, decisions, and which policy is in charge (docs/wire-protocol.md, "Control")."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_nightjar.core import strict, wire
from sglang_nightjar.core.messages import MAX_REPLY_BYTES, Hello, Reply, Request, Residency
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy import loader
from sglang_nightjar.policy.config_file import PolicySection
from sglang_nightjar.version import __version__

if TYPE_CHECKING:
    from sglang_nightjar.policy.charge import Slot
    from sglang_nightjar.policy.roster import Sender
    from sglang_nightjar.policy.server import Server


@dataclasses.dataclass(frozen=True)
class _DecisionsArgs:
    n: int = dataclasses.field(default=20, metadata={"min": 1, "max": 1000})


@dataclasses.dataclass(frozen=True)
class _SetArgs:
    name: str | None = None
    path: str | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.name is None) == (self.path is None):
            raise ValueError("exactly one of name and path must be set")
        if self.path is not None and not Path(self.path).is_absolute():
            raise ValueError(f"path: {strict.show(self.path)} must be absolute")


class Control:
    """Answers requests at once, ``policy_set`` when it has been done."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def answer(self, route: bytes, request: Request) -> None:
        """Answer one request on its connection."""
        try:
            body = self._do(route, request)
        except ConfigError as error:
            self._reply(route, Reply(request.seq, False, str(error), self._failure_body(request)))
            return
        if body is not None:
            self._reply(route, Reply(request.seq, True, "", body))

    def _do(self, route: bytes, request: Request) -> dict[str, Any] | None:
        if request.op == "decisions":
            return {"decisions": self._decisions(strict.build(_DecisionsArgs, request.args, "decisions").n)}
        if request.op == "policy_set":
            self._set(route, request)
            return None
        simple = {
            "status": self.status,
            "policy_get": lambda: self._server.charge.current.as_json(),
            "policy_list": self._list,
        }
        if request.op not in simple:
            allowed = ", ".join(sorted([*simple, "decisions", "policy_set"]))
            raise ConfigError(f"op: {strict.show(request.op)} must be one of {allowed}")
        if request.args:
            raise ConfigError(f"args: {request.op} takes none, not {strict.show(request.args)}")
        return simple[request.op]()

    def status(self) -> dict[str, Any]:
        """Everything at a glance."""
        server, now = self._server, time.monotonic()
        counters = dict.fromkeys(
            ("frames", "records", "plans", "malformed", "oversized", "version", "replayed", "unroutable"), 0
        ) | dict(server.counters)
        slots = server.charge.slots()
        counters["policy_swaps"] = server.charge.swaps
        counters["policy_errors"] = server.charge.failures
        counters["policy_restarts"] = sum(slot.restarts for slot in slots)
        counters["backlog_dropped"] = sum(host.dropped for host in server.charge.hosts())
        log = server.log.log
        counters["log_dropped"] = log.dropped if log is not None else 0
        return {
            "process": server.process,
            "pid": os.getpid(),
            "uptime_s": round(now - server.started, 3),
            "endpoint": server.endpoint,
            "version": __version__,
            "policy": server.charge.current.as_json(),
            "shadow": [slot.as_json() for slot in server.charge.shadows],
            "agents": [self._agent(sender, hello, now) for sender, hello in server.roster.agents()],
            "counters": counters,
            "log": {
                "path": str(log.path) if log is not None else None,
                "bytes": log.bytes if log is not None else 0,
                "error": log.error if log is not None else "",
            },
            "config": {"path": str(server.live.path) if server.live.path else None, "error": server.live.error},
        }

    def _agent(self, sender: Sender, hello: Hello, now: float) -> dict[str, Any]:
        record, plan = sender.record, sender.plan
        return {
            "sender": sender.sender,
            "server": hello.server,
            "dp_rank": hello.dp_rank,
            "target": hello.target,
            "draft": hello.draft,
            "hardware": hello.hardware,
            "candidates": hello.candidates,
            "seen_s": round(now - sender.seen, 3),
            "batch_size": record.batch_size if record is not None else None,
            "gamma": record.gamma if record is not None else None,
            "residency": Residency(record.residency).name if record is not None else None,
            "plan_id": plan.plan_id if plan is not None else 0,
            "plan": dataclasses.asdict(plan) if plan is not None else None,
            "applied_plan_id": sender.applied,
            "refused": sender.refused,
            "records": sender.records,
            "dropped": sender.dropped,
            "rejected": sender.replayed,
        }

    def _decisions(self, n: int) -> list[dict[str, Any]]:
        last = list(self._server.outbox.decisions)[-n:]
        return [
            {
                "at": at,
                "sender": verdict.sender,
                "policy": policy,
                "shadow": shadow,
                "plan_id": plan_id,
                "gammas": verdict.gammas,
                "residency": verdict.residency,
                "trim": verdict.trim,
                "reason": verdict.reason,
                "batch_size": verdict.batch_size,
                "gamma": verdict.gamma,
            }
            for at, policy, shadow, plan_id, verdict in last
        ]

    def _set(self, route: bytes, request: Request) -> None:
        args = strict.build(_SetArgs, request.args, "")
        # What is not said stays as the config has it.
        limits = self._server.config.policy
        spec = PolicySection(
            name=args.name, path=args.path, params=args.params,
            seed=limits.seed, timeout=limits.timeout, memory_mb=limits.memory_mb, state=limits.state,
        )  # fmt: skip

        def done(slot: Slot, why: str) -> None:
            self._reply(route, Reply(request.seq, not why, why, slot.as_json()))

        self._server.charge.set(spec, done)

    def _failure_body(self, request: Request) -> dict[str, Any]:
        return self._server.charge.current.as_json() if request.op == "policy_set" else {}

    @staticmethod
    def _list() -> dict[str, Any]:
        return {"policies": [{"name": name, "summary": text} for name, text in loader.available().items()]}

    def _reply(self, route: bytes, reply: Reply) -> None:
        frame = wire.encode(reply)
        if len(frame) > MAX_REPLY_BYTES:
            frame = wire.encode(Reply(reply.seq, False, f"the answer weighs more than {MAX_REPLY_BYTES} bytes"))
        self._server.outbox.send(route, frame)
