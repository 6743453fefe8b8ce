"""Inside the scheduler process: times of every iteration and of its parts, and the floor, on request.

``run_scheduler_process`` is the process target; the benchmark asks through ``Engine.collective_rpc``.
"""

import functools
import json
import time
from collections.abc import Callable
from typing import Any

from sglang_nightjar.agent import process

# Parts of the iteration now running: name -> seconds, innermost callables only once each.
_parts: dict[str, float] = {}
_iterations: list[dict[str, Any]] = []


def _timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            _parts[name] = _parts.get(name, 0.0) + time.perf_counter() - start

    return wrapper


def _target_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Time ModelRunner.forward of the target only; the draft's forwards belong to the draft's parts."""
    timed = _timed("forward", function)

    @functools.wraps(function)
    def wrapper(runner: Any, *args: Any, **kwargs: Any) -> Any:
        return (function if runner.is_draft_worker else timed)(runner, *args, **kwargs)

    return wrapper


def _loop(scheduler: Any) -> None:
    """SGLang's ``event_loop_normal`` with a clock; the CPU engine always runs it when it speculates."""
    while not scheduler.gracefully_exit:
        _parts.clear()
        start = time.perf_counter()
        scheduler.process_input_requests(scheduler.request_receiver.recv_requests())
        plan = scheduler.get_next_batch_to_run(running_batch=scheduler.running_batch, last_batch=scheduler.last_batch)
        scheduler.running_batch = plan.running_batch
        batch = scheduler.cur_batch_for_debug = plan.batch_to_run
        if batch:
            mode, size = batch.forward_mode.name, len(batch.reqs)
            result = scheduler.run_batch(batch)
            ran = time.perf_counter()
            scheduler.process_batch_result(batch, result)
            end = time.perf_counter()
            _iterations.append({"mode": mode, "batch": size, "iteration": end - start, "result": end - ran, **_parts})
        else:
            scheduler.on_idle()
        scheduler.last_batch = batch


def _write_iterations(scheduler: Any, path: str) -> None:
    with open(path, "w") as file:
        file.writelines(json.dumps(iteration) + "\n" for iteration in _iterations)
    _iterations.clear()


def _write_floor(scheduler: Any, path: str, rows: int, passes: int) -> None:
    from bench.cpu_step.floor import Floor

    model = scheduler.tp_worker.model_runner.model
    with open(path, "w") as file:
        json.dump(Floor(model, rows).measure(passes), file)


def run_scheduler_process(*args: Any, **kwargs: Any) -> Any:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker, EAGLEWorkerV2

    from sglang_nightjar.cpu.eagle3_draft import Eagle3Draft

    Scheduler.event_loop_normal = Scheduler.event_loop_overlap = _loop
    Scheduler.write_iterations = _write_iterations
    Scheduler.write_floor = _write_floor
    ModelRunner.forward = _target_forward(ModelRunner.forward)
    EAGLEWorkerV2.verify = _timed("verify", EAGLEWorkerV2.verify)
    EagleDraftWorker.draft = _timed("draft", EagleDraftWorker.draft)
    EagleDraftWorker._draft_extend_for_decode = _timed("draft_extend", EagleDraftWorker._draft_extend_for_decode)
    # What takes the place of the two where it can.
    Eagle3Draft.verify_input = _timed("draft", Eagle3Draft.verify_input)
    Eagle3Draft.read_accepted = _timed("draft_extend", Eagle3Draft.read_accepted)
    return process.run_scheduler_process(*args, **kwargs)
