"""The whole way from nothing to a draft head: answers, features, training, a test on unseen prompts, the card.

Every stage keeps what it made below one folder and skips what is there, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from sglang_nightjar.version import __version__

from .acceptance import Acceptance, measure
from .corpus import Corpus, CorpusPlan, held_out
from .features import Batch, FeatureStore, read_target
from .generate import Answered, Sampling, answer_group, groups_of, load_shards
from .head import DraftHead, HeadShape
from .llama import LlamaModel
from .malloc import give_back_memory, keep_freed_memory
from .prompts import Conversation, user
from .target import sha256
from .train import Trainer, TrainPlan, count_vocab, export


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the head, up to rounding."""

    corpus: CorpusPlan = field(default_factory=CorpusPlan)
    sampling: Sampling = field(default_factory=Sampling)
    head: HeadShape = field(default_factory=HeadShape)
    train: TrainPlan = field(default_factory=TrainPlan)
    batch_tokens: int = 4096
    held_out: int = 96


def pick_device(wanted: str | None) -> tuple[str, torch.dtype]:
    """The device to train on and the type of the target's pass: bf16 on CUDA and on a CPU with bf16 products (AMX, or
    AVX512-BF16, where they are twice as fast as fp32's), else fp32 (several times faster there)."""
    device = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    fast_bf16 = device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device, torch.bfloat16 if fast_bf16 else torch.float32


def make_answers(
    recipe: Recipe, folder: Path, checkpoint: Path, device: str | None = None, say: Callable = print
) -> None:
    """Makes what is missing of the corpus and of its features below `folder`."""
    keep_freed_memory()
    target, corpus, store = _open(recipe, folder, checkpoint, device, say)
    for shard, answered in corpus.build(target, recipe.head.aux_layers, say):
        store.add(target, shard, answered, say)
        give_back_memory()


def make_head(
    recipe: Recipe,
    folder: Path,
    checkpoint: Path,
    out: Path,
    device: str | None = None,
    start: Path | None = None,
    say: Callable = print,
) -> dict:
    """Trains on the features below `folder`, also on those that appear meanwhile, and writes the draft head to `out`.

    Args:
        start: folder of a head to go on from, instead of from the target's last layer.

    Returns:
        The card, also written beside the head as ``card.json``.

    Raises:
        ValueError: if there are no features yet, or `start` has another shape than `recipe` asks for.
    """
    keep_freed_memory()
    target, corpus, store = _open(recipe, folder, checkpoint, device, say)
    if not store.paths():
        raise ValueError(f"{folder} has no finished answers to train on")
    trainer = prepare(recipe, folder, target, corpus, store, start, say)
    trainer.run(store, say)
    tested = head_acceptance(trainer.head, target, corpus, held_out_prompts(recipe, corpus), gamma=5)
    export(trainer.head, checkpoint, out)
    card = make_card(recipe, corpus, trainer, tested, str(target.device), start)
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    sums = [f"{sha256(out / name)}  {name}" for name in ("config.json", "model.safetensors", "card.json")]
    (out / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    say(f"accepted length {tested.mean_length:.2f} at gamma 5 on held-out prompts; the draft is in {out}")
    return card


def _open(
    recipe: Recipe, folder: Path, checkpoint: Path, device: str | None, say: Callable
) -> tuple[LlamaModel, Corpus, FeatureStore]:
    folder.mkdir(parents=True, exist_ok=True)
    where, dtype = pick_device(device)
    say(f"target on {where} in {dtype}".replace("torch.", ""))
    corpus = Corpus(folder / "corpus", checkpoint, recipe.corpus, recipe.sampling)
    store = FeatureStore(folder / "features", recipe.head.aux_layers, recipe.batch_tokens, corpus.eos)
    return LlamaModel(checkpoint, dtype, where), corpus, store


def prepare(
    recipe: Recipe,
    folder: Path,
    target: LlamaModel,
    corpus: Corpus,
    store: FeatureStore,
    start: Path | None,
    say: Callable,
) -> Trainer:
    """A trainer with the draft vocabulary counted on the corpus, or the one stored by an earlier start of this run."""
    path = folder / "vocab.pt"
    earlier = DraftHead.load(start, target) if start else None
    if not path.exists():
        known = earlier.vocab if earlier else None
        vocab, covered = count_vocab(corpus.folder, recipe.head.draft_vocab, target.shape.vocab, known)
        say(f"draft vocabulary: {len(vocab)} tokens cover {covered:.2%} of the answers")
        torch.save({"vocab": vocab, "covered": covered}, path)
    stored = torch.load(path, weights_only=True)
    vocab = stored["vocab"].to(target.device)
    trainer = Trainer(folder, target, recipe.head, vocab, recipe.train, store.residual_rms())
    trainer.covered = stored["covered"]
    if earlier and trainer.step == 0:
        trainer.head.adopt(earlier)
        say(f"going on from the head in {start}")
    return trainer


def held_out_prompts(recipe: Recipe, corpus: Corpus) -> list[list[int]]:
    """Token ids of prompts that training never saw."""
    return [corpus.encode(c) for c in held_out(recipe.held_out)]


def read_prompts(path: Path) -> Iterable[tuple[str, Conversation]]:
    """(category, conversation) of each line of a Spec-Bench style file: ``{"category": ..., "turns": [...]}``."""
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        yield entry.get("category", "all"), user(entry["turns"][0])


def head_acceptance(
    head: DraftHead, target: LlamaModel, corpus: Corpus, prompts: list[list[int]], gamma: int, new_tokens: int = 128
) -> Acceptance:
    """Accepted length over the target's greedy answers to `prompts`."""
    sampling = Sampling(max_new_tokens=new_tokens, sampled_share=0.0)
    answered: list[Answered] = []
    for group in groups_of(prompts, 128):
        answered += answer_group(target, group, corpus.eos, sampling, torch.Generator())
    return measure(head, target.embed, batches_of(target, answered, head.shape.aux_layers, corpus.eos), gamma)


def batches_of(
    target: LlamaModel, answered: list[Answered], aux_layers: tuple[int, ...], fill: int, size: int = 8
) -> Iterable[Batch]:
    usable = sorted((a for a in answered if len(a.tokens) - a.prompt_length > 2), key=lambda a: len(a.tokens))
    for i in range(0, len(usable), size):
        yield read_target(target, usable[i : i + size], aux_layers, fill)


def make_card(
    recipe: Recipe, corpus: Corpus, trainer: Trainer, tested: Acceptance, device: str, start: Path | None
) -> dict:
    """What was done and what came out, for the reader of the shipped head."""
    answers = [len(a.tokens) - a.prompt_length for a in load_shards(corpus.folder)]
    earlier = json.loads((start / "card.json").read_text()) if start and (start / "card.json").exists() else None
    if earlier:
        del earlier["history"]
    return {
        "nightjar": __version__,
        "torch": torch.__version__,
        "machine": f"{device}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "command": " ".join(["nightjar", *sys.argv[1:]]),
        "recipe": asdict(recipe),
        "answers": len(answers),
        "answer_tokens": sum(answers),
        "draft_vocab_coverage": trainer.covered,
        "head": trainer.head.describe(),
        "steps": trainer.step,
        "minutes_of_training": round(trainer.seconds / 60, 1),
        "history": trainer.history,
        "held_out": {
            "gamma": tested.gamma,
            "accepted_length": round(tested.mean_length, 3),
            "accepted_by_position": [round(p, 3) for p in tested.by_position],
            "verify_steps": tested.verify_steps,
        },
        "went_on_from": earlier,
    }
