"""What test_away.py plays on SGLang's own scheduler, whose draft gives its memory back: one process, tiny models."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

from helpers.one_scheduler import OneScheduler
from helpers.tiny_pair import make_tiny_pair

BASE, CHUNK, NEW = 1536, 512, 24


def all_scenes(tokenizer_from: str) -> dict[str, Any]:
    target, draft = make_tiny_pair(Path(tempfile.mkdtemp()), Path(tokenizer_from))
    one = OneScheduler(
        str(target), str(draft), memory_mode="offload", max_total_tokens=BASE, chunked_prefill_size=CHUNK,
        max_running_requests=12, random_seed=1,
    )  # fmt: skip
    from sglang_nightjar.draft import residency
    from sglang_nightjar.memory import prediction
    from sglang_nightjar.memory.posix import PAGE

    driver = residency.current
    assert driver is not None, residency.why_not
    predicted = prediction.predict(target, draft, BASE, True, PAGE)
    found: dict[str, Any] = {
        "predicted": (predicted.freed_bytes, predicted.tokens),
        "real": (driver.weights.nbytes, driver.extra_tokens),
    }
    found["chunked"] = {retract: prompt_in_chunks(one, driver, retract) for retract in (False, True)}
    return found


def prompt_in_chunks(one: OneScheduler, driver: Any, retract: bool) -> dict[str, Any]:
    """The plan wants the draft back while a prompt that only fits into the larger cache is being computed."""
    driver._retract = retract
    one.residency = "host"
    one.step(0)
    assert driver.machine.state.name == "OFFLOADED"
    for i in range(3):
        one.add(f"other{i}{retract}", [10 + i] * 300, NEW)
    one.add(f"long{retract}", [20] * 1200, NEW)
    while one.scheduler.chunked_req is None or one.scheduler.chunked_req.rid != f"long{retract}":
        one.step(0)
    one.residency = "device"
    states = []
    while one.scheduler.chunked_req is not None:
        one.step(0)
        states.append((driver.machine.state.name, driver.tail.withheld_tokens))
    one.run(itertools.repeat(0))
    one.step(0)
    lengths = [len(one.output(name)) for name in one.reqs if name.endswith(str(retract))]
    capacity = one.scheduler.max_total_num_tokens
    one.forget()
    return {"states": states, "lengths": lengths, "end": driver.machine.state.name, "capacity": capacity}
