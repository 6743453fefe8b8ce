"""speculative/eagle_worker_v2.py, SGLang 0.5.17: γ=0 does no draft work, and drafts come back caught up.

On a CPU an EAGLE-3 draft's passes also leave SGLang's ModelRunner out (cpu/eagle3_draft.py).

At γ=0 SGLang still runs the draft over every new token, after decoding and after prompts, to keep its cache complete.
Here nothing runs; draft/upkeep.py notes what is missing and fills it in before the next drafts. Only where γ is
Nightjar's to choose, among candidates that include 0.
"""

import functools
from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.cpu import trim
from sglang_nightjar.draft import plain_decode, upkeep
from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_MODULE = "sglang.srt.speculative.eagle_worker_v2"
_FORWARD = f"{_MODULE}:EAGLEWorkerV2.forward_batch_generation"
_AFTER_PREFILL = f"{_MODULE}:EagleDraftWorker._draft_extend_for_prefill"
_DRAFT = f"{_MODULE}:EagleDraftWorker.draft"
_AFTER_DECODE = f"{_MODULE}:EagleDraftWorker._draft_extend_for_decode"
_SKIPPED = f"{_MODULE}:EAGLEWorkerV2._stub_skipped_draft_extend"
_VERIFY = f"{_MODULE}:EAGLEWorkerV2.verify"
_PREPARE_VERIFY = "sglang.srt.speculative.eagle_utils:eagle_prepare_for_verify"
_EAGLE3 = "sglang.srt.models.llama_eagle3:LlamaForCausalLMEagle3"
_UNFINISHED = "sglang.srt.mem_cache.radix_cache:RadixCache.cache_unfinished_req"

SEAMS = (
    Seam(_FORWARD, ("batch", "on_publish", "grammar_barrier"), "hook", "to catch up before drafts"),
    Seam(
        _AFTER_PREFILL,
        ("batch", "target_hidden_states", "next_token_ids", "mm_input_embeds"),
        "hook",
        "or γ=0 runs the draft over every prompt",
    ),
    Seam(_DRAFT, ("batch",), "hook", "to draft without SGLang's ModelRunner on a CPU"),
    Seam(
        f"{_MODULE}:build_eagle_verify_input",
        (
            "batch",
            "draft_input",
            "parent_list",
            "top_scores_index",
            "draft_tokens",
            "draft_probs",
            "target_worker",
            "topk",
            "num_steps",
            "num_draft_tokens",
            "tree_mask_mode",
            "device",
        ),
        "call",
        "to hand such a chain to the verification",
    ),
    Seam(_EAGLE3, None, "call", "to know a draft that can do so"),
    Seam(_AFTER_DECODE, ("batch", "batch_result"), "hook", "or γ=0 runs the draft over every token"),
    Seam(_SKIPPED, ("batch", "batch_output"), "hook", "SGLANG_SPEC_SKIP_ZERO_STEP_DRAFT_EXTEND leaves holes unnoted"),
    Seam(_VERIFY, ("batch", "grammar_barrier"), "hook", "or γ=0 on a CPU keeps books of a tree of one token"),
    Seam(
        _PREPARE_VERIFY,
        ("verify_input", "req_to_token_pool", "batch", "target_worker"),
        "hook",
        "or γ=0 verifies a chain of one token instead of decoding",
    ),
    Seam(_UNFINISHED, ("req", "chunked"), "hook", "to notice that a request's slots were exchanged"),
)


def catch_up_first(worker: Any, batch: Any, *_rest: Any, **_named: Any) -> None:
    if upkeep.current is not None and batch.forward_mode.is_decode():
        upkeep.current.before_decode(batch)


def extend_after_prefill(
    original: Callable[..., Any], worker: Any, batch: Any, hidden: Any, next_tokens: Any, mm: Any = None
) -> Any:
    ours = _on_cpu(worker, batch) if mm is None else None
    extend = functools.partial(original, worker, mm_input_embeds=mm) if ours is None else ours.read_prompts
    if upkeep.current is None or batch.forward_mode.is_idle():
        return extend(batch, hidden, next_tokens)
    return upkeep.current.extend_after_prefill(extend, batch, hidden, next_tokens, must_read=mm is not None)


def draft(original: Callable[..., Any], worker: Any, batch: Any) -> Any:
    ours = _on_cpu(worker, batch)
    return original(worker, batch) if ours is None else ours.verify_input(batch)


def extend_after_decode(original: Callable[..., None], worker: Any, batch: Any, result: Any) -> None:
    ours = _on_cpu(worker, batch)
    extend = functools.partial(original, worker) if ours is None else ours.read_accepted
    if upkeep.current is None or batch.forward_mode.is_idle():
        extend(batch, result)
    else:
        upkeep.current.extend_after_decode(extend, batch, result, worker.speculative_num_steps)


def _on_cpu(worker: Any, batch: Any) -> Any:
    """The `Eagle3Draft` that can serve ``batch``, or None."""
    if worker.device != "cpu":
        return None
    from sglang_nightjar.cpu import eagle3_draft

    found = eagle3_draft.of(worker, batch)
    if found is not None:
        found.trims = upkeep.current is not None and upkeep.current.trims
    return found


def note_skipped(original: Callable[..., None], worker: Any, batch: Any, result: Any) -> None:
    if upkeep.current is None or batch.forward_mode.is_idle():
        original(worker, batch, result)
    else:
        upkeep.current.extend_after_decode(original, batch, result, 0)


def verify(original: Callable[..., Any], worker: Any, batch: Any, grammar_barrier: Any = None) -> Any:
    if (
        upkeep.current is None
        or worker.device != "cpu"
        or not plain_decode.is_possible(batch.spec_info, worker.req_to_token_pool, batch, worker.target_worker)
    ):
        kept = trim.kept_of(batch.spec_info)
        result = original(worker, batch, grammar_barrier=grammar_barrier)
        if kept is not None:
            trim.tell(result, kept)
        return result
    return plain_decode.verify_one_each(worker, batch, grammar_barrier)


def decode_plainly(
    original: Callable[..., Any], verify_input: Any, req_to_token_pool: Any, batch: Any, target_worker: Any
) -> Any:
    if upkeep.current is None or not plain_decode.is_possible(verify_input, req_to_token_pool, batch, target_worker):
        forward_batch, runs_a_graph = original(verify_input, req_to_token_pool, batch, target_worker)
        if (kept := trim.kept_of(verify_input)) is not None:
            trim.shrink(forward_batch, kept)
        return forward_batch, runs_a_graph
    return plain_decode.prepare(verify_input, req_to_token_pool, batch, target_worker)


def slots_changed(_result: None, _cache: Any, req: Any, *_rest: Any, **_named: Any) -> None:
    if upkeep.current is not None:
        upkeep.current.slots_changed(req.req_pool_idx)


def apply() -> None:
    for target, hook, kind in (
        (_FORWARD, catch_up_first, HookType.BEFORE),
        (_AFTER_PREFILL, extend_after_prefill, HookType.AROUND),
        (_DRAFT, draft, HookType.AROUND),
        (_AFTER_DECODE, extend_after_decode, HookType.AROUND),
        (_SKIPPED, note_skipped, HookType.AROUND),
        (_VERIFY, verify, HookType.AROUND),
        (_PREPARE_VERIFY, decode_plainly, HookType.AROUND),
        (_UNFINISHED, slots_changed, HookType.AFTER),
    ):
        HookRegistry.register(target.replace(":", "."), hook, kind)
