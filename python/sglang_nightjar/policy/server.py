"""The loop of the policy process: frames in, to the policies' workers, and plans out. It never waits for a policy."""

import dataclasses
import gc
import logging
import os
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import zmq

from sglang_nightjar.core import wire
from sglang_nightjar.core.messages import (
    Ack,
    Arrivals,
    Hello,
    HelloWanted,
    Message,
    Plan,
    Reply,
    Request,
    TelemetryBatch,
)
from sglang_nightjar.core.policy import nearest_candidate
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.once_a_minute import OnceAMinute
from sglang_nightjar.policy.charge import Charge, Slot
from sglang_nightjar.policy.config_file import Config
from sglang_nightjar.policy.control import Control
from sglang_nightjar.policy.decision_log import LogSwitch
from sglang_nightjar.policy.endpoint import Router
from sglang_nightjar.policy.host import Host
from sglang_nightjar.policy.live_config import LiveConfig
from sglang_nightjar.policy.outbox import Outbox
from sglang_nightjar.policy.roster import Roster, Sender

logger = logging.getLogger(__name__)

_FORGET_AFTER = 60.0
_GREET_EVERY = 0.2
#: Frames taken per round before the workers are looked after again.
_ROUND = 512
#: Frames that a new policy is warmed with: 13 s of one scheduler at 300 iterations a second.
_RECENT = 4096
_OURS = (Plan, HelloWanted, Reply)
#: Every wake-up takes time from those who compute.
_TICK_MS = 100
_SHORTEST_ROUND = 0.0004
_ESTIMATES_EVERY = 1.0
_SAVE_EVERY = 60.0


