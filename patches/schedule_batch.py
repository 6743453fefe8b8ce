"""managers/schedule_batch.py, SGLang 0.5.17: end a request where it would have ended without speculation.

A verification step commits several tokens at once. SGLang looks at the length limit first: if the same step reaches the
limit and has the end-of-text token (or a stop string) before it, the text runs on behind its end, up to the limit. And
of a stop string and an end-of-text token in one step, the string wins even if it comes later.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_MODULE = "sglang.srt.managers.schedule_batch"

SEAMS = (
    Seam(
        f"{_MODULE}:Req.update_finish_state",
        ("new_accepted_len",),
        "hook",
        "a text could run on behind its end when a step reaches the length limit",
    ),
    Seam(f"{_MODULE}:FINISH_ABORT", None, "field", "to leave aborted requests alone"),
    Seam(f"{_MODULE}:FINISH_MATCHED_STR", None, "field", "to recognise a request that ended by a numerical fault"),
)


def end_at_the_first_end(original: Callable[..., None], req: Any, new_accepted_len: int = 1) -> None:
    """If this step ended the request, go over its tokens again one at a time, as without speculation."""
    was_ending = req.finished() or req.to_finish is not None
    original(req, new_accepted_len)
    if was_ending or new_accepted_len <= 1 or not req.finished() or _is_fault(req.finished_reason):
        return
    tokens = req.output_ids[-new_accepted_len:]
    del req.output_ids[-new_accepted_len:]
    # The grammar has seen the whole step already: only at its last token can it be what ends the request.
    grammar, req.grammar = req.grammar, None
    req.finished_reason = req.finished_len = None
    for i, token in enumerate(tokens, start=1):
        # What follows the end stays in the list, as SGLang has it: finished_len says where the text ends.
        req.output_ids.append(token)
        if i == new_accepted_len:
            req.grammar = grammar
        if not req.finished():
            original(req, 1)


def _is_fault(reason: Any) -> bool:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_MATCHED_STR

    is_nan = isinstance(reason, FINISH_MATCHED_STR) and reason.matched == "NaN happened"
    return isinstance(reason, FINISH_ABORT) or is_nan


def apply() -> None:
    HookRegistry.register(f"{_MODULE}.Req.update_finish_state", end_at_the_first_end, HookType.AROUND)
