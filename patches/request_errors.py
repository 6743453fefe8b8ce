"""managers/tokenizer_manager.py, SGLang 0.5.17: answer 400 to a sampling parameter of an unknown name or a wrong type.

SGLang turns a ValueError into an answer with its message. These are TypeErrors, which the client sees as "Internal
Server Error" and the operator as a traceback.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_nightjar.patches.seams import Seam

ROLES = ("main",)

_MANAGER = "sglang.srt.managers.tokenizer_manager"
_CREATE = "TokenizerManager._create_tokenized_object"
_VALIDATE = "TokenizerManager._validate_one_request"

SEAMS = (
    Seam(
        f"{_MANAGER}:{_CREATE}",
        ("obj", "input_text", "input_ids", "input_embeds", "mm_inputs", "token_type_ids"),
        "hook",
        "to answer 400 to wrong sampling parameters",
    ),
    Seam(f"{_MANAGER}:{_VALIDATE}", ("obj", "input_ids"), "hook", "to answer 400 to wrong sampling parameters"),
)


def explain_type_errors(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return original(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"bad sampling parameters: {error}") from error


def apply() -> None:
    for method in (_CREATE, _VALIDATE):
        HookRegistry.register(f"{_MANAGER}.{method}", explain_type_errors, HookType.AROUND)
