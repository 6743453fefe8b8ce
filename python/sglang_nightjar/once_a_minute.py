"""Log lines that can't flood."""

import logging
import time


class OnceAMinute:
    """Says each kind of warning at most once a minute, and then how many were left out."""

    def __init__(self, logger: logging.Logger, every_s: float = 60.0) -> None:
        self._logger, self._every_s = logger, every_s
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, template: str, *args: object, kind: str = "") -> None:
        """Log ``template % args``, unless a ``kind`` (by default: a template) like it was within the last minute."""
        kind = kind or template
        now = time.monotonic()
        if now - self._last.get(kind, -1e9) < self._every_s:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._last[kind] = now
        more = self._left_out.pop(kind, 0)
        self._logger.warning(template + (f" (and {more} more before)" if more else ""), *args)


#: For what runs inside SGLang's processes.
rate_limited = OnceAMinute(logging.getLogger("sglang_nightjar"))
