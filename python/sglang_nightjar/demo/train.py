"""Training of the draft head: soft targets, unrolled draft steps, a checkpoint that an interrupted run picks up."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .features import Batch, FeatureStore
from .generate import load_shards
from .head import DraftHead, HeadShape
from .llama import LlamaModel
from .malloc import give_back_memory
from .soft_loss import SoftTargetLoss

#: What a step counts for at most in the minutes of training.
LONGEST_STEP_S = 60.0


@dataclass(frozen=True)
class TrainPlan:
    """Hyper-parameters. The rate rises for `warmup` steps, stays, and falls linearly over the last `decay` share.

    Training ends after `steps`, or after `minutes` of training where that is given. A step takes about `step_tokens`:
    the fewer, the more steps the same text gives, and text is what is scarce. The first `skip` tokens of a prompt, the
    system message, are the same everywhere and teach nothing.
    """

    steps: int = 8000
    step_tokens: int = 1024
    minutes: float | None = None
    unroll: int = 3
    step_weight: float = 0.85
    rate: float = 1e-3
    head_rate: float = 5e-4
    warmup: int = 100
    decay: float = 0.5
    skip: int = 24
    seed: int = 0

    def progress(self, step: int, seconds: float) -> float:
        """Share of the training done after `step` steps that took `seconds`; 1 or more means finished."""
        return step / self.steps if self.minutes is None else seconds / (60 * self.minutes)

    def rate_at(self, step: int, seconds: float = 0.0) -> float:
        """Factor on the learning rates at `step` (0-based)."""
        left = (1 - self.progress(step, seconds)) / self.decay
        return min(1.0, (step + 1) / self.warmup, max(left, 0.0))


#: Tokens of prior text. Answers of half a million tokens say little about a token that a user's text brings along once;
#: the tokenizer's merges are in the order of how frequent they were in the text that it was made from.
PRIOR_TOKENS = 1_000_000
#: Times that a token of the head to go on from, which was counted on other text, is taken to have been seen there.
KNOWN = 10.0


def count_vocab(shards: Path, size: int, full: int, known: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
    """The `size` tokens expected most often, ascending, and the share of the answers' tokens that they cover.

    Expected by the answers, by the vocabulary `known` from a head to go on from, and by Zipf's law over the token ids.
    """
    counts = torch.zeros(full, dtype=torch.int64)
    for a in load_shards(shards):
        counts += torch.bincount(a.tokens[a.prompt_length :].long(), minlength=full)
    zipf = 1 / (torch.arange(full, dtype=torch.float64) + 1)
    rank = counts + PRIOR_TOKENS * zipf / zipf.sum()
    if known is not None:
        rank[known.cpu()] += KNOWN
    chosen = rank.topk(size).indices.sort().values
    return chosen, float(counts[chosen].sum() / counts.sum())


def chain_loss(
    head: DraftHead, target: LlamaModel, batch: Batch, plan: TrainPlan
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Cross-entropy between the target's distribution over the draft vocabulary and the head's, over unrolled steps.

    Prompts teach too, from their `plan.skip`-th token on: most of their text is the target's own.

    Returns the loss and the unrolled outputs.
    """
    wanted = F.pad(taught(batch, plan.skip)[:, 2:], (0, 1))
    rows = target.embed[head.vocab]
    soft = torch.cat([F.linear(f, rows).float().softmax(-1).to(f.dtype) for f in batch.final[:, 1:][wanted].split(128)])
    outputs = head.unroll(batch.features[:, :-1], F.embedding(batch.tokens[:, 1:], target.embed), plan.unroll)
    total = torch.zeros((), device=soft.device)
    for k, output in enumerate(outputs):
        total = total + plan.step_weight**k * SoftTargetLoss.apply(output[wanted], head.lm_head.weight, soft)
    return total, outputs


def taught(batch: Batch, skip: int) -> torch.Tensor:
    """bool [B, T]: every token of a sequence but its first `skip`; what follows the answer is padding."""
    ends_later = batch.answer.int().flip(1).cummax(1).values.flip(1).bool()
    return ends_later & (torch.arange(batch.answer.shape[1], device=batch.answer.device) >= skip)


@torch.no_grad()
def first_choices(head: DraftHead, outputs: list[torch.Tensor], batch: Batch) -> list[float]:
    """Per unrolled step the share of answer positions whose next token is the head's first choice."""
    wanted, told = F.pad(batch.answer[:, 2:], (0, 1)), F.pad(batch.tokens[:, 2:], (0, 1))
    rows = head.lm_head.weight.to(outputs[0].dtype)
    return [
        (head.vocab[F.linear(o[wanted], rows).max(-1).indices] == told[wanted]).float().mean().item() for o in outputs
    ]


