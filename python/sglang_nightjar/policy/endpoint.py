"""The sockets of the policy process and of those who talk to it, and what keeps strangers off them.

``ipc://`` is guarded by the file system: its directory belongs to this user and nobody else can write to it. ``tcp://``
needs CURVE keys (`make_keys`), and the policy process lets in only the clients whose public keys it has.
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path

import zmq
from zmq.utils import z85

from sglang_nightjar.core.messages import MAX_REPLY_BYTES
from sglang_nightjar.errors import ConfigError

#: What ZMQ itself refuses, by closing the connection; above MAX_FRAME_BYTES, so that what is oversized can be counted.
MAX_MESSAGE_BYTES = MAX_REPLY_BYTES
#: Longest path of a Unix socket, less the byte that ends it.
_MAX_PATH = 107
_ZAP = "inproc://zeromq.zap.01"


class Router:
    """The bound ROUTER of the policy process.

    Attributes:
        socket: the ROUTER; it never blocks.
        zap: for ``tcp://``, where ZMQ asks whether a client may connect: when it is readable, call `admit`.
    """

    def __init__(self, context: zmq.Context, endpoint: str, keys: Path | None = None) -> None:
        """Raises ConfigError: no such endpoint, no keys for tcp, a directory open to others, an address in use."""
        self.endpoint, self.path = endpoint, _check(endpoint, keys)
        self.zap: zmq.Socket | None = None
        self._clients: set[bytes] = set()
        self._lock = -1
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.rcvhwm = 1000
        self.socket.sndhwm = 1000
        self.socket.maxmsgsize = MAX_MESSAGE_BYTES
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            if keys is not None and self.path is None:
                self._guard(context, keys)
            self._bind()
        except BaseException:
            self.close()
            raise

    def repair(self) -> bool:
        """Bind again if somebody deleted the path of an ``ipc://`` endpoint; True if so. Raises ConfigError."""
        if self.path is None or self.path.exists():
            return False
        with contextlib.suppress(zmq.ZMQError):
            self.socket.unbind(self.endpoint)
        self._unlock()
        self._bind()
        return True

    def admit(self) -> None:
        """Answer one question of ZMQ's (RFC 27, ZAP): is the client's CURVE key one of ours?"""
        assert self.zap is not None
        version, request, _, _, _, mechanism, *credentials = self.zap.recv_multipart(zmq.DONTWAIT)
        known = mechanism == b"CURVE" and len(credentials) == 1 and credentials[0] in self._clients
        status, text = (b"200", b"OK") if known else (b"400", b"unknown key")
        self.zap.send_multipart([version, request, status, text, b"", b""])

    def close(self) -> None:
        """Close the sockets, and remove the path."""
        self.socket.close()
        if self.zap is not None:
            self.zap.close()
        if self._lock >= 0 and self.path is not None:
            self.path.unlink(missing_ok=True)
        self._unlock()

    def _bind(self) -> None:
        if self.path is not None:
            private_directory(self.path.parent)
            self._take_lock(self.path)
        try:
            self.socket.bind(self.endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"link.endpoint: {self.endpoint} can't be bound: {error}") from None

    def _take_lock(self, path: Path) -> None:
        # ZMQ would silently take the path away from a process that is alive.
        lock = path.with_name(path.name + ".lock")
        self._lock = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._unlock()
            raise ConfigError(f"link.endpoint: another policy process serves {self.endpoint}") from None

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _guard(self, context: zmq.Context, keys: Path) -> None:
        self._clients = {z85.decode(_key(path)) for path in sorted(keys.glob("client*.key"))}
        if not self._clients:
            raise ConfigError(f"link.keys: {keys} has no client*.key, so nobody could connect")
        self.zap = context.socket(zmq.REP)
        self.zap.linger = 0
        self.zap.bind(_ZAP)
        self.socket.curve_server = True
        self.socket.curve_secretkey = _key(keys / "server.key_secret")
        self.socket.zap_domain = b"nightjar"


def connect(context: zmq.Context, endpoint: str, keys: Path | None = None) -> zmq.Socket:
    """A DEALER for an agent, a tokenizer process or a control client.

    Send with ``zmq.DONTWAIT``: while nobody is connected, or the other side does not read, that raises `zmq.Again`. It
    reconnects by itself within half a second of the policy process' return. Raises ConfigError like `Router`.
    """
    path = _check(endpoint, keys)
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.immediate = True
    socket.sndhwm = 64
    socket.rcvhwm = 64
    socket.maxmsgsize = MAX_MESSAGE_BYTES
    socket.reconnect_ivl = 50
    socket.reconnect_ivl_max = 500
    try:
        if path is None:
            assert keys is not None
            socket.heartbeat_ivl = 1000
            socket.heartbeat_timeout = 3000
            socket.curve_serverkey = _key(keys / "server.key")
            socket.curve_publickey = _key(keys / "client.key")
            socket.curve_secretkey = _key(keys / "client.key_secret")
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise ConfigError(f"link.endpoint: {endpoint}: {error}") from None
    except ConfigError:
        socket.close()
        raise
    return socket


def make_keys(directory: Path) -> list[Path]:
    """Make ``server`` and ``client`` key pairs. Raises ConfigError rather than replace any."""
    private_directory(directory)
    made = []
    for name in ("server", "client"):
        for path, key, mode in zip(
            (directory / f"{name}.key", directory / f"{name}.key_secret"),
            zmq.curve_keypair(),
            (0o644, 0o600),
            strict=True,
        ):
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                raise ConfigError(f"{path} is there already; remove it if nobody uses it any more") from None
            with os.fdopen(handle, "wb") as file:
                file.write(key + b"\n")
            made.append(path)
    return made


def private_directory(directory: Path) -> None:
    """Make ``directory`` (mode 0700), or raise ConfigError if it belongs to, or can be written by, somebody else."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise ConfigError(f"link.endpoint: {directory} can't be used: {error.strerror}") from None
    if found.st_uid != os.geteuid():
        raise ConfigError(f"link.endpoint: {directory} belongs to another user (uid {found.st_uid})")
    if stat.S_IMODE(found.st_mode) & 0o022:
        mode = oct(stat.S_IMODE(found.st_mode))[2:]
        raise ConfigError(
            f"link.endpoint: others can write to {directory} (mode {mode}); use a directory of its own, mode 700"
        )


def _check(endpoint: str, keys: Path | None) -> Path | None:
    """The path of an ``ipc://`` endpoint, None for ``tcp://``. Raises ConfigError."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc" and address:
        if not address.startswith("/") or len(os.fsencode(address)) > _MAX_PATH:
            raise ConfigError(f"link.endpoint: {endpoint} must be an absolute path of at most {_MAX_PATH} bytes")
        return Path(address)
    if scheme == "tcp" and address:
        if keys is None:
            raise ConfigError(
                f"link.endpoint: {endpoint} needs link.keys, a directory of CURVE keys "
                "(nightjar policy keys DIR makes them)"
            )
        return None
    raise ConfigError(f"link.endpoint: {endpoint} must be ipc:///absolute/path or tcp://host:port")


def _key(path: Path) -> bytes:
    try:
        if path.suffix == ".key_secret" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"link.keys: others can read {path}; it must have mode 600")
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"link.keys: {path}: {error.strerror}") from None
    if len(key) != 40:
        raise ConfigError(f"link.keys: {path} holds no CURVE key (40 characters of Z85)")
    return key
