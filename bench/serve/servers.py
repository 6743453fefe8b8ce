"""Servers of equal means: one for each kind of arm, one at a time or side by side, made ready before every run."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "test"))

from helpers.serving import Server, gamma_flags

from bench.serve import budget
from bench.serve.arms import ADAPTIVE, KEEP, PLAIN, Arm, kinds_of_policies
from bench.serve.settings import Settings
from sglang_nightjar.observe.client import Client, ServerError

_READY_WITHIN = 60.0
#: Where a server's policies keep what they have learnt.
STATE_ENV = "NIGHTJAR_STATE"


def saved_state() -> str:
    """Every run starts cold (``none``), unless the environment names a folder."""
    return os.environ.get(STATE_ENV) or "none"


class ServerFault(Exception):
    """A server can't be used for what was asked. The text is a sentence."""


@dataclass(frozen=True)
class Models:
    """What is served: folders of target and draft, the kind of draft, and SGLang flags for all servers."""

    target: str
    draft: str
    algorithm: str = "EAGLE3"
    flags: tuple[str, ...] = ()


@dataclass
class Fleet:
    """Starts what is asked for, and ends it. Use it in a ``with`` block.

    Attributes:
        folder: for configs and logs.
        side_by_side: keep all servers, instead of one at a time (2.5 GB each for the demo pair).
        port: of the first server; the next one has the next. None: any free one.
        starts: seconds that starting took, for the estimate of what is left.
    """

    models: Models
    settings: Settings
    folder: Path
    side_by_side: bool = False
    port: int | None = None
    starts: list[float] = field(default_factory=list)
    _running: dict[str, Server] = field(default_factory=dict)
    _key: str = field(default_factory=lambda: secrets.token_hex(8))

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all of them."""
        for kind in list(self._running):
            server = self._running.pop(kind)
            server.__exit__(None, None, None)

    @property
    def up(self) -> set[str]:
        """Kinds of the servers that run."""
        return set(self._running)

    def get(self, kind: str) -> Server:
        """A running server of this kind, started if need be. Raises RuntimeError if it does not start."""
        server = self._running.get(kind)
        if server is not None and server.process.poll() is not None:
            del self._running[kind]
            server = None
        if server is None:
            if not self.side_by_side:
                self.stop()
            began = time.monotonic()
            server = self._start(kind)
            self.starts.append(time.monotonic() - began)
        return server

    def prepare(self, server: Server, arm: Arm, warm_up: Callable[[], None]) -> None:
        """Put the arm's policy in charge, without what it or another one learned in earlier runs, then ``warm_up``.

        Raises ServerFault.
        """
        if arm.policy is not None:
            client = Client(server.url, self._key)
            _forget(server, client)
            try:
                client.set_policy(arm.policy)
            except ServerError as error:
                raise ServerFault(f"the server refuses {arm.name}: {error}") from None
        warm_up()
        self._flush(server)

    def usage(self, server: Server) -> Usage:
        """Of this server, and of those that idle beside it."""
        return Usage.of(server, [other for other in self._running.values() if other is not server])

    def capacity(self, server: Server) -> tuple[int, int]:
        """(requests that may run, tokens of KV cache with the draft on the device), as all schedulers say together."""
        loads = server.get("/v1/loads?include=core")["loads"]
        tokens = sum(load["max_total_num_tokens"] for load in loads)
        # Where a draft's memory can be lent to the cache, the cache of the moment says nothing.
        ranks = Client(server.url, server.key).status()["ranks"]
        base = sum(rank["kv"]["base"] for rank in ranks)
        return sum(load["max_running_requests"] for load in loads), base or tokens

    def wanted_capacity(self, kind: str) -> tuple[int, int]:
        """What `capacity` has to be."""
        return self.settings.max_running_requests, self._kv_tokens(kind)

    def decision_log(self, kind: str) -> Path | None:
        """Where the server's policy process logs, if it has one."""
        return self.folder / kind / "decisions.jsonl" if kind in kinds_of_policies() else None

    def _kv_tokens(self, kind: str) -> int:
        tokens = self.settings.kv_tokens
        if kind != PLAIN:
            return tokens
        return tokens + budget.extra_tokens(Path(self.models.target), Path(self.models.draft), tokens)

    def _start(self, kind: str) -> Server:
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        log, state = folder / "server.log", {STATE_ENV: saved_state()}
        server = Server(self._flags(kind, folder), log, key=self._key, port=self._next_port(), **state)
        # Before it is ready, so that an interruption ends it too.
        self._running[kind] = server
        server.__enter__()
        return server

    def _next_port(self) -> int | None:
        return None if self.port is None else self.port + len(self._running)

    def _flags(self, kind: str, folder: Path) -> list[str]:
        models, settings = self.models, self.settings
        flags = ["--model-path", models.target, "--admin-api-key", self._key, "--sleep-on-idle"]
        flags += ["--max-running-requests", str(settings.max_running_requests)]
        flags += ["--max-total-tokens", str(self._kv_tokens(kind)), *models.flags]
        if kind == PLAIN:
            return [*flags, "--nightjar-policy", "off"]
        flags += ["--speculative-algorithm", models.algorithm, "--speculative-draft-model-path", models.draft]
        if kind == ADAPTIVE:
            return [*flags, "--speculative-eagle-topk", "1", "--speculative-adaptive", "--nightjar-policy", "off"]
        if kind.startswith("static-"):
            return [*flags, *gamma_flags(int(kind.removeprefix("static-"))), "--nightjar-policy", "off"]
        written: dict[str, Any] = {"log": {"path": str(folder / "decisions.jsonl"), "max_mb": 1000}}
        if kind == KEEP:
            written["memory"] = {"mode": "keep"}
        config = folder / "nightjar.json"
        config.write_text(json.dumps(written))
        return [*flags, "--nightjar-config", str(config)]

    def _flush(self, server: Server) -> None:
        """An empty prefix cache, once nothing runs any more. Raises ServerFault."""
        request = urllib.request.Request(server.url + "/flush_cache?timeout=30", b"", _bearer(self._key), method="POST")
        try:
            urllib.request.urlopen(request, timeout=60).close()
        except urllib.error.HTTPError as error:
            raise ServerFault(f"the server does not empty its cache: {error.code} {error.reason}") from None


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _forget(server: Server, client: Client) -> None:
    """A new policy process: a policy that is put in charge is otherwise fed what happened under those before it."""
    restarts = client.status()["counters"]["policy_restarts"]
    for pid in roles(server).get("policy", []):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _READY_WITHIN
    while time.monotonic() < deadline:
        time.sleep(0.2)
        status = client.status()
        again = status["counters"]["policy_restarts"] > restarts and status["policy"]["state"] == "running"
        if again and all(rank["link"]["state"] == "up" for rank in status["ranks"]):
            return
    raise ServerFault(f"the policy process did not come back within {_READY_WITHIN:.0f} s")


