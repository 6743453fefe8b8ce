"""What test_reclaim_kv.py plays with ``memory.reclaim: weights+kv`` on SGLang's own scheduler, driven by hand.

An EAGLE draft in one process and a STANDALONE one in another; both return plain values.
"""

import itertools
from pathlib import Path
from typing import Any

import off_path_scenes
import standalone_scenes
from helpers.one_scheduler import OneScheduler

BASE, NEW, BEFORE, AWAY = 4096, 240, 20, 10
WHICH = range(8)


class Scenes(off_path_scenes.Scenes):
    """As γ=0 is tried, with plans that send the draft away.

    Attributes:
        driver: of the draft's residency.
    """

    def __init__(self, target: str, draft: str):
        self.one = OneScheduler(
            target, draft, memory_mode="offload", reclaim="weights+kv", max_total_tokens=BASE,
            max_running_requests=len(WHICH),
        )  # fmt: skip
        from sglang_nightjar.draft import residency

        assert residency.current is not None, residency.why_not
        self.driver = residency.current
        self.prompts = off_path_scenes.token_ids(target)
        self._names = itertools.count()

    def add(self, new: int, which: Any = WHICH) -> list[str]:
        names = [f"r{next(self._names)}" for _ in which]
        for name, index in zip(names, which, strict=True):
            self.one.add(name, self.prompts[index], new)
        return names

    def want(self, where: str, gamma: int, *states: str, limit: int = 400) -> None:
        """The plan from now on; iterate until the draft is in one of ``states``."""
        self.one.residency, self.one.gamma = where, gamma
        for _ in range(limit):
            self.one.step()
            if self.driver.machine.state.name in states:
                return
        raise TimeoutError(f"still {self.driver.machine.state.name}")

    def away_and_back(self, iterations: int = AWAY) -> dict[str, Any]:
        """The draft goes with its KV, stays for a while, and returns; what was seen while it was away."""
        one, driver = self.one, self.driver
        self.want("host", 0, "OFFLOADED")
        running = one.scheduler.running_batch.reqs
        seen = {
            "draft bytes": driver.weights.device_bytes + driver.kv.device_bytes,
            "capacity": one.scheduler.max_total_num_tokens,
            "lag": one.upkeep.lag()[1],
            "positions": sum(req.kv_committed_len for req in running),
        }
        for _ in range(iterations):
            one.step()
        self.want("device", 3, "RESIDENT")
        return seen


def all_scenes(target: str, draft: str) -> dict[str, Any]:
    scenes = Scenes(target, draft)
    from sglang_nightjar.memory import prediction
    from sglang_nightjar.memory.posix import PAGE

    one, driver, found = scenes.one, scenes.driver, {}
    predicted = prediction.predict(Path(target), Path(draft), BASE, True, PAGE, reclaims_kv=True)
    found["predicted"] = (predicted.freed_bytes, predicted.tokens)
    found["real"] = (driver.freed_bytes, driver.extra_tokens)
    found["kv bytes"] = driver.kv.nbytes
    found["running"] = running(scenes)
    found["cached"] = cached(scenes)
    before = one.upkeep.catch_up.recomputed
    found["cache"] = cache_after_an_absence(scenes)
    found["recomputed"] = (before, one.upkeep.catch_up.recomputed)
    found["journalled"] = one.upkeep.inputs.journal.written
    one.upkeep.inputs.journal.close()
    found["cache without a journal"] = cache_after_an_absence(scenes)
    found["recomputed without a journal"] = one.upkeep.catch_up.recomputed
    found["failures"] = one.upkeep.failures + one.agent.errors + driver.machine.failures
    found["prompts"] = scenes.prompts
    return found


def running(scenes: Scenes) -> dict[str, Any]:
    """Requests that run while the draft goes and comes back, against the same ones left alone."""
    one = scenes.one
    names = scenes.add(NEW)
    one.run(itertools.repeat(3))
    alone = {index: (one.output(name), one.verified[name]) for index, name in zip(WHICH, names, strict=True)}
    one.forget()
    names = scenes.add(NEW)
    while min(len(one.output(name)) for name in names) < BEFORE:
        one.step(3)
    before = one.upkeep.catch_up.tokens
    found = scenes.away_and_back()
    returned = [len(one.output(name)) for name in names]
    one.run(itertools.repeat(3))
    found["caught up"] = one.upkeep.catch_up.tokens - before
    found["left"] = NEW - max(returned)
    outputs = [one.output(name) for name in names]
    # Of the same positions.
    ours, theirs = (
        [n for steps, first in zip(both, returned, strict=True) for at, n in steps if at >= first]
        for both in ([one.verified[name] for name in names], [steps for _, steps in alone.values()])
    )
    found["accepted"] = [1 + sum(counts) / len(counts) for counts in (ours, theirs)]
    found["pairs"] = off_path_scenes._different(outputs, {i: text for i, (text, _) in alone.items()}, list(WHICH))
    one.forget()
    return found


def cached(scenes: Scenes) -> dict[str, Any]:
    """Prompts that only the radix cache holds when the draft goes, and that come again after its return."""
    one, which = scenes.one, list(WHICH)
    alone, lengths, _ = scenes.play(which, itertools.repeat(3), new=off_path_scenes.NEW)
    one.forget()
    scenes.play(which, itertools.repeat(3), new=1)
    scenes.want("host", 0, "OFFLOADED")
    scenes.want("device", 3, "RESIDENT")
    before = one.upkeep.catch_up.tokens
    outputs, again, _ = scenes.play(which, itertools.repeat(3), new=off_path_scenes.NEW)
    found = {"pairs": off_path_scenes._different(outputs, dict(zip(which, alone, strict=True)), which)}
    found |= {"lengths": [sum(again), sum(lengths)], "caught up": one.upkeep.catch_up.tokens - before}
    one.forget()
    return found


def cache_after_an_absence(scenes: Scenes) -> dict[str, float]:
    """How far the draft's cache is from what it is without; and what garbage would be."""
    one, index, caches = scenes.one, 9, []
    for goes in (False, True):
        [name] = scenes.add(200, [index])
        while len(one.output(name)) < BEFORE:
            one.step(3)
        if goes:
            scenes.away_and_back()
        while len(one.output(name)) < 160:
            one.step(3)
        caches.append(scenes.draft_cache(name, len(scenes.prompts[index]) + 150))
        one.run(itertools.repeat(3))
        one.forget()
    without, with_it = caches
    scale = float(without.abs().mean())
    return {
        "difference": float((with_it - without).abs().max()) / scale,
        "other positions": float((without[1:] - without[:-1]).abs().mean()) / scale,
    }


def standalone(tokenizer_from: str) -> dict[str, Any]:
    """Twins, of which every draft must be accepted; the draft's KV is as large as the target's."""
    from sglang_nightjar.draft.catch_up import Pace

    scenes = standalone_scenes.Scenes(tokenizer_from, "weights+kv")
    # All of every request is to be read anew.
    scenes.one.upkeep.catch_up.pace = Pace(256)
    scenes.count_drafts()
    found = {
        "predicted": (scenes.predicted.freed_bytes, scenes.predicted.tokens),
        "real": (scenes.driver.freed_bytes, scenes.driver.extra_tokens),
    }
    found["away"] = standalone_scenes.away(scenes)
    found["not caught up"] = standalone_scenes.not_caught_up(scenes)
    found["failures"] = scenes.one.upkeep.failures + scenes.one.agent.errors + scenes.driver.machine.failures
    return found
