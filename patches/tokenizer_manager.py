"""managers/tokenizer_manager.py, SGLang 0.5.17: report the requests that arrive, as they go to the schedulers.

With several tokenizer processes SGLang loads no plugins in them, so nothing is reported there.
"""

from collections.abc import Sequence
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import arrivals, settings
from sglang_nightjar.agent.link import rate_limited
from sglang_nightjar.patches.seams import Seam

ROLES = ("main",)

_CLASS = "sglang.srt.managers.tokenizer_manager:TokenizerManager"

SEAMS = (
    Seam(f"{_CLASS}._send_one_request", ("tokenized_obj",), "hook", "to report arrivals"),
    Seam(f"{_CLASS}._send_batch_request", ("tokenized_objs",), "hook", "to report arrivals"),
    Seam(
        "sglang.srt.managers.utils:is_health_check_generate_req",
        ("recv_req",),
        "call",
        "not to count health checks",
    ),
)

_unset: Any = object()


def note_one(manager: Any, tokenized_obj: Any) -> None:
    _note(manager, [tokenized_obj])


def note_batch(manager: Any, tokenized_objs: Sequence[Any]) -> None:
    _note(manager, tokenized_objs)


def _note(manager: Any, requests: Sequence[Any]) -> None:
    from sglang.srt.managers.utils import is_health_check_generate_req

    try:
        reporter = getattr(manager, "_nightjar_arrivals", _unset)
        if reporter is _unset:
            # If this fails, once is enough.
            manager._nightjar_arrivals = None
            reporter = manager._nightjar_arrivals = arrivals.reporter(settings.load())
        if reporter is not None and not is_health_check_generate_req(requests[0]):
            reporter.note(len(requests), sum(len(request.input_ids or ()) for request in requests))
    except Exception as error:
        rate_limited.warning("arrivals can't be reported: %r", error)


def apply() -> None:
    for name, hook in (("_send_one_request", note_one), ("_send_batch_request", note_batch)):
        HookRegistry.register(f"{_CLASS.replace(':', '.')}.{name}", hook, HookType.BEFORE)
