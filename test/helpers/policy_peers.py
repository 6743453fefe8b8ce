"""A policy process, and peers that talk to it."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from helpers.policy_load import make_hello
from sglang_nightjar.core.messages import (
    MAX_FRAME_BYTES,
    MAX_REPLY_BYTES,
    Ack,
    HelloWanted,
    Message,
    Plan,
    Reply,
    Request,
    Telemetry,
    TelemetryBatch,
    make_sender_id,
)
from sglang_nightjar.core.wire import decode, encode
from sglang_nightjar.policy.endpoint import connect


class PolicyProcess:
    """``python -m sglang_nightjar.policy``, started by hand, on an ipc path below ``folder`` or at ``endpoint``.

    Attributes:
        process: the running process; another one after `start`.
    """

    def __init__(self, folder: Path, *flags: str, config: str | None = None, endpoint: str | None = None) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        self.endpoint = endpoint or f"ipc://{folder}/policy"
        self.config, self.stderr = folder / "nightjar.yaml", folder / "stderr"
        if config is not None:
            self.config.write_text(config)
            flags = ("--config", str(self.config), *flags)
        self.command = [sys.executable, "-m", "sglang_nightjar.policy", "--endpoint", self.endpoint, *flags]
        self.start()

    def __enter__(self) -> "PolicyProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(self.command, stderr=stderr)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(20)

    def said(self) -> str:
        return self.stderr.read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(20)

    def children(self) -> list[int]:
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]


class Peer:
    """One DEALER; as an agent once it said hello."""

    def __init__(self, endpoint: str, role: str = "dp0", keys: Path | None = None, **hello) -> None:
        self.socket = connect(zmq.Context.instance(), endpoint, keys)
        self.sender, self.seq, self.iteration = make_sender_id("s", role), 0, 0
        self.hello_fields = hello
        self.plans: list[Plan] = []
        self.greetings = 0
        self.replies: dict[int, Reply] = {}

    def close(self) -> None:
        self.socket.close()

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def send(self, message: Message | bytes, within: float = 5.0) -> None:
        frame = message if isinstance(message, bytes) else encode(message)
        assert self.socket.poll(1000 * within, zmq.POLLOUT), "nobody is connected, or nobody reads"
        self.socket.send(frame, zmq.DONTWAIT)

    def hello(self) -> None:
        self.send(dataclasses.replace(make_hello(self.sender, **self.hello_fields), seq=self.next_seq()))

    def iterate(self, batch_size: int = 4, gamma: int | None = None, **fields) -> Telemetry:
        """Send one record, with the γ of the last plan if none is given."""
        if gamma is None:
            gamma = self.plans[-1].gamma_for(batch_size) if self.plans else 5
        self.iteration += 1
        record = Telemetry(
            self.iteration, time.monotonic_ns(), 10_000_000, batch_size, gamma, batch_size, accepted=(0,) * gamma
        )._replace(**fields)
        self.send(TelemetryBatch(self.sender, self.next_seq(), (record,)))
        return record

    def receive(self, within: float = 0.0) -> Message | None:
        """One message, put where it belongs; None if there was none in time."""
        if not self.socket.poll(1000 * within):
            return None
        message = decode(self.socket.recv(), MAX_REPLY_BYTES)
        if isinstance(message, Plan):
            self.plans.append(message)
        elif isinstance(message, Reply):
            self.replies[message.seq] = message
        elif isinstance(message, HelloWanted):
            self.greetings += 1
        return message

    def drain(self) -> None:
        while self.receive() is not None:
            pass

    def plan(self, within: float = 5.0, matching: Callable[[Plan], bool] = lambda plan: True) -> Plan:
        """The next plan that matches."""
        deadline = time.monotonic() + within
        while (left := deadline - time.monotonic()) > 0:
            message = self.receive(left)
            if isinstance(message, Plan) and matching(message):
                return message
        raise AssertionError(f"no such plan within {within} s; the last was {self.plans[-1:]}")

    def ask(self, op: str, within: float = 20.0, **args) -> Reply:
        seq = self.next_seq()
        self.send(Request(self.sender, seq, op, args))
        deadline = time.monotonic() + within
        while seq not in self.replies and (left := deadline - time.monotonic()) > 0:
            self.receive(left)
        assert seq in self.replies, f"no answer to {op} within {within} s"
        return self.replies.pop(seq)

    def status(self) -> dict:
        return self.ask("status").body


def bad_frames(sender: str, count: int) -> list[tuple[str, bytes]]:
    """``count`` bad frames in the name of ``sender``, who has spoken, with what each should be counted as."""
    rng = random.Random(0)
    good = encode(Ack(sender, 1, 5, 6))
    found = []
    for index in range(count):
        kind = ("malformed", "malformed", "oversized", "version", "replayed")[index % 5]
        if kind == "malformed":
            noise = bytearray(good)
            if index % 2:
                del noise[rng.randrange(1, len(noise)) :]
            else:
                noise[rng.randrange(len(noise))] = rng.choice(b'{}[]"\x00\xff:,')
                noise += b"}"
            frame = bytes(noise)
        elif kind == "oversized":
            # A megabyte each would only test the machine's memory.
            frame = good + b" " * MAX_FRAME_BYTES if index % 100 == 2 else b"x" * (MAX_FRAME_BYTES + 1)
        elif kind == "version":
            frame = good.replace(b'"v":1', b'"v":%d' % rng.randrange(2, 99))
        else:
            frame = good
        found.append((kind, frame))
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
