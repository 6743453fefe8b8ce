"""Bring metrics up to date every few seconds, from a thread, whatever happens to them."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

# Scrapes are usually 15 s apart. Each round holds Python's lock for about a millisecond.
PERIOD_S = 5.0


def every_few_seconds(update: Callable[[], None], name: str, period_s: float = PERIOD_S) -> threading.Event:
    """Call ``update`` until the returned event is set. An exception is logged once, and the next round tries again."""
    stopping = threading.Event()

    def run() -> None:
        failed = False
        while not stopping.wait(period_s):
            try:
                update()
                failed = False
            except Exception:
                if not failed:
                    logger.exception("Nightjar: the metrics of the %s could not be brought up to date", name)
                failed = True

    threading.Thread(target=run, name=f"metrics-{name}", daemon=True).start()
    return stopping
