"""Log lines that can't flood."""

import logging
import time


class OnceAMinute:
    """Says each kind of warning at most once a minute, and then how many were left out."""

    def __init__(self, logger: logging.Logger, every: float = 60.0) -> None:
        self._logger, self._every = logger, every
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, kind: str, text: str, *args: object) -> None:
        """Log ``text % args``, unless that kind was logged within the last minute."""
        now = time.monotonic()
        if now - self._last.get(kind, -1e9) < self._every:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._last[kind] = now
        more = self._left_out.pop(kind, 0)
        self._logger.warning(text + (f" (and {more} more before)" if more else ""), *args)
