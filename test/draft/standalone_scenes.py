"""What test_standalone.py plays on SGLang's own scheduler with a STANDALONE draft: one process, tiny twins.

Target and draft compute the same (helpers/tiny_twins.py), so all drafts are accepted as long as the draft's cache is
right, and some are not when it is not.
"""

import itertools
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers import tiny_twins
from helpers.one_scheduler import OneScheduler

BASE, CHUNK, NEW = 1536, 64, 64
AWAY_NEW = 160


class Scenes:
    """Attributes:
    one: the scheduler.
    driver: of the draft's residency.
    prompts: short ones, and ``longer`` ones that are computed in chunks.
    """

    def __init__(self, tokenizer_from: str, reclaim: str = "weights"):
        target, draft = tiny_twins.make_tiny_twins(Path(tempfile.mkdtemp()), Path(tokenizer_from))
        self.one = OneScheduler(
            str(target), str(draft), memory_mode="offload", reclaim=reclaim, speculative_algorithm="STANDALONE",
            max_total_tokens=BASE, chunked_prefill_size=CHUNK, max_running_requests=16, random_seed=1,
        )  # fmt: skip
        from sglang_nightjar.draft import residency
        from sglang_nightjar.draft.catch_up import Pace
        from sglang_nightjar.memory import prediction
        from sglang_nightjar.memory.posix import PAGE

        assert residency.current is not None, residency.why_not
        self.driver = residency.current
        # A draft as large as its target would take a hundred iterations to come back.
        self.one.upkeep.catch_up.pace = Pace(48)
        self.predicted = prediction.predict(target, draft, BASE, True, PAGE, reclaim == "weights+kv")
        self.prompts = tiny_twins.prompts(6, 60)
        self.longer = tiny_twins.prompts(4, 200, seed=1)
        self._names = itertools.count()

    def add(self, prompts: Sequence[list[int]], new: int = NEW, **sampling: Any) -> list[str]:
        names = [f"r{next(self._names)}" for _ in prompts]
        for name, ids in zip(names, prompts, strict=True):
            self.one.add(name, ids, new, **sampling)
        return names

    def play(self, prompts: Sequence[list[int]], gammas: Iterator[int], new: int = NEW, **sampling: Any) -> Any:
        """Run prompts together: their outputs."""
        names = self.add(prompts, new, **sampling)
        self.one.run(gammas)
        return [self.one.output(name) for name in names]

    def rejected(self) -> dict[str, int]:
        """Of the drafts since `forget`: how many there were, and how many were not accepted."""
        one = self.one
        accepted = [number for steps in one.verified.values() for _, number in steps]
        return {"drafted": self.drafted, "rejected": self.drafted - sum(accepted)}

    def count_drafts(self) -> None:
        """From now on, count what is proposed: γ of each request in each iteration."""
        self.drafted = 0
        run, one = self.one.scheduler.process_batch_result, self.one

        def counting(batch: Any, result: Any) -> Any:
            if batch.forward_mode.is_decode():
                self.drafted += len(batch.reqs) * ((result.speculative_num_draft_tokens or 1) - 1)
            return run(batch, result)

        one.scheduler.process_batch_result = counting

    def forget(self) -> None:
        self.one.forget()
        self.drafted = 0

    def want(self, where: str, gamma: int) -> None:
        """The plan from now on."""
        self.one.residency, self.one.gamma = where, gamma

    def until(self, *states: str, limit: int = 400) -> list[str]:
        """Iterate until the draft is in one of ``states``; the states on the way."""
        seen: list[str] = []
        for _ in range(limit):
            self.one.step()
            seen.append(self.driver.machine.state.name)
            if seen[-1] in states:
                return list(dict.fromkeys(seen))
        raise TimeoutError(f"still {seen[-1]}")


