"""managers/tokenizer_manager.py, SGLang 0.5.17: report the requests that arrive, and each answer's true acceptance.

SGLang takes each verification for one with the γ of the start. The schedulers count what was really proposed, in a
field that only DSpark drafts use otherwise (see agent/scheduler_agent.py).

With several tokenizer processes SGLang loads no plugins in them, so nothing is reported there.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import arrivals, candidates, settings
from sglang_nightjar.once_a_minute import rate_limited
from sglang_nightjar.patches.seams import Seam

ROLES = ("main",)

_CLASS = "sglang.srt.managers.tokenizer_manager:TokenizerManager"

SEAMS = (
    Seam(f"{_CLASS}._send_one_request", ("tokenized_obj",), "hook", "to report arrivals"),
    Seam(f"{_CLASS}._send_batch_request", ("tokenized_objs",), "hook", "to report arrivals"),
    Seam(
        f"{_CLASS}._calculate_spec_decoding_metrics",
        ("meta_info", "recv_obj", "i"),
        "hook",
        "the acceptance rate of an answer while γ changes",
    ),
    *(
        Seam(f"sglang.srt.managers.io_struct:BatchStrOutput.{name}", None, "field", "the acceptance rate of an answer")
        for name in ("spec_verify_ct", "spec_num_correct_drafts", "spec_num_cap_tokens")
    ),
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
        rate_limited.warning("Nightjar: arrivals can't be reported: %r", error)


def true_acceptance(
    original: Callable[..., None], manager: Any, meta_info: dict[str, Any], recv_obj: Any, i: int
) -> None:
    original(manager, meta_info, recv_obj, i)
    if "spec_num_proposed_drafts" not in meta_info or not _counts_proposed(manager):
        return
    proposed = recv_obj.spec_num_cap_tokens[i]
    meta_info.pop("spec_cap_length", None)
    meta_info["spec_num_proposed_drafts"] = proposed
    meta_info["spec_accept_rate"] = recv_obj.spec_num_correct_drafts[i] / proposed if proposed else 0.0


def _counts_proposed(manager: Any) -> bool:
    return candidates.parse(manager.server_args.speculative_adaptive_config) is not None


def apply() -> None:
    HookRegistry.register(
        f"{_CLASS.replace(':', '.')}._calculate_spec_decoding_metrics", true_acceptance, HookType.AROUND
    )
    for name, hook in (("_send_one_request", note_one), ("_send_batch_request", note_batch)):
        HookRegistry.register(f"{_CLASS.replace(':', '.')}.{name}", hook, HookType.BEFORE)
