"""Sets a scheduler's memory up: the target's KV cache on elastic buffers, the draft's if wanted, its weights in one.

SGLang loads both models, makes the target's cache, then the draft's, shares weights, and captures CUDA graphs. The
cache must be elastic when it is made, and the weights must have moved before graphs are captured.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sglang_nightjar.agent import identity
from sglang_nightjar.core.capacity import human_bytes
from sglang_nightjar.core.residency import Wish
from sglang_nightjar.cpu import kernels
from sglang_nightjar.draft import agreement, fence, residency, upkeep
from sglang_nightjar.draft.draft_kv import DraftKv
from sglang_nightjar.draft.elastic_pool import ElasticPool
from sglang_nightjar.draft.pool_tail import PoolTail
from sglang_nightjar.draft.weights import DraftWeights
from sglang_nightjar.patches.seams import Seam
from sglang_nightjar.profile import store

logger = logging.getLogger(__name__)

_SCHEDULER = "sglang.srt.managers.scheduler:Scheduler"
_ARGS = "sglang.srt.server_args:ServerArgs"

SEAMS = (
    Seam(f"{_SCHEDULER}.is_fully_idle", ("for_health_check",), "call", "to finish transitions at once when idle"),
    *(
        Seam(f"{_ARGS}.{name}", None, "field", "to see what is incompatible with a KV cache that grows")
        for name in (
            "disaggregation_mode",
            "enable_hierarchical_cache",
            "enable_memory_saver",
            "enable_streaming_session",
            "dcp_size",
            "pp_size",
        )
    ),
)

#: A draft's packed weights may take as much as the plain ones, and addresses cost nothing.
_ADDRESSES_PER_BYTE = 2 + 1

_reserving: Any = None
_reclaims_kv = False
_draft_kv_is_next = False
_pool: ElasticPool | None = None
_draft_kv: DraftKv | None = None
_weights: DraftWeights | None = None


def obstacle(scheduler: Any) -> str:
    """Why this scheduler's draft can't give its memory back, as a clause; "" if it can, as far as is known early."""
    args, worker = scheduler.server_args, scheduler.draft_worker
    if worker is None or getattr(worker, "draft_worker", None) is None:
        return "there is no draft model"
    if args.device not in ("cpu", "cuda"):
        return f"there is no elastic memory on {args.device}"
    if args.device == "cpu" and not kernels.in_use():
        return "our CPU kernels are not in use, and others keep weights in forms of their own"
    for name, wanted, why in (
        ("disaggregation_mode", "null", "prefill and decode are separate servers"),
        ("enable_hierarchical_cache", False, "the hierarchical cache copies KV rows in the background"),
        ("enable_memory_saver", False, "the memory saver manages the same memory"),
        ("enable_streaming_session", False, "streaming sessions hold KV slots between requests"),
        ("dcp_size", 1, "the KV cache is spread over ranks"),
        ("pp_size", 1, "layers are spread over pipeline stages"),
    ):
        if getattr(args, name, wanted) not in (wanted, None):
            return why
    return ""


@contextmanager
def reserving(scheduler: Any, reclaims_kv: bool) -> Iterator[None]:
    """While the target's KV cache is made: make it elastic, with addresses for all that the draft may free.

    With ``reclaims_kv`` the draft's own cache, which SGLang makes next, will be elastic too.
    """
    global _reserving, _reclaims_kv, _draft_kv_is_next
    _reserving, _reclaims_kv = scheduler, reclaims_kv
    try:
        yield
    finally:
        _reserving = None
    _draft_kv_is_next = reclaims_kv and _pool is not None


def make_pool(pool: Any) -> bool:
    """Make the buffers of ``pool``; False if they are to be SGLang's own."""
    global _pool, _draft_kv, _draft_kv_is_next
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    if (_reserving is None and not _draft_kv_is_next) or type(pool) is not MHATokenToKVPool:
        return False
    if pool.kv_cache_layout != "nhd" or pool.enable_custom_mem_pool:
        return False
    if _reserving is None:
        _draft_kv, _draft_kv_is_next = DraftKv(pool), False
        return True
    draft = _reserving.draft_worker.draft_worker.draft_runner.model
    draft_bytes = sum(parameter.nbytes for parameter in draft.parameters())
    k_shape, v_shape = pool._kv_buffer_shapes()
    row_values = k_shape[1] * k_shape[2] + v_shape[1] * v_shape[2]
    row_bytes = pool.layer_num * row_values * pool.store_dtype.itemsize
    # A draft's KV takes no more than its target's.
    rows = pool.size * (2 if _reclaims_kv else 1) + _ADDRESSES_PER_BYTE * draft_bytes // row_bytes
    _pool = ElasticPool(pool, rows)
    return True


