"""The training corpus: packets of prompts, answered by the target, in shards that a later start picks up."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .generate import Answered, Sampling, answer_group, groups_of, load_shard, save_shard
from .llama import LlamaModel
from .prompts import Conversation, PromptMaker, user

END = "<|im_end|>"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


HELD_OUT_SEED = 10_007
"""Template prompts of this seed are for tests and benchmarks."""

HELD_OUT = 512
"""How many of them are never trained on."""


def held_out(count: int) -> list[Conversation]:
    """The first `count` of the held-out prompts, at most `HELD_OUT`."""
    if count > HELD_OUT:
        raise ValueError(f"{count} held-out prompts asked for, there are {HELD_OUT}")
    return PromptMaker(HELD_OUT_SEED).from_templates(count)


@dataclass(frozen=True)
class CorpusPlan:
    """How much to generate. Every packet has the same mixture, so that a head can be trained while it grows.

    Attributes:
        packets: how many packets.
        first_packet: number of the first one; several processes may each make a part.
        own: prompts a packet that the target writes itself, for breadth (Magpie, Xu et al. 2024, arXiv 2406.08464).
        templates: prompts a packet from our templates, for the kinds of task that the target seldom asks for.
        words: prompts a packet about rare names and words.
        about: prompts a packet about texts of earlier packets (summaries, questions, follow-ups), for long contexts.
        group: prompts answered together; a packet makes a shard of each.
        group_tokens: their tokens at most; 23 KB of keys and values each, in bf16.
        max_prompt: tokens; longer prompts are left out.
        prompt_tokens: the longest prompt that the target may write itself.
        prompt_temperature: at which it writes them; lower repeats itself, higher wanders off.
    """

    packets: int = 40
    first_packet: int = 0
    own: int = 256
    templates: int = 64
    words: int = 128
    about: int = 320
    group: int = 256
    group_tokens: int = 65_536
    max_prompt: int = 1024
    prompt_tokens: int = 192
    prompt_temperature: float = 0.9
    seed: int = 0


def render(conversation: Conversation) -> str:
    """The target's chat template (its Jinja source is in the GGUF), with the header of the answer to come."""
    turns = [{"role": "system", "content": SYSTEM}, *conversation]
    text = "".join(f"<|im_start|>{t['role']}\n{t['content']}{END}\n" for t in turns)
    return text + "<|im_start|>assistant\n"


def whole_words(tokenizer: Tokenizer) -> list[str]:
    """Words and names that are one token each, sorted: letters only, four or more, with a blank before them."""
    starts = tokenizer.pre_tokenizer.pre_tokenize_str(" a")[0][0].removesuffix("a")
    words = (token.removeprefix(starts) for token in tokenizer.get_vocab() if token.startswith(starts))
    return sorted(w for w in words if len(w) >= 4 and w.isascii() and w.isalpha() and w[1:].islower())


class Corpus:
    """Shards below `folder`; `build` adds what is missing of the plan."""

    def __init__(self, folder: Path, checkpoint: Path, plan: CorpusPlan, sampling: Sampling):
        self.folder, self.checkpoint, self.plan, self.sampling = folder, checkpoint, plan, sampling
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.eos = self.tokenizer.token_to_id(END)

    def encode(self, conversation: Conversation) -> list[int]:
        return self.tokenizer.encode(render(conversation), add_special_tokens=False).ids

    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def build(
        self, model: LlamaModel, capture: tuple[int, ...] = (), say: Callable[[str], None] = print
    ) -> Iterator[tuple[Path, list[Answered] | None]]:
        """Yields every shard of the plan, generating those that are missing; safe to interrupt at any time.

        With a shard made just now come its answers, with the states of the layers `capture`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for packet in range(self.plan.first_packet, self.plan.first_packet + self.plan.packets):
            groups = groups_of(self._prompts(packet, model), self.plan.group, self.plan.group_tokens)
            for number, group in enumerate(groups):
                path = self.folder / f"{packet:04d}-{number}.safetensors"
                answered = None
                if not path.exists():
                    began = time.monotonic()
                    draws = torch.Generator().manual_seed(self._seed(packet) + number + 1)
                    answered = answer_group(model, group, self.eos, self.sampling, draws, capture)
                    save_shard(path, answered)
                    tokens = sum(len(a.tokens) - a.prompt_length for a in answered)
                    rate = tokens / (time.monotonic() - began)
                    done = packet - self.plan.first_packet + 1
                    say(f"answers, packet {done}/{self.plan.packets}: {tokens} tokens at {rate:.0f} tokens/s")
                yield path, answered

    def _seed(self, packet: int) -> int:
        return (self.plan.seed * 100_003 + packet) * 1_009

    def _prompts(self, packet: int, model: LlamaModel) -> list[list[int]]:
        """Token ids of the packet's prompts. They are kept, since later packets must not change what a resumed one
        asks, and the target takes a minute to write its own."""
        path = self.folder / f"{packet:04d}-prompts.json"
        if not path.exists():
            maker = PromptMaker(self._seed(packet))
            written = [user(text) for text in self._own_prompts(model, packet)]
            unseen = {c[0]["content"] for c in held_out(HELD_OUT)}
            drawn = [c for c in maker.from_templates(self.plan.templates) if c[0]["content"] not in unseen]
            conversations = written + drawn + maker.with_words(whole_words(self.tokenizer), self.plan.words)
            turns = self._turns(packet) or [(c[0]["content"], c[0]["content"]) for c in written]
            conversations += maker.about_texts(turns, self.plan.about)
            prompts = [ids for c in conversations if len(ids := self.encode(c)) <= self.plan.max_prompt]
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(prompts))
            os.replace(partial, path)
        return json.loads(path.read_text())

    def _own_prompts(self, model: LlamaModel, packet: int) -> list[str]:
        """What the target writes where a user's message is due."""
        start = render([]).removesuffix("assistant\n") + "user\n"
        ids = self.tokenizer.encode(start, add_special_tokens=False).ids
        sampling = Sampling(self.plan.prompt_tokens, self.plan.prompt_temperature, sampled_share=1.0)
        draws = torch.Generator().manual_seed(self._seed(packet))
        texts: dict[str, None] = {}
        for count in (min(self.plan.group, self.plan.own - i) for i in range(0, self.plan.own, self.plan.group)):
            for a in answer_group(model, [ids] * count, self.eos, sampling, draws):
                if a.tokens[-1] == self.eos:
                    texts[self.tokenizer.decode(a.tokens[a.prompt_length : -1].tolist())] = None
        return list(texts)

    def _turns(self, packet: int) -> list[tuple[str, str]]:
        """(instruction, answer) of finished single-turn conversations of a few earlier packets."""
        earlier = [path for path in self.shards() if int(path.name[:4]) < packet]
        chosen = random.Random(self._seed(packet)).sample(earlier, min(6, len(earlier)))
        return [turn for path in chosen for a in load_shard(path) if (turn := self._single_turn(a))]

    def _single_turn(self, answered: Answered) -> tuple[str, str] | None:
        """(instruction, answer) of a conversation of one turn that the target finished, else None."""
        ids = answered.tokens.tolist()
        users = self.tokenizer.decode(ids, skip_special_tokens=False).split("<|im_start|>user\n")
        if len(users) != 2 or ids[-1] != self.eos:
            return None
        asked, answer = users[1].split(f"{END}\n<|im_start|>assistant\n", 1)
        return asked, answer.removesuffix(END)
