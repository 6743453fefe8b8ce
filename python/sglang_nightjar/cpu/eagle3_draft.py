"""An EAGLE-3 draft's work on a CPU: reading prompts, drawing chains, and reading what was accepted or missed of them.

SGLang sends each of the draft's small passes through its ModelRunner, with a description of the batch, a context and a
logits processor; with one request that takes as long as the passes themselves. After a verification it reads every
verified position, accepted or not, and multiplies all of them with the head, though one row of each request is used.
Here the passes follow each other directly, read what was accepted, and ask the head about the last of it. Of a prompt,
or of what it missed at γ=0, a draft of one layer needs keys and values alone, but for the last token, whose state it
drafts from. The kernels are the same and a row's result does not depend on how many are computed with it, so the drafts
are the same, bit by bit.
"""

import logging
import time
from dataclasses import replace
from typing import Any

import torch

from sglang_nightjar.core.messages import MAX_GAMMA
from sglang_nightjar.cpu import chain_sampling, chain_verify, eagle3_layers, llama_stack, packed_linear, trim
from sglang_nightjar.cpu.attention_backend import AttentionBatch
from sglang_nightjar.cpu.llama_stack import LlamaStack
from sglang_nightjar.draft import inputs
from sglang_nightjar.draft.extend import FirstDrafts

logger = logging.getLogger(__name__)


