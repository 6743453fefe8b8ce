"""SGLang's scheduler in this process, driven by hand: every iteration gets the γ that a test wants.

One per process, because SGLang keeps its arguments in globals; tests run their part in a process of its own
(`in_own_process`).
"""

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from helpers.serving import STRICT_CHECKS

GAMMAS = (0, 1, 2, 3, 5)


def in_own_process(function: Callable[..., Any], *arguments: Any, timeout: float = 400.0) -> Any:
    """What ``function``, a module's own, returns; it runs in a new process. Raises RuntimeError if it raises."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(its, function, arguments))
    process.start()
    its.close()
    try:
        if not ours.poll(timeout):
            raise TimeoutError(f"{function.__name__} has not ended after {timeout:.0f} s")
        done, answer = ours.recv()
    finally:
        process.terminate()
        process.join(30)
    if not done:
        raise RuntimeError(answer)
    return answer


def _run(pipe: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    import traceback

    try:
        pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


class OneScheduler:
    """Attributes:
    scheduler: SGLang's.
    upkeep: ours.
    gamma, residency, trim: the plan from the next iteration on: γ, where the draft shall be, and whether drafts that
        don't pay are left out.
    used: γ that each decode iteration had.
    seconds: how long each of them took.
    verified: by request, (tokens that it had, draft tokens accepted) of each iteration with drafts.
    """

    def __init__(
        self,
        target: str,
        draft: str | None,
        journal_mb: int = 64,
        strict: bool = True,
        memory_mode: str = "keep",
        reclaim: str = "weights",
        **flags: Any,
    ):
        os.environ.update(NIGHTJAR_ACTIVE="1", NIGHTJAR_STRICT="1", **(STRICT_CHECKS if strict else {}))
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as config:
            memory = {"journal_mb": journal_mb, "mode": memory_mode, "reclaim": reclaim}
            json.dump({"memory": memory, "gamma": {"candidates": GAMMAS}}, config)
        os.environ["NIGHTJAR_CONFIG"] = config.name
        from sglang_nightjar.cpu.bootstrap import prepare_process

        prepare_process()
        from sglang.srt.plugins import load_plugins
        from sglang.srt.plugins.hook_registry import HookRegistry

        from sglang_nightjar import plugin
        from sglang_nightjar.agent import process, scheduler_agent
        from sglang_nightjar.patches import server_args

        process.role = "scheduler"
        load_plugins()
        # The launcher's part: it fills the arguments in.
        server_args.apply()
        HookRegistry.apply_hooks()
        plugin.verify()
        from sglang.srt.managers.scheduler import Scheduler, configure_scheduler_process
        from sglang.srt.runtime_context import publish
        from sglang.srt.server_args import PortArgs, ServerArgs

        given: dict[str, Any] = {"model_path": target, "max_total_tokens": 16384, **flags}
        if draft is not None:
            given = {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": draft, **given}
        args = ServerArgs(**given)
        configure_scheduler_process(args, 0, 0, 0, 0, 0, 0, None)
        publish(args, role="scheduler")
        self.scheduler = Scheduler(args, PortArgs.init_new(args), 0, 0, 0, 0, 0, 0, None)
        # Nobody listens to what a scheduler sends.
        type(self.scheduler.output_streamer).stream_output = lambda *_, **__: None
        from sglang_nightjar.draft import upkeep

        self.upkeep = upkeep.current
        self.agent = scheduler_agent.current
        self.gamma, self.residency, self.trim = 0, "device", False
        self._strict = strict
        self.used: list[int] = []
        self.seconds: list[float] = []
        self.verified: dict[str, list[tuple[int, int]]] = {}
        self.reqs: dict[str, Any] = {}

    def add(self, name: str, ids: Sequence[int], new_tokens: int, **sampling: Any) -> None:
        """A request arrives; greedy unless ``temperature`` is given."""
        from array import array

        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        params = SamplingParams(**{"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True, **sampling})
        params.normalize(None)
        params.verify(self.scheduler.model_config.vocab_size)
        before = len(self.scheduler.waiting_queue)
        self.scheduler.handle_generate_request(
            TokenizedGenerateReqInput(
                rid=name,
                input_text="",
                input_ids=array("q", ids),
                input_embeds=None,
                mm_inputs=None,
                token_type_ids=None,
                sampling_params=params,
                return_logprob=False,
                logprob_start_len=-1,
                top_logprobs_num=0,
                token_ids_logprob=None,
                stream=False,
            )
        )
        assert len(self.scheduler.waiting_queue) == before + 1
        self.reqs[name] = self.scheduler.waiting_queue[-1]

    def step(self, gamma: int | None = None) -> Any:
        """One iteration of SGLang's loop; the result of its batch, or None if there was nothing to do."""
        from sglang_nightjar.agent.decision import Decision

        scheduler = self.scheduler
        if gamma is not None:
            self.gamma = gamma
        if self.agent is not None:
            gammas = ((1, None, self.gamma),)
            wanted = Decision(gammas, "policy", 1, "test", "test", 0, self.residency, trim=self.trim)
            if self.agent.selector.decision != wanted:
                self.agent.apply(wanted)
        started = time.perf_counter()
        plan = scheduler.get_next_batch_to_run(running_batch=scheduler.running_batch, last_batch=scheduler.last_batch)
        scheduler.running_batch = plan.running_batch
        batch, result = plan.batch_to_run, None
        if batch:
            lengths = [(req.rid, len(req.output_ids)) for req in batch.reqs]
            result = scheduler.run_batch(batch)
            scheduler.process_batch_result(batch, result)
            if batch.forward_mode.is_decode():
                self.used.append((result.speculative_num_draft_tokens or 1) - 1)
                self.seconds.append(time.perf_counter() - started)
            if batch.forward_mode.is_decode() and self.used[-1]:
                for (name, length), accepted in zip(lengths, result.num_correct_drafts_per_req_cpu, strict=True):
                    self.verified.setdefault(name, []).append((length, accepted))
        else:
            scheduler.on_idle()
        scheduler.last_batch = batch
        if self._strict:
            scheduler.invariant_checker.self_check_during_busy()
        return result

    def forget(self) -> None:
        """Empty the radix cache, and what was noted of iterations."""
        assert self.scheduler.flush_cache()
        self.used.clear()
        self.seconds.clear()
        self.verified.clear()

    def run(self, gammas: Iterator[int] | None = None, limit: int = 100_000) -> None:
        """Until nothing is left to do; ``gammas`` says γ for each iteration."""
        for _ in range(limit):
            if self.step(next(gammas) if gammas is not None else None) is None and not self.scheduler.waiting_queue:
                return
        raise TimeoutError(f"still busy after {limit} iterations")

    def output(self, name: str) -> list[int]:
        """Tokens that the request got; the last verification may have made more than it asked for."""
        req = self.reqs[name]
        return list(req.output_ids)[: req.sampling_params.max_new_tokens]

    def accepted_length(self, name: str) -> float:
        """Tokens per iteration with drafts so far, 1 without any; SGLang's own count takes those at γ=0 in."""
        steps = self.verified.get(name, [])
        return 1 + sum(accepted for _, accepted in steps) / max(1, len(steps))
