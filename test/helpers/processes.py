"""The policy process that a server started, seen from outside."""

from pathlib import Path

import psutil

from helpers.serving import Server


def policy_processes(server: Server) -> list[psutil.Process]:
    """The policy process and its workers."""
    found = [
        child
        for child in psutil.Process(server.process.pid).children()
        if any("sglang_nightjar.policy" in word for word in child.cmdline())
    ]
    return [*found, *(grandchild for child in found for grandchild in child.children(recursive=True))]


def is_steered(server: Server) -> bool:
    """A policy is in charge, and the first rank follows it."""
    status = server.get("/nightjar/status")
    return status["policy"]["state"] == "running" and status["ranks"][0]["source"] == "policy"


def sockets_folder(server: Server) -> Path:
    """Where the policy process that the server started has its socket."""
    return Path(server.get("/nightjar/status")["policy"]["endpoint"].removeprefix("ipc://")).parent