def roles(server: Server) -> dict[str, list[int]]:
    """Process ids of a server by what they do: ``http``, ``scheduler``, ``detokenizer``, ``policy``, ``other``.

    Raises ServerFault if it has ended.
    """
    import psutil

    if server.process.poll() is not None:
        raise ServerFault(f"the server has ended with {server.process.returncode}: {server.tail(5)}")
    found: dict[str, list[int]] = {"http": [server.process.pid]}
    for pid in server.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(psutil.Process(pid).cmdline())
            known = ("sglang_nightjar.policy", "scheduler", "detokenizer")
            role = next((name for name in known if name in words), "other").removeprefix("sglang_nightjar.")
            found.setdefault(role, []).append(pid)
    return found


@dataclass(frozen=True)
class Usage:
    """CPU seconds since their start, and resident bytes, of a server's processes by role; CPU seconds of the servers
    that are up beside it (``idle_s``); and those of the whole machine since it was started (``busy_s``), time that a
    hypervisor took away included."""

    cpu_s: dict[str, float]
    rss_bytes: dict[str, int]
    busy_s: float
    idle_s: float = 0.0

    @classmethod
    def of(cls, server: Server, beside: Iterable[Server] = ()) -> Usage:
        import psutil

        cpu: dict[str, float] = {}
        rss: dict[str, int] = {}
        for role, pids in roles(server).items():
            for pid in pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(pid)
                    times = process.cpu_times()
                    cpu[role] = cpu.get(role, 0.0) + times.user + times.system
                    rss[role] = rss.get(role, 0) + process.memory_info().rss
        idle_s = sum(sum(cls.of(other).cpu_s.values()) for other in beside if other.process.poll() is None)
        return cls(cpu, rss, cls.machine_busy_s(), idle_s)

    @staticmethod
    def machine_busy_s() -> float:
        """See the class."""
        import psutil

        times = psutil.cpu_times()
        # Linux counts a guest's time as its host process' user time, too.
        return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)

    def others_since(self, before: Usage) -> float:
        """CPU seconds of everybody but this server and those beside it meanwhile, in s."""
        own = sum(self.cpu_s.values()) - sum(before.cpu_s.values())
        return max(0.0, self.busy_s - before.busy_s - own - self.idle_since(before))

    def idle_since(self, before: Usage) -> float:
        """CPU seconds of the servers beside it meanwhile: what `--side-by-side` costs."""
        return max(0.0, self.idle_s - before.idle_s)

    def since(self, before: Usage) -> dict[str, Any]:
        """CPU seconds that were used meanwhile, and memory now, by role."""
        return {
            role: {"cpu_s": round(cpu - before.cpu_s.get(role, 0.0), 2), "rss_mb": round(self.rss_bytes[role] / 1e6, 1)}
            for role, cpu in self.cpu_s.items()
        }
