"""A directory that only this user can enter, for the sockets of one server."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from sglang_nightjar.errors import ConfigError

_PREFIX = "nightjar-"
_LOCK = "owner.lock"
# A Unix socket's path has at most 107 bytes; a folder name and a socket's name come after this.
_LONGEST_PARENT = 70


class PrivateDirectory:
    """A fresh directory of mode 0700. It is removed by ``close``, or by the next server's start if this one was killed.

    Attributes:
        path: its absolute path, short enough for Unix sockets in it.
    """

    def __init__(self, parent: Path | None = None):
        """Raises ConfigError if none can be made in ``parent`` (default: the runtime or temporary directory)."""
        parent = parent or _parent()
        _sweep(parent)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"no directory for the sockets can be made in {parent} ({error.strerror})") from None

    def ensure(self) -> None:
        """Make it again if somebody deleted it. Raises OSError if another file took its place."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        info = self.path.lstat()
        if info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise OSError(f"{self.path} is no longer private")

    def close(self) -> None:
        """Remove it with what is in it. Calling it again does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _parent() -> Path:
    for name in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()):
        if name and os.access(name, os.W_OK | os.X_OK) and len(os.fsencode(name)) <= _LONGEST_PARENT:
            return Path(name)
    return Path("/tmp")


def _sweep(parent: Path) -> None:
    """Remove what killed servers left. The lock, unlike a process id, also tells across containers that share /tmp."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