def all_scenes(tokenizer_from: str) -> dict[str, Any]:
    scenes = Scenes(tokenizer_from)
    from sglang.srt.managers import scheduler as scheduling

    one, found = scenes.one, {}
    scenes.count_drafts()
    everything = [*scenes.prompts, *scenes.longer]
    found["predicted"] = (scenes.predicted.freed_bytes, scenes.predicted.tokens)
    found["real"] = (scenes.driver.weights.nbytes, scenes.driver.extra_tokens)

    # The target alone, and none of the draft's work.
    worker, calls = one.scheduler.draft_worker.draft_worker, []
    forward = worker.draft_runner.forward
    worker.draft_runner.forward = lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
    reference = scenes.play(everything, itertools.repeat(0))
    found["always 0"] = {"used": sorted(set(one.used)), "draft calls": len(calls)}
    worker.draft_runner.forward = forward

    # Prompts and answers of that run are in the radix cache, without the draft's part.
    before = one.upkeep.catch_up.tokens
    found["stale prefixes"] = {"same": scenes.play(everything, itertools.repeat(3)) == reference, **scenes.rejected()}
    found["stale prefixes"]["caught up"] = one.upkeep.catch_up.tokens - before
    scenes.forget()

    found["always 3"] = {"same": scenes.play(everything, itertools.repeat(3)) == reference, **scenes.rejected()}
    scenes.forget()

    # Beginnings in common that go on in different ways.
    stem = scenes.longer[0][:50]
    branches = [[*stem, *branch] for branch in ([100, 200], [300, 400], [500, 600, 700])]
    alone = []
    for branch in branches:
        alone += scenes.play([branch], itertools.repeat(0))
        scenes.forget()
    together = []
    for branch in branches:
        together += scenes.play([branch], itertools.repeat(3))
    found["branches"] = {"same": together == alone, **scenes.rejected()}
    scenes.forget()

    # Flipping, with prompts in chunks, requests that wait, and retractions.
    draw, retracted = random.Random(7), one.agent.collector.totals.retractions
    phases = itertools.chain.from_iterable([g] * draw.randint(4, 16) for g in itertools.cycle([0, 3, 0, 1, 5]))
    scheduling.TEST_RETRACT, scheduling.TEST_RETRACT_INTERVAL = True, 23
    outputs = [output[:NEW] for output in scenes.play(everything, phases, 3 * NEW)]
    scheduling.TEST_RETRACT = False
    found["flips"] = {"same": outputs == reference, "used": sorted(set(one.used)), **scenes.rejected()}
    found["flips"]["retracted"] = one.agent.collector.totals.retractions - retracted
    scenes.forget()

    # Drafts are drawn with the noise that verification will use, also those that follow a return.
    scenes.play(everything, itertools.cycle([0] * 4 + [3] * 20), temperature=0.8)
    found["sampled"] = scenes.rejected()
    scenes.forget()

    found["away"] = away(scenes)
    found["not caught up"] = not_caught_up(scenes)
    status = one.upkeep.status()
    found["status"] = {key: status[key] for key in ("reads", "journal")}
    found["recomputed"] = one.upkeep.catch_up.recomputed
    found["failures"] = one.upkeep.failures + one.agent.errors + scenes.driver.machine.failures
    return found


def away(scenes: Scenes) -> dict[str, Any]:
    """The draft goes and comes back twice while requests run; prompts arrive while it is away."""
    one, driver = scenes.one, scenes.driver
    scenes.want("device", 0)
    reference = scenes.play([*scenes.prompts, *scenes.longer], itertools.repeat(0), AWAY_NEW)
    scenes.forget()
    scenes.want("device", 3)
    names = scenes.add(scenes.prompts, AWAY_NEW)
    for _ in range(8):
        one.step()
    states: list[str] = []
    device_bytes, capacity = [], []
    for cycle in range(2):
        scenes.want("host", 0)
        states += scenes.until("OFFLOADED")
        device_bytes.append(driver.weights.device_bytes + (driver.kv.device_bytes if driver.kv is not None else 0))
        capacity.append(one.scheduler.max_total_num_tokens)
        names += scenes.add(scenes.longer[2 * cycle : 2 * cycle + 2], AWAY_NEW)
        for _ in range(12):
            one.step()
        scenes.want("device", 3)
        states += scenes.until("RESIDENT")
        drafted = scenes.drafted
        for _ in range(6):
            one.step()
        assert scenes.drafted > drafted
    one.run()
    outputs = [one.output(name) for name in names]
    found = {"same": outputs == reference, "states": states, "device bytes": device_bytes, "capacity": capacity}
    found |= scenes.rejected() | {"moved": driver.tail.moved_tokens}
    scenes.forget()
    return found


def not_caught_up(scenes: Scenes) -> dict[str, int]:
    """What would be seen if nobody caught the draft up: the scenes' power to say no."""
    one, coverage = scenes.one, scenes.one.upkeep.coverage
    scenes.want("device", 3)
    scenes.add(scenes.prompts)
    for gamma in [3] * 3 + [0] * 12:
        one.step(gamma)
    coverage.stale[:] = False
    coverage.lag[:] = 0
    coverage.uncertain[:] = False
    coverage.holes.clear()
    scenes.drafted = 0
    one.verified.clear()
    one.run(itertools.repeat(3))
    found = scenes.rejected()
    scenes.forget()
    return found
