"""A stand-in for ``sgl_kernel``, put into ``sys.modules`` before SGLang is imported.

SGLang imports its CPU helpers from ``sgl_kernel`` at module level as soon as the CPU engine is on, and takes its
attention kernels from ``torch.ops.sgl_kernel``. The stand-in has exactly the names that Llama-family models with a draft
chain need. It does not have ``convert_weight_packed``, by which SGLang recognises AMX kernels, so that every
``cpu_has_amx_support()`` in SGLang stays false.
"""

import sys
import types

import torch

from sglang_nightjar.cpu import reference_attention, spec_ops

EXPORTED = (
    spec_ops.assign_req_to_token_pool_cpu,
    spec_ops.assign_extend_cache_locs_cpu,
    spec_ops.assign_draft_cache_locs_contiguous_cpu,
    spec_ops.build_draft_decode_metadata_cpu,
    spec_ops.build_tree_kernel_efficient_cpu,
    spec_ops.verify_tree_greedy_cpu,
    spec_ops.fill_bonus_tokens_cpu,
    spec_ops.fill_accept_out_cache_loc_cpu,
    spec_ops.copy_all_layer_kv_cache_cpu,
    spec_ops.rotate_input_ids_cpu,
)

# The attribute by which we, and nobody else, know our own module.
MARK = "__sglang_nightjar_standin__"

DECODE_SCHEMA = (
    "decode_attention_cpu(Tensor query, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) output, Tensor? key, "
    "Tensor? value, Tensor loc, Tensor attn_logits, Tensor req_to_token, Tensor req_pool_indices, Tensor seq_lens, "
    "float scaling, float logit_cap, bool is_cross_attention, int window, Tensor? encoder_lens, Tensor? sinks) -> ()"
)
EXTEND_SCHEMA = (
    "extend_attention_cpu(Tensor query, Tensor? key, Tensor? value, Tensor(c!) output, Tensor k_cache, Tensor v_cache, "
    "Tensor req_to_token, Tensor req_pool_indices, Tensor seq_lens, Tensor extend_seq_lens, Tensor extend_start_loc, "
    "int max_len_extend, float scaling, float logit_cap, bool is_cross_attention, int window, Tensor? encoder_lens, "
    "Tensor? sinks, Tensor? tree_mask) -> ()"
)

_operators: list[torch.library.Library] = []


def is_installed() -> bool:
    return hasattr(sys.modules.get("sgl_kernel"), MARK)


def install() -> None:
    """Put the stand-in into place; a second call does nothing.

    Raises ``RuntimeError`` if something else was imported as ``sgl_kernel`` before.
    """
    if is_installed():
        return
    if "sgl_kernel" in sys.modules:
        raise RuntimeError("sgl_kernel was imported before sglang_nightjar: import sglang_nightjar first")
    module = types.ModuleType("sgl_kernel", __doc__)
    setattr(module, MARK, True)
    for function in EXPORTED:
        setattr(module, function.__name__, function)
    # A bare parent's submodule: the n-gram worker imports it although EAGLE never calls it.
    speculative = types.ModuleType("sgl_kernel.speculative")
    speculative.reconstruct_indices_from_tree_mask = spec_ops.fill_accept_out_cache_loc_cpu
    module.speculative = speculative
    sys.modules["sgl_kernel"] = module
    sys.modules["sgl_kernel.speculative"] = speculative
    _define_attention_operators()


def _define_attention_operators() -> None:
    operators = torch.library.Library("sgl_kernel", "DEF")
    operators.define(DECODE_SCHEMA)
    operators.define(EXTEND_SCHEMA)
    operators.impl("decode_attention_cpu", reference_attention.decode_attention_cpu, "CPU")
    operators.impl("extend_attention_cpu", reference_attention.extend_attention_cpu, "CPU")
    _operators.append(operators)