class Server:
    """The policy process.

    Attributes:
        process: names this start.
        config, charge, roster, outbox, log, counters: its parts, which `Control` shows.
    """

    def __init__(self, context: zmq.Context, config: Config, endpoint: str, config_path: Path | None = None) -> None:
        """Binds, and starts the workers. Raises ConfigError."""
        self.config, self.endpoint = config, endpoint
        self.process = f"{os.uname().nodename}/{os.getpid()}/{time.time_ns()}"
        self.started = time.monotonic()
        self.counters: Counter[str] = Counter()
        self.roster = Roster()
        #: Sender, frame, and the number of records in it.
        self._recent: deque[tuple[str, bytes, int]] = deque(maxlen=_RECENT)
        #: As of the beginning of the round. One that is born within it gets its telemetry from ``_recent``.
        self._hosts: list[Host] = []
        self._said = OnceAMinute(logger)
        self._stopping = False
        self._next_tick = self._next_slow_tick = self._asked_estimates = 0.0
        self._next_save = time.monotonic() + _SAVE_EVERY
        keys = Path(config.link.keys) if config.link.keys else None
        self.router = Router(context, endpoint, keys)
        try:
            self.log = LogSwitch(config.log)
        except ConfigError:
            self.router.close()
            raise
        self.outbox = Outbox(self.router, self.roster, self.log, self.counters)
        self.outbox.stale_after = config.link.stale_after
        self.charge = Charge(config.policy, config.shadow, self._warm)
        self.control = Control(self)
        self.live = LiveConfig(self, config_path)
        self.log.event("start", endpoint=endpoint)

    def run(self) -> None:
        """Serve until `stop`."""
        before = time.monotonic()
        # What is here stays: looking through it for garbage would take milliseconds from plans that somebody waits for.
        gc.collect()
        gc.freeze()
        try:
            while not self._stopping:
                self._poll()
                # Rounds cost more than frames: under load, let some frames gather.
                if (early := before + _SHORTEST_ROUND - time.monotonic()) > 0:
                    time.sleep(early)
                now = time.monotonic()
                if now - before > 0.5:
                    # This process was stopped or starved; so were the workers, perhaps.
                    for host in self.charge.hosts():
                        host.forgive(now - before)
                before = now
                self._round(now)
        finally:
            self.close()

    def stop(self) -> None:
        """Make `run` return soon; for a signal handler."""
        self._stopping = True

    def close(self) -> None:
        """End the workers, remove the socket, write the log."""
        self.charge.close()
        self.router.close()
        self.log.close()

    def set_candidates(self) -> None:
        """The config allows other γ now: tell the policies of every scheduler anew."""
        for sender, _ in self.roster.agents():
            assert sender.offered is not None
            self._introduce(sender, sender.offered)

    def _poll(self) -> None:
        """Wait for something to do."""
        wanted: list[tuple[Any, int]] = [(self.router.socket, zmq.POLLIN)]
        if self.router.zap is not None:
            wanted.append((self.router.zap, zmq.POLLIN))
        for host in self.charge.hosts():
            if host.error is None:
                wanted.append((host.fileno(), zmq.POLLIN | (zmq.POLLOUT if host.wants_to_write else 0)))
        zmq.zmq_poll(wanted, _TICK_MS)

    def _round(self, now: float) -> None:
        while self.router.zap is not None and self.router.zap.poll(0):
            self.router.admit()
        # Decisions first: somebody waits for them.
        self._listen(now)
        at = time.time_ns()
        self._hosts = self.charge.hosts()
        receive, option, more = self.router.socket.recv, self.router.socket.getsockopt, zmq.RCVMORE
        for _ in range(_ROUND):
            try:
                # The parts of a message arrive together. The first is the route, which the ROUTER puts before it.
                route, frame, parts = receive(zmq.DONTWAIT), receive(zmq.DONTWAIT), 1
                while option(more):
                    frame, parts = receive(zmq.DONTWAIT), parts + 1
            except zmq.Again:
                break
            self._take(route, frame, parts, now, at)
        for host in self.charge.hosts():
            host.flush()
        if now >= self._next_tick:
            self._next_tick = now + _TICK_MS / 1000
            self._tick(now)

    def _listen(self, now: float) -> None:
        """Take what the workers say."""
        in_charge = self.charge.current.host
        for host in self.charge.hosts():
            verdicts, echoes = host.receive()
            if host is in_charge:
                self.outbox.obey(host, verdicts, echoes, now)
            elif verdicts and any(host is slot.host for slot in self.charge.shadows):
                self.outbox.note_shadow(host, verdicts)

    def _take(self, route: bytes, frame: bytes, parts: int, now: float, at: int) -> None:
        self.counters["frames"] += 1
        try:
            if parts != 1:
                raise wire.WireError(f"a message of {parts} parts instead of one")
            message = wire.decode(frame)
        except wire.WireError as error:
            self._refuse(error.kind, str(error))
            return
        if isinstance(message, _OURS):
            self._refuse("malformed", f"a {type(message).__name__}, which only the policy process sends")
            return
        sender = self.roster.admit(message.sender, message.seq, route, now)
        if sender is None:
            self._refuse("replayed", f"seq {message.seq} of {message.sender} again, or too many senders")
            return
        self._dispatch(sender, message, frame, now, at)

    def _dispatch(self, sender: Sender, message: Message, frame: bytes, now: float, at: int) -> None:
        if type(message) is TelemetryBatch:
            self._telemetry(sender, message, frame, now, at)
        elif type(message) is Request:
            self.control.answer(sender.route, message)
        elif type(message) is Hello:
            self.log.frame(frame, at)
            # One that rests says hello again, so that it is not forgotten.
            if sender.offered is None:
                logger.info("%s joined: %s, γ %s", sender.sender, message.target, list(message.candidates))
            self._introduce(sender, message)
        elif type(message) is Arrivals:
            self.log.frame(frame, at)
            self._recent.append((sender.sender, frame, 0))
            for host in self.charge.hosts():
                host.offer(frame, 0)
        elif type(message) is Ack:
            self.log.frame(frame, at)
            sender.refused = message.refused
            if not message.refused:
                sender.applied = message.plan_id

    def _telemetry(self, sender: Sender, message: TelemetryBatch, frame: bytes, now: float, at: int) -> None:
        sender.record = record = message.records[-1]
        sender.records += len(message.records)
        sender.dropped = message.dropped
        self.counters["records"] += len(message.records)
        if sender.hello is None:
            if now - sender.greeted > _GREET_EVERY:
                sender.greeted = now
                self.outbox.send(sender.route, wire.encode(HelloWanted(self.process)))
            return
        if self.log.telemetry:
            self.log.frame(frame, at)
        self._recent.append((sender.sender, frame, len(message.records)))
        # The repeated plan goes out when the policy has seen this record: a sign of its life, not only of ours.
        due = now - sender.plan_sent > self.outbox.beat_every
        echo = (sender.sender, record.at_ns) if due else None
        for host in self._hosts:
            host.offer(frame, len(message.records), echo)

    def _introduce(self, sender: Sender, hello: Hello) -> None:
        allowed = self.config.gamma.candidates
        able = tuple(gamma for gamma in hello.candidates if allowed is None or gamma in allowed)
        if not able:
            self._said.warning(
                "gamma.candidates %s: %s can run none of them, only %s", allowed, sender.sender, list(hello.candidates)
            )
            able = hello.candidates
        sender.offered = hello
        sender.hello = dataclasses.replace(
            hello, candidates=able, start_gamma=nearest_candidate(hello.start_gamma, able)
        )
        frame = wire.encode(sender.hello)
        for host in self.charge.hosts():
            host.offer(frame)

    def _warm(self, host: Host, with_telemetry: bool) -> None:
        for _, hello in self.roster.agents():
            host.offer(wire.encode(hello))
        if with_telemetry:
            for _, frame, records in self._recent:
                host.offer(frame, records)

    def _tick(self, now: float) -> None:
        failed, swapped = self.charge.tick(now)
        for slot, why in failed:
            role = "in charge" if slot is self.charge.current else "in shadow"
            name = slot.as_json()["name"]
            self._said.warning("Policy %s (%s) failed: %s; it is restarted", name, role, why, kind=f"policy {role}")
            self.log.event("failed", policy=name, role=role, error=why)
        if swapped:
            self._take_charge(self.charge.current, now)
        self.outbox.beat(self.charge.current.host, now)
        if now - self._asked_estimates > _ESTIMATES_EVERY:
            self._asked_estimates = now
            for host in self.charge.hosts():
                host.ask_estimates()
        if now >= self._next_save:
            self._next_save = now + _SAVE_EVERY
            self.charge.save()
        if now >= self._next_slow_tick:
            self._next_slow_tick = now + 0.25
            self._slow_tick(now)

    def _take_charge(self, slot: Slot, now: float) -> None:
        host = slot.host
        assert host is not None
        logger.info("Policy %s %s is in charge", host.name, host.version)
        self.log.event("in charge", policy=host.name, version=host.version, params=host.params)
        known = [sender.sender for sender, _ in self.roster.agents()]
        self.outbox.obey(host, [host.latest[sender] for sender in known if sender in host.latest], [], now)

    def _slow_tick(self, now: float) -> None:
        try:
            if self.router.repair():
                logger.warning("%s had been removed; bound again", self.endpoint)
        except ConfigError as error:
            self._said.warning("%s", error)
        departed = self.roster.forget(now - _FORGET_AFTER)
        if departed:
            # A policy that is warmed up later was never told of them.
            names = {gone.sender for gone in departed}
            self._recent = deque((entry for entry in self._recent if entry[0] not in names), maxlen=_RECENT)
        for gone in departed:
            if gone.hello is not None:
                logger.info("%s is gone", gone.sender)
                for host in self.charge.hosts():
                    host.forget(gone.sender)
        self.live.look()

    def _refuse(self, kind: str, why: str) -> None:
        self.counters[kind] += 1
        self._said.warning("A frame was dropped (%s): %s", kind, why, kind=kind)
