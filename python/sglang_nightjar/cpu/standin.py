"""A stand-in for ``sgl_kernel``, put into ``sys.modules`` before SGLang is imported.

SGLang imports its CPU helpers from ``sgl_kernel`` at module level as soon as the CPU engine is on. The stand-in has
exactly the names that Llama-family models with a draft chain need. It does not define the operator
``convert_weight_packed``, by which SGLang recognises AMX kernels, so every ``cpu_has_amx_support()`` stays false.
"""

import sys
import types

from sglang_nightjar.cpu import spec_ops

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
