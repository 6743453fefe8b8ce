"""What the target says about the corpus: its hidden states at every token, computed once and kept on disk in bf16.

They cost about 4.6 KB a token for three layers of 576 and save the target's forward pass in every epoch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .generate import Answered, load_shard
from .llama import LlamaModel


@dataclass(frozen=True)
class Batch:
    """Sequences of one length bucket, right-padded to T tokens.

    tokens int64 [B, T]; features bf16 [B, T, aux * hidden]; final bf16 [B, T, hidden], the normed states that the
    vocabulary head reads; answer bool [B, T], True where token t belongs to the target's answer.
    """

    tokens: torch.Tensor
    features: torch.Tensor
    final: torch.Tensor
    answer: torch.Tensor

    def split(self, tokens: int) -> list[Batch]:
        """Parts of some of the sequences each, of at most `tokens` tokens where one sequence alone is not longer."""
        rows = max(1, tokens // self.tokens.shape[1])
        fields = (self.tokens, self.features, self.final, self.answer)
        return [Batch(*part) for part in zip(*(field.split(rows) for field in fields), strict=True)]


def pad_batch(answered: list[Answered], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, answer) of a `Batch`."""
    width = max(len(a.tokens) for a in answered)
    tokens = torch.full((len(answered), width), fill, dtype=torch.int64)
    answer = torch.zeros(len(answered), width, dtype=torch.bool)
    for row, a in enumerate(answered):
        tokens[row, : len(a.tokens)] = a.tokens
        answer[row, a.prompt_length : len(a.tokens)] = True
    return tokens, answer


def read_target(model: LlamaModel, answered: list[Answered], aux_layers: tuple[int, ...], fill: int) -> Batch:
    """Runs the target over whole sequences."""
    tokens, answer = pad_batch(answered, fill)
    tokens = tokens.to(model.device)
    positions = torch.arange(tokens.shape[1], device=model.device).expand_as(tokens)
    final, captured = model.forward(tokens, positions, capture=aux_layers)
    return Batch(tokens, torch.cat(captured, dim=-1), final, answer.to(model.device))


def pack_states(answered: list[Answered], aux: int, fill: int) -> Batch:
    """The batch that `read_target` would make, from the states that were captured with the answers, of `aux` layers."""
    tokens, answer = pad_batch(answered, fill)
    first = answered[0].states
    states = first.new_zeros(*tokens.shape, first.shape[1])
    for row, a in enumerate(answered):
        states[row, : len(a.states)] = a.states
    features, final = states.split([first.shape[1] // (aux + 1) * aux, first.shape[1] // (aux + 1)], dim=-1)
    return Batch(tokens.to(first.device), features.contiguous(), final.contiguous(), answer.to(first.device))


class FeatureStore:
    """Batches of about `batch_tokens` tokens below `folder`, one file each, made from the corpus shards on demand."""

    def __init__(self, folder: Path, aux_layers: tuple[int, ...], batch_tokens: int, fill: int):
        self.folder, self.aux_layers, self.batch_tokens, self.fill = folder, aux_layers, batch_tokens, fill
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        model: LlamaModel,
        shard: Path,
        answered: list[Answered] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Stores the batches of one corpus shard unless they are there.

        Args:
            answered: the shard's answers with their states, if it was made just now; else the target reads it again.
        """
        done = self.folder / f"{shard.stem}.done"
        if done.exists():
            return
        ordered = sorted(answered or load_shard(shard), key=lambda a: len(a.tokens))
        for number, group in enumerate(self._pack(ordered)):
            if answered:
                b = pack_states(group, len(self.aux_layers), self.fill)
            else:
                b = read_target(model, group, self.aux_layers, self.fill)
            path = self.folder / f"{shard.stem}-{number:03d}.safetensors"
            partial = path.with_suffix(".partial")
            save_file({"tokens": b.tokens, "features": b.features, "final": b.final, "answer": b.answer}, partial)
            os.replace(partial, path)
        done.touch()
        say(f"features of {shard.stem}")

    def residual_rms(self) -> float:
        """Median over tokens of the root mean square of the last captured layer (the first tokens' is far larger)."""
        batch = self.load(self.paths()[0], torch.device("cpu"))
        last = batch.features.chunk(len(self.aux_layers), dim=-1)[-1][batch.answer].float()
        return last.square().mean(-1).sqrt().median().item()

    def _pack(self, answered: list[Answered]) -> Iterator[list[Answered]]:
        group: list[Answered] = []
        for a in answered:
            if group and len(a.tokens) * (len(group) + 1) > self.batch_tokens:
                yield group
                group = []
            group.append(a)
        if group:
            yield group

    def paths(self) -> list[Path]:
        """Files of complete shards."""
        done = {path.stem for path in self.folder.glob("*.done")}
        return sorted(p for p in self.folder.glob("*.safetensors") if p.stem.rsplit("-", 1)[0] in done)

    @staticmethod
    def load(path: Path, device: torch.device) -> Batch:
        return Batch(**{k: v.to(device) for k, v in load_file(path).items()})
