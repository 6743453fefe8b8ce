"""The policy process of this server: whether one is needed, where it is, and its start and end.

One per program: several Engines in one program share it, as they share the fate of all its children.
"""

import atexit
import logging
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from sglang_nightjar import config
from sglang_nightjar.policy.config_file import Config
from sglang_nightjar.supervise.directory import PrivateDirectory
from sglang_nightjar.supervise.liveness import Liveness
from sglang_nightjar.supervise.supervisor import Supervisor

logger = logging.getLogger(__name__)

MODULE = "sglang_nightjar.policy"
# Seconds. Deleting the socket's file cuts nobody off who is connected, and the process may bind it again by itself.
_SOCKET_GRACE_CHECKS = 5


@dataclass(frozen=True)
class PolicySetup:
    """Who steers this server's γ.

    Attributes:
        endpoint: of the policy process; None: nobody steers.
        server: id of this server in the policy process.
        policy: name or path of the policy asked for; "" if the policy process at ``endpoint`` decides that.
        detail: why nobody steers; a clause, "" if somebody does.
        supervisor: of the policy process that we started; None if it is somebody else's, or there is none.
        keys: directory with the CURVE keys for a ``tcp://`` endpoint.
    """

    endpoint: str | None
    server: str
    policy: str = ""
    detail: str = ""
    supervisor: Supervisor | None = None
    keys: Path | None = None


_current: PolicySetup | None = None
_directory: PrivateDirectory | None = None


def current() -> PolicySetup | None:
    """What ``start`` decided in this process; None before it and after ``stop``."""
    return _current


def start(obstacle: str = "") -> PolicySetup:
    """Start the policy process if the options ask for one, and tell this process's future children where it is.

    ``obstacle`` says why γ can't be chosen on this server, as a clause; then none is started. Returns at once: nobody
    waits for the policy process. Raises ConfigError if the options can't work. Calling it again changes nothing.
    """
    global _current
    if _current is None:
        _current = _start(obstacle)
        atexit.register(stop)
    os.environ[config.SERVER_ENV] = _current.server
    if _current.endpoint is None:
        os.environ.pop(config.ENDPOINT_ENV, None)
    else:
        os.environ[config.ENDPOINT_ENV] = _current.endpoint
    return _current


def stop() -> None:
    """End the policy process, if it is ours. Calling it again does nothing."""
    global _current, _directory
    if _current is not None and _current.supervisor is not None:
        _current.supervisor.stop()
    if _directory is not None:
        _directory.close()
    _current = _directory = None
    os.environ.pop(config.ENDPOINT_ENV, None)


def _start(obstacle: str) -> PolicySetup:
    global _directory
    options = config.from_environment()
    settings = config.load_file(options.config)
    server = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    policy = config.wanted_policy(options, settings)
    if policy == config.OFF:
        obstacle = "the policy is off, so SGLang's own settings hold"
    if obstacle:
        logger.info("Nightjar: no policy process is started: %s.", obstacle)
        return PolicySetup(None, server, config.OFF, obstacle)
    if endpoint := config.shared_endpoint(options, settings):
        logger.info("Nightjar: the policy process at %s steers this server.", endpoint)
        if unused := _for_a_policy_process(settings):
            # Not refused: it may be the file that the policy process is started with.
            logger.warning(
                "Nightjar: %s: of no effect here: %s; the policy process at %s goes by a config of its own.",
                options.config,
                ", ".join(unused),
                endpoint,
            )
        return PolicySetup(endpoint, server, keys=Path(settings.link.keys) if settings.link.keys else None)
    _directory = PrivateDirectory()
    health = _Health(_directory, server)
    args = ["--endpoint", health.endpoint]
    args += ["--config", options.config] if options.config else []
    args += ["--policy", options.policy] if options.policy else []
    supervisor = Supervisor(
        "policy process",
        MODULE,
        args,
        env=_environment(),
        prepare=health.prepare,
        is_broken=health.is_broken,
        say=logger,
    )
    supervisor.start()
    logger.info("Nightjar: policy %s, in a process of its own at %s.", policy, health.endpoint)
    return PolicySetup(health.endpoint, server, policy, supervisor=supervisor)


def _for_a_policy_process(settings: Config) -> list[str]:
    """Sections of a config that say something, and that only a policy process reads."""
    silent = Config()
    return [name for name in ("policy", "shadow", "gamma", "log") if getattr(settings, name) != getattr(silent, name)]


def _environment() -> dict[str, str]:
    # It is a small program beside a server that wants every core: no thread pools for its linear algebra.
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    # Unbuffered, so that what it says last is not lost when it is killed.
    return {**os.environ, **threads, "PYTHONUNBUFFERED": "1"}


class _Health:
    """The policy process's socket file, on which a new connection depends, and its answers."""

    def __init__(self, directory: PrivateDirectory, server: str):
        self.path = directory.path / "policy.sock"
        self.endpoint = f"ipc://{self.path}"
        self._directory = directory
        self._liveness = Liveness(self.endpoint, server)
        self._seen = False
        self._missing = 0

    def prepare(self) -> None:
        """Before a start: the directory is there and private. Raises OSError."""
        self._directory.ensure()
        self._liveness.restart()
        self._seen, self._missing = False, 0

    def is_broken(self) -> str | None:
        """Why it is of no use any more; None if it is."""
        exists = self.path.exists()
        self._seen = self._seen or exists
        self._missing = 0 if exists or not self._seen else self._missing + 1
        if self._missing >= _SOCKET_GRACE_CHECKS:
            return f"its socket {self.path} was deleted"
        return self._liveness.is_broken()