def move_weights(scheduler: Any) -> None:
    """After both caches were made and weights are shared: move the draft's own."""
    global _weights, _draft_kv_is_next
    _draft_kv_is_next = False
    if _pool is None:
        return
    target = scheduler.tp_worker.model_runner.model
    try:
        _weights = DraftWeights(scheduler.draft_worker.draft_worker.draft_runner.model, target)
    except ValueError as error:
        residency.why_not = str(error)


def _kv_to_give_back(scheduler: Any) -> DraftKv | None:
    """The draft's KV cache if it can be given back, and somebody notes that everything in it is stale then."""
    made_for = scheduler.draft_worker.draft_worker.draft_runner.token_to_kv_pool
    is_its_own = _draft_kv is not None and _draft_kv.pool is made_for
    return _draft_kv if is_its_own and upkeep.current is not None else None


def start(scheduler: Any, selector: Any, retract: bool) -> None:
    """Once the scheduler is complete: make the driver."""
    if residency.why_not and (_pool is None or _weights is None):
        return
    if _pool is None or _weights is None:
        residency.why_not = "the KV cache is of a kind that can't grow"
        return
    if 0 not in selector.candidates:
        residency.why_not = f"γ=0 is not among the candidates {list(selector.candidates)}"
        return
    if scheduler.is_hybrid_swa or scheduler.is_hybrid_ssm:
        residency.why_not = "the KV cache is of several kinds"
        return
    tree = type(scheduler.tree_cache).__name__
    if tree not in ("RadixCache", "ChunkCache"):
        residency.why_not = f"the prefix cache is a {tree}"
        return
    tail = PoolTail(scheduler, _pool)

    def wish() -> Wish:
        decision = selector.decision
        drafting = decision.gamma_for(max(1, len(scheduler.running_batch.reqs))) > 0
        return Wish(decision.residency == "device", drafting)

    driver = residency.DraftResidency(
        _weights,
        _pool,
        tail,
        wish,
        scheduler.is_fully_idle,
        fence.of(scheduler),
        agreement.of(scheduler),
        retract,
        scheduler.ps.tp_size,
        kv := _kv_to_give_back(scheduler),
    )
    if _reclaims_kv and kv is None:
        driver.kv_stays = "it is not plain" if _draft_kv is None else "nobody would make good what is lost"
        logger.warning("Nightjar: memory.reclaim is weights+kv, but the draft's KV cache stays: %s", driver.kv_stays)
    if (keeper := upkeep.current) is not None:
        keeper.keeps_all = kv is not None
        driver.on_loss = keeper.lost
        tail.on_move += [keeper.coverage.moved, keeper.inputs.moved]
        driver.lag = keeper.lag
        driver.on_change = lambda has_weights: setattr(keeper, "available", has_weights)
    key = identity.pool_of(scheduler.server_args)
    driver.times.earlier = store.load_steps(key)
    # A disk may be slow, and nobody waits for this.
    driver.on_return = lambda: threading.Thread(target=store.save_steps, args=(key, driver.times.table())).start()
    residency.current, residency.why_not = driver, ""
    logger.info(
        "Nightjar: without the draft, %s are free for %d tokens of KV cache beside %d",
        human_bytes(driver.freed_bytes),
        driver.extra_tokens,
        _pool.base_tokens,
    )
