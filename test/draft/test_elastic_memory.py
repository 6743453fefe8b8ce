"""Which of SGLang's KV pools are made elastic, and when the draft's own cache is given back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_nightjar.draft import elastic_memory, upkeep
from sglang_nightjar.draft.draft_kv import DraftKv

BASE = 64


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_pool", None), ("_draft_kv", None), ("_draft_kv_is_next", False), ("_reclaims_kv", False)):
        monkeypatch.setattr(elastic_memory, name, value)
    monkeypatch.setattr(upkeep, "current", "an upkeep")


def pool(layers: int, layout: str = "nhd") -> Any:
    """One of SGLang's without its buffers."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    made = object.__new__(MHATokenToKVPool)
    made.size, made.page_size, made.device, made.layer_num, made.store_dtype = BASE, 1, "cpu", layers, torch.float32
    made.head_num, made.head_dim, made.v_head_dim, made.use_hnd = 2, 8, 8, False
    made.kv_cache_layout, made.enable_custom_mem_pool = layout, False
    return made


def scheduler(draft_pool: Any = None) -> Any:
    runner = SimpleNamespace(model=torch.nn.Linear(8, 8), token_to_kv_pool=draft_pool)
    return SimpleNamespace(draft_worker=SimpleNamespace(draft_worker=SimpleNamespace(draft_runner=runner)))


def test_the_targets_pool_and_the_one_after_it() -> None:
    target, draft, another = pool(2), pool(1), pool(1)
    with elastic_memory.reserving(scheduler(), True):
        assert elastic_memory.make_pool(target)
    assert target.size >= 2 * BASE, "addresses for all that the draft's KV may free"
    assert elastic_memory.make_pool(draft)
    assert draft.size == BASE and draft.k_buffer[0].shape == (BASE + 1, 2, 8)
    assert not elastic_memory.make_pool(another)
    assert elastic_memory._kv_to_give_back(scheduler(draft)).pool is draft
    assert elastic_memory._kv_to_give_back(scheduler(another)) is None


def test_the_drafts_pool_is_sglangs_own_unless_it_is_to_go() -> None:
    with elastic_memory.reserving(scheduler(), False):
        assert elastic_memory.make_pool(pool(2))
    draft = pool(1)
    assert not elastic_memory.make_pool(draft)
    assert elastic_memory._kv_to_give_back(scheduler(draft)) is None


def test_a_draft_of_another_kind_keeps_its_kv() -> None:
    with elastic_memory.reserving(scheduler(), True):
        assert elastic_memory.make_pool(pool(2))
    draft = pool(1, "vectorized_5d")
    assert not elastic_memory.make_pool(draft)
    assert elastic_memory._kv_to_give_back(scheduler(draft)) is None


def test_it_stays_where_nobody_notes_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_memory, "_draft_kv", DraftKv(draft := pool(1)))
    assert elastic_memory._kv_to_give_back(scheduler(draft)) is not None
    monkeypatch.setattr(upkeep, "current", None)
    assert elastic_memory._kv_to_give_back(scheduler(draft)) is None
