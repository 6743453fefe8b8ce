"""What a policy has learnt, kept over restarts: a JSON file for each kind of scheduler that it has met.

A kind is what costs and acceptance depend on: target, draft, hardware, tensor parallelism and SGLang's version. A file
that is missing, damaged or refused is a cold start, and a disk that is full or slow costs the state, nothing else.
"""

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from sglang_nightjar.cache import cache_dir
from sglang_nightjar.core.messages import Hello
from sglang_nightjar.core.policy import Policy

logger = logging.getLogger(__name__)

STATE_ENV = "NIGHTJAR_STATE"
NONE = "none"

_MAX_BYTES = 1 << 24
#: Kinds of schedulers that one policy may have files of; ids come from outside.
_MAX_KINDS = 64

#: (target, draft, hardware, tp_size, SGLang's version)
Kind = tuple[str, str, str, int, str]


def folder_of(setting: str | None) -> Path | None:
    """Where states are kept: NIGHTJAR_STATE, else ``policy.state``, else below the cache; None: they are not."""
    wanted = os.environ.get(STATE_ENV) or setting
    if wanted == NONE:
        return None
    return Path(wanted) if wanted else cache_dir() / "state"


def kind_of(hello: Hello) -> Kind:
    """Schedulers of one kind share a state."""
    return (*hello.pool, hello.sglang_version)


class SavedState:
    """Loads and saves one policy, which runs on the thread that calls this."""

    def __init__(self, folder: Path, make: Callable[[], Policy], policy: Policy, cold: bool = False) -> None:
        """``make`` makes another like ``policy``. A ``cold`` start loads nothing, but what is learnt is saved."""
        self._folder, self._make, self._policy, self._cold = folder, make, policy, cold
        self._kinds: set[Kind] = set()
        self._saved = b""
        self._writer: threading.Thread | None = None

    def path(self, kind: Kind) -> Path:
        """The file of ``kind``."""
        name = re.sub(r"\W+", "-", self._policy.name)[:40]
        return self._folder / f"{name}-{hashlib.sha256(orjson.dumps(kind)).hexdigest()[:16]}.json"

    def take_up(self, hello: Hello) -> None:
        """Load the state of the scheduler's kind, if it is the first one of it. Call it before ``policy.hello``."""
        kind = kind_of(hello)
        if kind in self._kinds or len(self._kinds) >= _MAX_KINDS:
            return
        self._kinds.add(kind)
        if self._cold:
            return
        path = self.path(kind)
        try:
            state = self._read(path, kind)
            # On another instance first: half a state would be worse than none.
            self._make().load(state)
            self._policy.load(state)
        except FileNotFoundError:
            return
        except Exception as error:
            logger.warning("Policy %s starts cold: %s: %s", self._policy.name, path, _line(error))
            return
        logger.info("Policy %s goes on with what it had learnt: %s", self._policy.name, path)

    def save(self, done: Callable[[], None]) -> None:
        """Write what was learnt since the last call, from a thread of its own; ``done`` is called in any case."""
        try:
            state = self._policy.save()
            content = orjson.dumps(state)
            if len(content) > _MAX_BYTES:
                raise ValueError(f"a state of {len(content)} bytes; at most {_MAX_BYTES} are kept")
            writes = self._writer is not None and self._writer.is_alive()
            if state and self._kinds and content != self._saved and not writes:
                self._saved = content
                self._writer = threading.Thread(target=self._write, args=(state, list(self._kinds), done), daemon=True)
                self._writer.start()
                return
        except Exception as error:
            logger.warning("Policy %s: its state is not saved: %s", self._policy.name, _line(error))
        done()

    def _write(self, state: dict[str, Any], kinds: list[Kind], done: Callable[[], None]) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for kind in kinds:
                path = self.path(kind)
                fresh = path.with_suffix(f".{os.getpid()}")
                fresh.write_bytes(orjson.dumps({"policy": self._policy.name, "of": kind, "state": state}))
                fresh.replace(path)
        except Exception as error:
            self._saved = b""
            logger.warning("Policy %s: its state is not saved: %s", self._policy.name, _line(error))
        finally:
            done()

    def _read(self, path: Path, kind: Kind) -> dict[str, Any]:
        if path.stat().st_size > 2 * _MAX_BYTES:
            raise ValueError("the file is too large to be a state")
        content = orjson.loads(path.read_bytes())
        if content["policy"] != self._policy.name or content["of"] != list(kind):
            raise ValueError("it is the state of something else")
        state = content["state"]
        if not isinstance(state, dict):
            raise ValueError("there is no state in it")
        return state


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
