"""Applies the config file to the running policy process whenever it is saved."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy import config_file

if TYPE_CHECKING:
    from sglang_nightjar.policy.charge import Slot
    from sglang_nightjar.policy.server import Server

logger = logging.getLogger(__name__)

#: A file is read when it has not changed for so long: editors and scripts write in pieces.
_QUIET = 0.2


class LiveConfig:
    """Attributes:
    path: the file, or None.
    error: why the last save was not applied, or not all of it; "" if it was.
    """

    def __init__(self, server: Server, path: Path | None) -> None:
        self.path, self.error = path, ""
        self._server = server
        # Not the server's: flags may have changed that, and a save must not undo them.
        self._last = config_file.load(path) if path is not None else config_file.Config()
        self._watcher = config_file.Watcher(path) if path is not None else None
        self._changed_at: float | None = None

    def look(self) -> None:
        """Apply the file if it was saved since the last look."""
        if self._watcher is None:
            return
        now = time.monotonic()
        if self._watcher.changed():
            self._changed_at = now
        elif self._changed_at is not None and now - self._changed_at >= _QUIET:
            self._changed_at = None
            self._apply()

    def _apply(self) -> None:
        server, path = self._server, self.path
        assert path is not None
        old = self._last
        try:
            new = config_file.load(path)
            # Where the file says nothing new of the path, a flag's stays.
            kept = new.log.path if new.log.path != old.log.path else server.config.log.path
            log = dataclasses.replace(new.log, path=kept)
            if new.log != old.log:
                server.log.change(log)
        except ConfigError as error:
            self._refuse(f"{error}; everything stays as it was")
            return
        refused = config_file.not_live(old, new)
        # What can't change stays what it was, so that it is refused again until a restart.
        link = dataclasses.replace(old.link, stale_after=new.link.stale_after)
        self._last = dataclasses.replace(new, link=link, memory=old.memory)
        changed = {name: getattr(new, name) for name in ("policy", "shadow", "gamma")
                   if getattr(new, name) != getattr(old, name)}  # fmt: skip
        link = dataclasses.replace(server.config.link, stale_after=new.link.stale_after)
        server.config = dataclasses.replace(server.config, **changed, log=log, link=link)
        if new.link.stale_after != old.link.stale_after:
            server.outbox.change_stale_after(new.link.stale_after)
        if new.gamma != old.gamma:
            server.set_candidates()
        if new.shadow != old.shadow:
            server.charge.set_shadows(new.shadow)
        # A policy's file may have changed with the config; one that a flag or a request put in its place stays.
        if new.policy != old.policy or (new.policy.path is not None and server.charge.wanted == new.policy):
            server.charge.set(new.policy, self._swapped)
        if refused:
            self._refuse(f"{path}: {'; '.join(refused)}")
        else:
            self.error = ""
            logger.info("%s: applied", path)

    def _swapped(self, slot: Slot, why: str) -> None:
        if why:
            self._refuse(f"{self.path}: policy: {why}; {slot.as_json()['name']} stays in charge")

    def _refuse(self, why: str) -> None:
        self.error = why
        logger.error("%s", why)
