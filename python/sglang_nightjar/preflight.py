"""Checks that need no model in memory: each mistake found here would otherwise end a start-up of a minute or more.

``args`` is anything with the attributes of SGLang's ServerArgs, as the user gave them.
"""

import json
import re
import socket
from pathlib import Path
from typing import Any

from sglang_nightjar.errors import ConfigError
from sglang_nightjar.patches.seams import Seam

SEAMS = (
    Seam(
        "sglang.srt.speculative.adaptive_spec_params:resolve_candidate_steps_from_config",
        ("cfg_path",),
        "call",
        "to check --speculative-adaptive-config early",
    ),
)

# An EAGLE-3 head reads the target's hidden states; a plain EAGLE head too. A STANDALONE draft is a model of its own.
_HEADS_ON_HIDDEN_STATES = ("EAGLE", "EAGLE3")
_ON_A_CPU = (*_HEADS_ON_HIDDEN_STATES, "STANDALONE")


def check(args: Any) -> None:
    """Raise ConfigError for the first thing in ``args`` that can't work."""
    _check_port(args.host, args.port)
    _check_model_path("--model-path", args.model_path)
    if args.speculative_draft_model_path:
        _check_model_path("--speculative-draft-model-path", args.speculative_draft_model_path)
    if args.speculative_algorithm in _HEADS_ON_HIDDEN_STATES and args.speculative_draft_model_path:
        check_draft_fits(args.speculative_algorithm, args.model_path, args.speculative_draft_model_path)
    if args.speculative_algorithm == "STANDALONE":
        _check_standalone(args)
    if args.speculative_adaptive and args.speculative_adaptive_config:
        _check_adaptive_config(args.speculative_adaptive_config)


def check_cpu(args: Any) -> None:
    """Raise ConfigError for what the CPU engine can't do. Also called for ``sglang.Engine``."""
    if args.pp_size > 1:
        raise ConfigError(f"pp_size={args.pp_size}: the CPU engine has no pipeline of processes: leave it at 1")
    if args.page_size not in (None, 1):
        raise ConfigError(f"page_size={args.page_size} needs Triton, which the CPU engine has not: use 1")
    if args.quantization is not None:
        raise ConfigError(f"quantization={args.quantization!r} has no CPU kernels here: leave it out")
    if args.speculative_algorithm is None:
        return
    if args.speculative_algorithm not in _ON_A_CPU:
        raise ConfigError(
            f"speculative_algorithm={args.speculative_algorithm!r}: the CPU engine has {', '.join(_ON_A_CPU)} only"
        )
    if args.speculative_eagle_topk not in (None, 1):
        raise ConfigError(
            f"speculative_eagle_topk={args.speculative_eagle_topk}: the CPU engine verifies chains, not trees: use 1"
        )
    if args.attention_backend not in (None, "intel_amx"):
        raise ConfigError(
            f"attention_backend={args.attention_backend!r} can't speculate on a CPU: leave it out, or use 'intel_amx'"
        )


def check_draft_fits(algorithm: str, target: str, draft: str) -> None:
    """Raise ConfigError if the draft head was made for another target. Only local folders can be checked."""
    target_config, draft_config = _read_config(target), _read_config(draft)
    if target_config is None or draft_config is None:
        return
    target_config = target_config.get("text_config", target_config)
    architecture = (draft_config.get("architectures") or ["none named"])[0]
    if algorithm == "EAGLE3" and not re.search("eagle-?3", architecture, re.IGNORECASE):
        raise ConfigError(
            f"--speculative-algorithm EAGLE3 needs an EAGLE-3 draft, but the architecture of {draft} is {architecture}"
        )
    # The width of the target that the head reads: EAGLE-3 heads may say it apart from their own.
    expected_width = draft_config.get("target_hidden_size", draft_config.get("hidden_size"))
    for what, of_draft, of_target in (
        ("hidden size", expected_width, target_config.get("hidden_size")),
        ("vocabulary size", draft_config.get("vocab_size"), target_config.get("vocab_size")),
    ):
        if of_draft != of_target:
            raise ConfigError(
                f"the draft {draft} was made for another target: its {what} is {of_draft}, but {target} has {of_target}"
            )


def _check_standalone(args: Any) -> None:
    """A STANDALONE draft is a complete model with the target's vocabulary, for as long a context."""
    target, draft = args.model_path, args.speculative_draft_model_path
    if not draft:
        raise ConfigError(
            "--speculative-algorithm STANDALONE needs a draft: --speculative-draft-model-path, a small model with the "
            "target's vocabulary"
        )
    if getattr(args, "speculative_token_map", None):
        raise ConfigError("--speculative-token-map is for EAGLE drafts; a STANDALONE draft has a head of its own")
    target_config, draft_config = _read_config(target), _read_config(draft)
    if target_config is None or draft_config is None:
        return
    architecture = (draft_config.get("architectures") or ["none named"])[0]
    if "eagle" in architecture.lower():
        raise ConfigError(
            f"--speculative-algorithm STANDALONE needs a complete model, but the architecture of {draft} is "
            f"{architecture}: that is --speculative-algorithm {'EAGLE3' if '3' in architecture else 'EAGLE'}"
        )
    sizes = [config.get("vocab_size") for config in (draft_config, target_config)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the draft {draft} has another vocabulary than the target: {sizes[0]} tokens, but {target} has {sizes[1]}"
        )
    context = args.context_length or target_config.get("max_position_embeddings")
    longest = draft_config.get("max_position_embeddings")
    # Scaled positions reach further than the config's number; SGLang checks these itself.
    if context and longest and context > longest and not _is_scaled(draft_config):
        raise ConfigError(
            f"the draft {draft} is made for {longest} positions, but the context is {context}: start with "
            f"--context-length {longest}"
        )


def _is_scaled(config: dict[str, Any]) -> bool:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return rope.get("rope_type", rope.get("type", "default")) != "default"


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"can't listen on {host}:{port} ({error.strerror}): choose another --port") from None


def _check_model_path(flag: str, path: str) -> None:
    """A folder needs a config.json; what looks like a Hugging Face id is left to SGLang."""
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise ConfigError(f"{flag} {path}: this folder has no config.json, so it is not a model")
    elif not Path(path).exists() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        raise ConfigError(f"{flag} {path}: there is no such folder, and it is not a Hugging Face id (owner/name)")


def _read_config(path: str) -> dict[str, Any] | None:
    file = Path(path) / "config.json"
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from None


def _check_adaptive_config(path: str) -> None:
    from sglang.srt.speculative.adaptive_spec_params import resolve_candidate_steps_from_config

    try:
        resolve_candidate_steps_from_config(cfg_path=path)
    except OSError as error:
        raise ConfigError(f"--speculative-adaptive-config {path}: {error.strerror}") from None
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"--speculative-adaptive-config {path}: {error}") from None
