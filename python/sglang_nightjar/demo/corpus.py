"""The training corpus: two rounds of prompts, answered by the target, in shards that a later start picks up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .generate import Answered, Sampling, answer_group, groups_of, load_shards, save_shard
from .llama import LlamaModel
from .prompts import Conversation, PromptMaker

END = "<|im_end|>"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True)
class CorpusPlan:
    """How much to generate. A packet of prompts makes `packet / group` shards."""

    first_round: int = 5120
    second_round: int = 5120
    group: int = 256
    packet: int = 1024
    max_prompt: int = 640
    seed: int = 0


def render(conversation: Conversation) -> str:
    """The target's chat template (its Jinja source is in the GGUF), with the header of the answer to come."""
    turns = [{"role": "system", "content": SYSTEM}, *conversation]
    text = "".join(f"<|im_start|>{t['role']}\n{t['content']}{END}\n" for t in turns)
    return text + "<|im_start|>assistant\n"


class Corpus:
    """Shards below `folder`; `build` adds what is missing of the plan."""

    def __init__(self, folder: Path, checkpoint: Path, plan: CorpusPlan, sampling: Sampling):
        self.folder, self.checkpoint, self.plan, self.sampling = folder, checkpoint, plan, sampling
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.eos = self.tokenizer.token_to_id(END)

    def encode(self, conversation: Conversation) -> list[int]:
        return self.tokenizer.encode(render(conversation), add_special_tokens=False).ids

    def build(self, model: LlamaModel, say: Callable[[str], None] = print) -> None:
        """Generates every missing shard; safe to interrupt at any time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        maker = PromptMaker(self.plan.seed)
        self._round(model, "a", maker.first_round(self.plan.first_round), say)
        turns = [turn for a in load_shards(self.folder) if (turn := self._single_turn(a))]
        self._round(model, "b", maker.second_round(turns, self.plan.second_round), say)

    def _single_turn(self, answered: Answered) -> tuple[str, str] | None:
        """(instruction, answer) of a conversation of one turn that the target finished, else None."""
        ids = answered.tokens.tolist()
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        users = text.split("<|im_start|>user\n")
        if len(users) != 2 or ids[-1] != self.eos:
            return None
        asked, answer = users[1].split(f"{END}\n<|im_start|>assistant\n", 1)
        return asked, answer.removesuffix(END)

    def _round(self, model: LlamaModel, name: str, conversations: list[Conversation], say: Callable) -> None:
        prompts = [ids for c in conversations if len(ids := self.encode(c)) <= self.plan.max_prompt]
        random.Random(self.plan.seed).shuffle(prompts)
        packets = [prompts[i : i + self.plan.packet] for i in range(0, len(prompts), self.plan.packet)]
        jobs = [g for packet in packets for g in groups_of(packet, self.plan.group)]
        for number, group in enumerate(jobs):
            path = self.folder / f"{name}{number:04d}.safetensors"
            if path.exists():
                continue
            began = time.monotonic()
            draws = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + number)
            answered = answer_group(model, group, self.eos, self.sampling, draws)
            save_shard(path, answered)
            tokens = sum(len(a.tokens) - a.prompt_length for a in answered)
            rate = tokens / (time.monotonic() - began)
            say(f"answers, round {name}: {number + 1}/{len(jobs)} groups, {tokens} tokens at {rate:.0f} tokens/s")
