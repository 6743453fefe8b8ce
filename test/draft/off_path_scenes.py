"""What test_off_path.py looks at: one scheduler, driven by hand, in a process of its own. Returns plain values."""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers.one_scheduler import OneScheduler

PROMPTS = Path(__file__).parents[1] / "data" / "prompts.json"
NEW = 48
CHUNK = 64


def token_ids(target: str) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target)
    texts = json.loads(PROMPTS.read_text())
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True, return_dict=False)
        for t in texts
    ]


class Scenes:
    """Attributes:
    one: the scheduler.
    prompts: token ids.
    """

    def __init__(self, target: str, draft: str):
        self.one = OneScheduler(
            target, draft, max_total_tokens=4096, chunked_prefill_size=CHUNK, max_running_requests=8
        )
        self.prompts = token_ids(target)
        self._names = itertools.count()

    def play(
        self, which: list[int], gammas: Iterator[int], new: int = NEW, extra: Sequence[list[int]] = (), **sampling: Any
    ) -> tuple[list[list[int]], list[float], list[int]]:
        """Run some prompts together; (outputs, accepted lengths, γ of the decode iterations)."""
        asked = [*(self.prompts[index] for index in which), *extra]
        names = [f"r{next(self._names)}" for _ in asked]
        for name, ids in zip(names, asked, strict=True):
            self.one.add(name, ids, new, **sampling)
        self.one.used.clear()
        self.one.run(gammas)
        return (
            [self.one.output(name) for name in names],
            [self.one.accepted_length(name) for name in names],
            list(self.one.used),
        )

    def long_prompt(self, index: int) -> list[int]:
        """One that is computed in several chunks, and has the beginning of another in common."""
        return self.prompts[index // 2] + self.prompts[index + 8] + self.prompts[index + 20]

    def reserved(self, name: str, gamma: int) -> int:
        """Slots that a running request holds beyond its text when the next batch has ``gamma``."""
        req = self.one.reqs[name]
        committed = 0
        while not req.output_ids or req.kv.kv_allocated_len - committed > 5 or self.one.used[-1:] != [gamma]:
            committed = req.kv_committed_len
            self.one.step(gamma)
        return req.kv.kv_allocated_len - committed

    def draft_cache(self, name: str, length: int) -> Any:
        """The draft's keys and values of the first positions of a running request, float32 ``[length, 2, ...]``."""
        import torch

        req = self.one.reqs[name]
        slots = self.one.scheduler.req_to_token_pool.req_to_token[req.req_pool_idx, :length].long()
        pool = self.one.scheduler.draft_worker.draft_worker.draft_runner.token_to_kv_pool
        return torch.stack([pool.k_buffer[0][slots], pool.v_buffer[0][slots]], dim=1).float().clone()


def all_scenes(target: str, draft: str) -> dict[str, Any]:
    return play_all(Scenes(target, draft))


def play_all(scenes: Scenes) -> dict[str, Any]:
    from sglang.srt.managers import scheduler as scheduling

    one, found = scenes.one, {}
    few = list(range(6))

    outputs, lengths, used = scenes.play(few, itertools.repeat(3))
    reference = dict(zip(few, outputs, strict=True))
    found["always 3"] = {"lengths": lengths, "used": sorted(set(used)), "journalled": one.upkeep.inputs.journal.written}
    one.forget()

    # The same with a prompt that was never computed at γ > 0, and none of the draft's work.
    worker, calls = one.scheduler.draft_worker.draft_worker, []
    forward = worker.draft_runner.forward
    worker.draft_runner.forward = lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
    outputs, _, used = scenes.play(few, itertools.repeat(0))
    found["always 0"] = {"used": sorted(set(used)), "draft calls": len(calls)}
    found["always 0"]["pairs"] = _different(outputs, reference, few)
    worker.draft_runner.forward = forward

    # Prefixes that the draft has not seen: prompts and answers of the run at γ=0 are in the radix cache.
    before = one.upkeep.catch_up.tokens
    outputs, lengths, used = scenes.play(few, itertools.repeat(3))
    found["stale prefixes"] = {"pairs": _different(outputs, reference, few), "lengths": lengths}
    found["stale prefixes"]["caught up"] = one.upkeep.catch_up.tokens - before
    one.forget()

    # Flipping, with prompts in chunks, requests that wait, and retractions.
    draw, retracted = random.Random(7), one.agent.collector.totals.retractions
    phases = itertools.chain.from_iterable([g] * draw.randint(1, 12) for g in itertools.cycle([0, 3, 0, 1, 5]))
    longer = [scenes.long_prompt(i) for i in range(8)]
    scheduling.TEST_RETRACT, scheduling.TEST_RETRACT_INTERVAL = True, 23
    outputs, _, used = scenes.play(few, phases, extra=longer, new=NEW)
    scheduling.TEST_RETRACT = False
    found["flips"] = {
        "pairs": _different(outputs[: len(few)], reference, few),
        "used": {gamma: used.count(gamma) for gamma in set(used)},
        "retracted": one.agent.collector.totals.retractions - retracted,
        "chunked": sum(len(prompt) > CHUNK for prompt in longer),
    }
    one.forget()

    # Drafts are drawn with the noise that verification will use, also those that follow a return.
    one.verified.clear()
    scenes.play(few, itertools.cycle([0] * 4 + [3] * 3), temperature=0.8)
    accepted = [number for steps in one.verified.values() for _, number in steps]
    found["sampled"] = {"accepted": sum(accepted) / len(accepted)}
    one.forget()

    one.add("reserve", scenes.prompts[0], NEW)
    found["reserve"] = {gamma: scenes.reserved("reserve", gamma) for gamma in (0, 3)}
    one.run(itertools.repeat(3))
    one.forget()

    found["cache"] = cache_after_an_off_period(scenes)
    found["recomputed"] = one.upkeep.catch_up.recomputed
    one.upkeep.inputs.journal.capacity = 0
    one.upkeep.inputs.journal._owner.fill_(-1)
    found["cache without a journal"] = cache_after_an_off_period(scenes)
    found["recomputed without a journal"] = one.upkeep.catch_up.recomputed
    found["failures"] = one.upkeep.failures + one.agent.errors
    found["prompts"] = scenes.prompts
    return found


def cache_after_an_off_period(scenes: Scenes) -> dict[str, float]:
    """How far the draft's cache is from what it is without the off period; and what garbage would be."""
    one, index = scenes.one, 9
    caches = []
    for off in (0, 50):
        name = f"cache{next(scenes._names)}"
        one.add(name, scenes.prompts[index], 100)
        gammas = itertools.chain([3] * 8, [0] * off, itertools.repeat(3))
        while len(one.output(name)) < 90:
            one.step(next(gammas))
        length = len(scenes.prompts[index]) + 80
        caches.append(scenes.draft_cache(name, length))
        one.run(gammas)
        one.forget()
    with_it, without = caches
    scale = float(with_it.abs().mean())
    return {
        "difference": float((with_it - without).abs().max()) / scale,
        "other positions": float((with_it[1:] - with_it[:-1]).abs().mean()) / scale,
    }


def _different(outputs: list[list[int]], reference: dict[int, list[int]], which: list[int]) -> list[tuple]:
    return [(i, ours, reference[i]) for i, ours in zip(which, outputs, strict=True) if ours != reference[i]]
