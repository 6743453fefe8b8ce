"""What is compared, and the servers that it runs on, all with the same limits."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.demo_server import Server
from sglang_nightjar.demo.pair import ensure_pair

# The same on every server: speculation would otherwise lower the limit on running requests by itself.
FLAGS = ("--max-running-requests", "32", "--max-total-tokens", "8192", "--disable-radix-cache", "--sleep-on-idle")
_ADMIN_KEY = "bench"


@dataclass(frozen=True)
class Arm:
    """One way to choose γ: the server that does it, and the policy to put in charge of it first, if any."""

    name: str
    server: str
    policy: dict[str, Any] | None = None

    def prepare(self, server: Server) -> None:
        """Put its policy in charge. Raises urllib.error.HTTPError if the server refuses."""
        if self.policy is None:
            return
        body = json.dumps(self.policy).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {_ADMIN_KEY}"}
        request = urllib.request.Request(server.url + "/nightjar/policy", body, headers, method="PUT")
        urllib.request.urlopen(request, timeout=60).close()
        # The plan reaches the scheduler with its next requests.
        server.generate("Once upon a time", max_new_tokens=8)


def arms(gammas: list[int]) -> list[Arm]:
    """No speculation, each static γ, ``nightjar``, and SGLang's adaptive rule."""
    return [
        Arm("no speculation", "plain"),
        *(Arm(f"static γ={gamma}", "static", _static(gamma)) for gamma in gammas),
        Arm("nightjar", "nightjar"),
        Arm("--speculative-adaptive", "adaptive"),
    ]


def arms_of_one_server(gammas: list[int]) -> list[Arm]:
    """Each static γ, ``ema`` (SGLang's rule as a policy) and ``nightjar``, put in charge of the same server in turn."""
    return [
        *(Arm(f"static γ={gamma}", "nightjar", _static(gamma)) for gamma in gammas),
        Arm("ema", "nightjar", {"name": "ema"}),
        Arm("nightjar", "nightjar", {"name": "nightjar"}),
    ]


def _static(gamma: int) -> dict[str, Any]:
    return {"name": "static", "params": {"gamma": gamma}}


def start(name: str, folder: Path) -> Server:
    """The server ``name`` of an arm, to be used in a ``with`` block. Its files are in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = ensure_pair()
    flags = ["--model-path", str(pair.target), *FLAGS, "--admin-api-key", _ADMIN_KEY]
    if name != "plain":
        flags += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(pair.draft)]
        flags += ["--speculative-eagle-topk", "1"]
    if name == "adaptive":
        flags += ["--speculative-adaptive", "--nightjar-policy", "off"]
    elif name in ("static", "nightjar"):
        config = folder / "nightjar.yaml"
        config.write_text(f"policy: {{name: {name}}}\nlog: {{path: {log_of(folder)}, max_mb: 1000}}\n")
        flags += ["--nightjar-config", str(config)]
    return Server(flags, folder / "server.log")


def log_of(folder: Path) -> Path:
    """The decision log of the server whose folder this is."""
    return folder / "decisions.jsonl"