class Trainer:
    """Owns the head, its optimizers and the checkpoint file below `folder`.

    Matrices are trained with Muon (Jordan et al. 2024), which needs markedly fewer steps than AdamW here; norms and the
    vocabulary head with AdamW.
    """

    def __init__(
        self,
        folder: Path,
        target: LlamaModel,
        shape: HeadShape,
        vocab: torch.Tensor,
        plan: TrainPlan,
        residual_rms: float = 1.0,
    ):
        self.folder, self.target, self.plan = folder, target, plan
        torch.manual_seed(plan.seed)
        self.head = DraftHead(shape, target, vocab, residual_rms).to(target.device)
        matrices = [p for n, p in self.head.named_parameters() if p.ndim == 2 and n != "lm_head.weight"]
        others = [p for n, p in self.head.named_parameters() if p.ndim == 1]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=plan.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": others}, {"params": [self.head.lm_head.weight]}], lr=plan.head_rate, weight_decay=0.0
            ),
        ]
        self.base_rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict] = []
        self.visits: Counter[str] = Counter()
        self._load()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "training.pt"

    def _load(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.head.load_state_dict(state["head"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.visits = Counter(state["visits"])

    def save(self) -> None:
        """Writes the checkpoint; a killed process leaves the previous one."""
        state = {
            "head": self.head.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "visits": dict(self.visits),
            "plan": asdict(self.plan),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def run(
        self, store: FeatureStore, say: Callable[[str], None] = print, save_every: int = 400, show_every: int = 50
    ) -> None:
        """Trains to the plan's end; files that appear in `store` meanwhile are used.

        The checkpoint is written between two files, at least `save_every` steps apart.
        """
        losses: list[float] = []
        clock, shown_at, seen = time.monotonic(), time.monotonic(), 0
        pieces: list[Batch] = []
        saved = self.step
        while self.plan.progress(self.step, self.seconds) < 1:
            if not pieces:
                pieces = store.load(self._next(store), self.target.device).split(self.plan.step_tokens)
                give_back_memory()
            batch = pieces.pop()
            loss, outputs = self._one_step(batch)
            self.step += 1
            # A laptop that slept, or a process that was stopped, did not train meanwhile.
            self.seconds += min(time.monotonic() - clock, LONGEST_STEP_S)
            clock = time.monotonic()
            seen += int(taught(batch, self.plan.skip).sum())
            losses.append(loss)
            if self.step % show_every == 0:
                hits = first_choices(self.head, outputs, batch)
                entry = {"step": self.step, "loss": sum(losses) / len(losses), "first_choice": hits}
                self.history.append(entry)
                shown = " ".join(f"{h:.3f}" for h in hits)
                say(
                    f"training: step {self.step}, {self.plan.progress(self.step, self.seconds):.1%}, "
                    f"loss {entry['loss']:.3f}, first choice {shown}, {seen / (clock - shown_at):.0f} tokens/s"
                )
                losses.clear()
                shown_at, seen = clock, 0
            if not pieces and self.step - saved >= save_every:
                self.save()
                saved = self.step
        self.save()

    def _one_step(self, batch: Batch) -> tuple[float, list[torch.Tensor]]:
        factor = self.plan.rate_at(self.step, self.seconds)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        with torch.autocast(self.target.device.type, torch.bfloat16):
            loss, outputs = chain_loss(self.head, self.target, batch, self.plan)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; the last checkpoint is intact")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item(), outputs

    def _next(self, store: FeatureStore) -> Path:
        """A file among those used least, so that new text comes first and none is forgotten."""
        paths = store.paths()
        least = min(self.visits[path.name] for path in paths)
        chosen = random.Random(self.plan.seed + self.step).choice([p for p in paths if self.visits[p.name] == least])
        self.visits[chosen.name] += 1
        return chosen


def export(head: DraftHead, checkpoint: Path, folder: Path) -> None:
    """Writes the draft as SGLang loads it: ``config.json`` and ``model.safetensors`` below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = head.sglang_config(json.loads((checkpoint / "config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(head.sglang_weights(), folder / "model.safetensors")
    # safetensors writes for the owner only; the head is shipped in a package that others read.
    (folder / "model.safetensors").chmod(0o644)
