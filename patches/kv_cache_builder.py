"""mem_cache/kv_cache_builder.py, SGLang 0.5.17: shared prefixes are right to their end for a STANDALONE draft.

SGLang keeps every draft one token ahead of the target, so a draft's row at a position follows from the token after it.
For EAGLE drafts the radix cache therefore goes by pairs of tokens, and a prefix ends where the pair differs. For a
STANDALONE draft it goes by single tokens: the last row of a shared prefix was made with another request's next token,
and the drafts of everybody who continues in another way suffer. Where γ is Nightjar's to choose it goes by pairs too.
"""

from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.agent import candidates
from sglang_nightjar.patches.seams import Seam

ROLES = ("scheduler",)

_BUILD = "sglang.srt.mem_cache.kv_cache_builder:build_kv_cache"

SEAMS = (
    Seam(_BUILD, None, "hook", "or a STANDALONE draft reads a token of another request at the end of a shared prefix"),
    Seam("sglang.srt.mem_cache.radix_cache:RadixKey.maybe_to_bigram_view", ("is_eagle", "value"), "call", "as above"),
)


def match_pairs(result: Any, *_rest: Any, server_args: Any, spec_algorithm: Any, **_named: Any) -> None:
    from sglang.srt.mem_cache.radix_cache import RadixCache

    ours = candidates.parse(server_args.speculative_adaptive_config) is not None
    if ours and spec_algorithm.is_standalone() and type(result.tree_cache) is RadixCache:
        result.tree_cache.is_eagle = True


def apply() -> None:
    HookRegistry.register(_BUILD.replace(":", "."), match_pairs, HookType.AFTER)