class Eagle3Draft:
    """The draft of one of SGLang's ``EagleDraftWorker``; `of` makes it.

    Attributes:
        needs_last_alone: of positions that it reads but the last it needs keys and values, no more.
        trims: only those drafts are verified that pay (`cpu.trim`), if it is known how long passes take.
        times: how long they take, once `measure` has found out.
    """

    def __init__(self, worker: Any, stack: LlamaStack):
        self._worker = worker
        self._model = worker.draft_runner.model
        self._stack = stack
        self._vocabulary = self._model.config.draft_vocab_size
        self.trims = False
        self.times: trim.PassTimes | None = None
        self._measured = False
        # When the last verification began, if the next one follows it at once, and its rows.
        self._verified: tuple[int, int] | None = None
        self._usual = trim.UsualChances()
        norms = self._model.model.fc_norm
        self._fc_epsilon = norms[0].variance_epsilon if norms else 0.0
        # Further layers read every row of the one before.
        self.needs_last_alone = len(self._model.model.layers) == 1

    def measure(self) -> None:
        """Find out `times`, the first time that it is asked for. Some thirty passes of the target."""
        if not self._measured:
            self._measured = True
            self.times = _pass_times(self._worker)

    def read_prompts(self, batch: Any, hidden: torch.Tensor, next_tokens: torch.Tensor) -> Any:
        """In the place of ``EagleDraftWorker._draft_extend_for_prefill``: fills the draft's cache for the new positions
        of prompts, and returns an ``EagleDraftInput`` with each request's first draft.

        ``hidden`` are the target's states there, ``[positions, aux * hidden]``; ``next_tokens`` ``[requests]`` what it
        drew behind them.
        """
        from sglang.srt.speculative.eagle_info import EagleDraftInput

        first = self.read(batch, inputs.tokens_after_prompts(batch, next_tokens), hidden)
        return EagleDraftInput(
            topk_p=first.chances,
            topk_index=first.drafts,
            hidden_states=first.states,
            bonus_tokens=next_tokens,
            num_tokens_per_req=1,
            num_tokens_for_logprob_per_req=1,
        )

    def read(self, batch: Any, tokens: torch.Tensor, hidden: torch.Tensor, drafts: bool = True) -> FirstDrafts | None:
        """Fill the draft's cache for the positions by which ``batch`` extends its requests, and draft from the last of
        each, or with ``drafts`` False do not.

        ``tokens`` int64 ``[positions]`` are those after the positions, ``hidden`` the target's states at them,
        ``[positions, aux * hidden]``.
        """
        self._verified = None
        model, pool = self._model.model, self._worker.draft_runner.token_to_kv_pool
        prefixes, extends = torch.tensor(batch.prefix_lens), torch.tensor(batch.extend_lens)
        ends = extends.cumsum(0)
        last = ends - 1
        positions = torch.arange(int(ends[-1])) + torch.repeat_interleave(prefixes + extends - ends, extends)
        rows, slots = batch.req_pool_indices.to(torch.int64), batch.out_cache_loc.to(torch.int64)
        if self.needs_last_alone:
            _, first_input = eagle3_layers.read_inputs(model, tokens, hidden)
            eagle3_layers.store_keys_and_values(model.layers[0], first_input, positions, slots, pool)
            if not drafts:
                return None
            tokens, hidden, positions, slots = tokens[last], hidden[last], positions[last], slots[last]
            extends, last = None, slice(None)
        table, lengths = batch.req_to_token_pool.req_to_token, batch.seq_lens.to(torch.int64)
        seen = AttentionBatch(table, rows, lengths, extends)
        owners = torch.arange(len(rows))
        drawn, chances, carried = self._pass(
            tokens, hidden, positions, slots, seen, batch.sampling_info, owners, positions[last], rows
        )
        return FirstDrafts(drawn[:, None], chances[:, None], carried) if drafts else None

    def verify_input(self, batch: Any) -> Any:
        """In the place of ``EagleDraftWorker.draft``: an ``EagleVerifyInput`` with each request's chain."""
        from sglang.srt.speculative.eagle_worker_v2 import build_eagle_verify_input

        worker, size = self._worker, len(batch.seq_lens)
        began, before = time.perf_counter_ns(), self._verified
        if before is not None and self.times is not None:
            self.times.note(began - before[0], before[1])
        self._verified = None
        times = self.times if self.trims and chain_verify.can_leave_rows_out(batch) else None
        drafts, chances = self._chain(batch, 0.0 if times is None else times.least_chance)
        verify_input = build_eagle_verify_input(
            batch,
            batch.spec_info,
            worker._topk1_parents_prealloc[:size],
            worker._topk1_score_indices_prealloc[:size],
            drafts,
            None,
            target_worker=worker.target_worker,
            topk=worker.topk,
            num_steps=worker.speculative_num_steps,
            num_draft_tokens=worker.speculative_num_draft_tokens,
            tree_mask_mode=worker.tree_mask_mode,
            device=worker.device,
        )
        if times is not None:
            made = chances.double().numpy()
            kept = trim.keep(made, times)
            if kept is not None:
                kept = replace(kept, chances=self._usual.fill(made))
            trim.leave(verify_input, kept)
            self._verified = began, drafts.numel() + size if kept is None else len(kept.rows)
        return verify_input

    def read_accepted(self, batch: Any, result: Any) -> None:
        """In the place of ``EagleDraftWorker._draft_extend_for_decode``: fills the draft's cache for what was accepted,
        and ``result.next_draft_input`` with each request's next draft."""
        accepted, depth = result.accept_lens.to(torch.int64), torch.arange(self._worker.speculative_num_draft_tokens)
        is_text = (depth < accepted[:, None]).flatten()
        positions = (batch.seq_lens.to(torch.int64)[:, None] + depth).flatten()[is_text]
        rows = batch.req_pool_indices.to(torch.int64)
        table = batch.req_to_token_pool.req_to_token
        last = accepted.cumsum(0) - 1
        drawn, chances, carried = self._pass(
            result.next_token_ids[is_text].to(torch.int64),
            result.logits_output.hidden_states[is_text],
            positions,
            batch.out_cache_loc[is_text].to(torch.int64),
            AttentionBatch(table, rows, batch.seq_lens.to(torch.int64) + accepted, accepted),
            batch.sampling_info,
            torch.arange(len(rows)),
            positions[last],
            rows,
        )
        following = result.next_draft_input
        following.topk_index, following.topk_p = drawn[:, None], chances[:, None]
        following.hidden_states = carried

    def _chain(self, batch: Any, least: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Each request's drafts, int64 ``[batch, γ]``, the first of which the last iteration has drawn; and how likely
        each is to be accepted, float32 ``[batch, γ]``.

        A chain that is accepted as a whole with less than ``least`` is not gone on with: from there its chances are 0.
        """
        steps, info = self._worker.speculative_num_steps, batch.spec_info
        rows, lens = batch.req_pool_indices.to(torch.int64), batch.seq_lens.to(torch.int64)
        table = batch.req_to_token_pool.req_to_token
        slots = table[rows[:, None], lens[:, None] + torch.arange(steps)].to(torch.int64)
        hidden, tokens, chance = info.hidden_states, self._target_ids(info.topk_index[:, 0]), info.topk_p[:, 0]
        chain = torch.zeros(len(rows), steps, dtype=torch.int64)
        chances = torch.zeros(len(rows), steps)
        chain[:, 0], chances[:, 0] = tokens, chance
        going, reached = torch.arange(len(rows)), chance
        for step in range(1, steps):
            if least > 0:
                likely = reached >= least
                going, reached, tokens, hidden = going[likely], reached[likely], tokens[likely], hidden[likely]
                if not going.numel():
                    break
            positions = lens[going] + step - 1
            seen = AttentionBatch(table, rows[going], positions + 1, None)
            where = slots[going, step - 1]
            drawn, chance, hidden = self._pass(
                tokens, hidden, positions, where, seen, batch.sampling_info, going, positions, rows
            )
            tokens, reached = self._target_ids(drawn), reached * chance
            chain[going, step], chances[going, step] = tokens, chance
        return chain, chances

    def _pass(
        self,
        tokens: torch.Tensor,
        states: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        seen: AttentionBatch,
        sampling_info: Any,
        owners: torch.Tensor,
        last: torch.Tensor,
        request_rows: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One pass, and a draft behind each request's last row.

        Args:
            tokens, positions, slots: int64 ``[rows]``; ``slots`` are where keys and values go.
            states: the target's ``[rows, aux * hidden]``, or the draft's own ``[rows, hidden]``.
            seen: which positions each of the ``requests`` attends to.
            sampling_info: SGLang's, of the whole batch.
            owners: int64 ``[requests]``, which of the batch these are.
            last: int64 ``[requests]``, the position of each one's last row.
            request_rows: int64 ``[batch]``, the batch's rows in ``req_to_token``.

        Returns:
            The draft's own ids int64 ``[requests]``, the probability that it gives each, and the states to carry on,
            float32 ``[requests, hidden]``.
        """
        model, pool = self._model.model, self._worker.draft_runner.token_to_kv_pool
        layer, width = model.layers[0], model.embed_tokens.weight.shape[1]
        if model.input_norm is not None:
            states = eagle3_layers.project_hidden_states(model, states, width)
        from_target = states.shape[1] != width
        logits, carried, drawn, chance = torch.ops.nightjar.eagle3_forward(
            self._stack.handle(pool),
            tokens,
            states,
            positions,
            slots,
            seen.req_to_token,
            seen.rows,
            seen.seq_lens,
            seen.extend_lens,
            model.embed_tokens.weight,
            [layer.input_layernorm.weight, layer.hidden_norm.weight, model.norm.weight],
            [layer.input_layernorm.variance_epsilon, model.norm.variance_epsilon, self._fc_epsilon],
            model.norm_output,
            packed_linear.packed(self._model.lm_head.weight).weight,
            self._vocabulary,
            [norm.weight for norm in model.fc_norm or ()] if from_target else [],
            packed_linear.packed(model.fc.weight).weight if from_target else None,
            model.fc.bias if from_target else None,
        )
        drawn, chance = self._with_noise(logits, drawn, chance, sampling_info, owners, last, request_rows)
        return drawn, chance, carried

    def _with_noise(
        self,
        logits: torch.Tensor,
        drawn: torch.Tensor,
        chance: torch.Tensor,
        sampling_info: Any,
        owners: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``drawn`` and ``chance`` ``[rows]``, of the likeliest tokens, or where requests are sampled, of draws from
        ``logits``. The rest is as `chain_sampling.draw_drafts_` has it."""
        if sampling_info.is_all_greedy or sampling_info.sampling_seed is not None:
            return drawn, chance
        noisy = logits.clone()
        chain_sampling.draw_drafts_(noisy, sampling_info, owners, positions, slots, self._worker.hot_token_id)
        sampled = chain_verify.argmax(noisy)
        # In units of the likeliest one's.
        relative = (logits.gather(1, sampled[:, None]) - logits.gather(1, drawn[:, None])).exp()
        return sampled, chance * relative[:, 0]

    def _target_ids(self, drawn: torch.Tensor) -> torch.Tensor:
        ids = self._worker.hot_token_id
        return drawn if ids is None else ids[drawn]


def of(worker: Any, batch: Any) -> Eagle3Draft | None:
    """The draft of SGLang's ``EagleDraftWorker``; None if SGLang's own path must serve ``batch``."""
    found = draft_of(worker)
    if found is None or batch.forward_mode.is_idle() or len(batch.seq_lens) > len(worker._topk1_parents_prealloc):
        return None
    return found


def draft_of(worker: Any) -> Eagle3Draft | None:
    """The draft of SGLang's ``EagleDraftWorker``, kept on it; None if SGLang's own path must serve it."""
    found = getattr(worker, "nightjar_eagle3", False)
    if found is False:
        reason = why_not(worker)
        stack = None if reason else eagle3_layers.stack_of(worker.draft_runner.model.model)
        if stack is None:
            logger.info("the draft runs through SGLang's ModelRunner: %s", reason or "its layers don't run as one")
        found = None if stack is None else Eagle3Draft(worker, stack)
        worker.nightjar_eagle3 = found
    return found


def _pass_times(worker: Any) -> trim.PassTimes | None:
    """Those of the target, measured now, on rows of noise that go to the padding slot; None where nobody may trim."""
    from sglang.srt.models.llama import LlamaModel

    runner = worker.target_worker.model_runner
    if not isinstance(runner.model.model, LlamaModel):
        return None
    model, pool = runner.model.model, runner.token_to_kv_pool
    stack = llama_stack.stack_of(model, model.layers, [layer.input_layernorm for layer in model.layers])
    # Ranks would find other times, and so other shapes.
    if stack is None or not llama_stack.usable_pool(pool) or worker.server_args.tp_size > 1:
        return None
    head, table = packed_linear.packed(runner.model.lm_head.weight), runner.req_to_token_pool.req_to_token

    def run(rows: int) -> None:
        nowhere = torch.zeros(rows, dtype=torch.int64)
        residual = torch.randn(rows, runner.model_config.hidden_size)
        stack.forward(residual, nowhere, nowhere, AttentionBatch(table, nowhere, nowhere + 1, None), pool)
        head.linear(residual)

    return trim.PassTimes(run, len(worker._topk1_parents_prealloc) * (MAX_GAMMA + 1))


def why_not(worker: Any) -> str:
    """Why this draft can't do without SGLang's ModelRunner, as a clause; "" if it can."""
    from sglang.srt.models.llama_eagle3 import LlamaForCausalLMEagle3
    from sglang.srt.runtime_context import get_spec

    runner = worker.draft_runner
    model = runner.model
    if worker.topk != 1:
        return "it drafts trees"
    if type(model) is not LlamaForCausalLMEagle3:
        return f"it is a {type(model).__name__}, not an EAGLE-3 head"
    if get_spec().speculative_use_rejection_sampling:
        return "drafts are verified against the draft's own probabilities"
    if runner.canary_manager is not None or worker.server_args.enable_dp_attention:
        return "a canary or data-parallel attention looks into its passes"
    inner = model.model
    if inner.fc_norm is not None and inner.hidden_size_in != inner.norm.weight.numel():
        return "it norms states that are wider or narrower than its own"
    norms = [inner.norm, inner.layers[0].input_layernorm]
    if not all(map(llama_stack.plain_norm, norms)) or not llama_stack.usable_pool(runner.token_to_kv_pool):
        return "a norm or its KV cache is of a special kind"
    processor = model.logits_processor
    if processor.use_fp32_lm_head or processor.final_logit_softcapping or processor.logit_scale is not None:
        return "its logits are scaled or capped"
    if not packed_linear.can_pack(model.lm_head.weight):
        return "its head has no packed form"
    return ""
