"""What is asked: token ids, made before the load, so that no arm pays for what another does not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sglang_nightjar.demo.corpus import HELD_OUT, held_out
from sglang_nightjar.demo.recipe import read_prompts
from sglang_nightjar.errors import ConfigError

OWN, LENGTHS = "own", "lengths"


@dataclass(frozen=True)
class PromptSource:
    """Where prompts come from.

    Attributes:
        what: ``own``: the project's prompts that the demo draft head never saw; ``lengths``: random words, for loads
            whose lengths are all that is known; else a JSONL file, one ``{"turns": [...]}`` a line (first turns).
        tokenizer: folder of the target, for its tokenizer and chat template.
        longest: prompts with more tokens are left out, or cut where lengths are asked for.
    """

    what: str
    tokenizer: Path
    longest: int

    def draw(self, count: int, seed: str, lengths: Sequence[int] = ()) -> list[list[int]]:
        """``count`` prompts in an order that ``seed`` decides; the same one comes twice only if there are too few.

        With ``lengths`` (one for each) prompts of so many tokens, at most ``longest``: random words, or several prompts
        one after the other, of which the last is whole and the first is cut.
        """
        draw = random.Random(f"prompts {seed}")
        if self.what == LENGTHS:
            wanted = lengths or [draw.randint(16, self.longest) for _ in range(count)]
            return [draw.choices(self._words, k=min(n, self.longest)) for n in wanted]
        order: list[list[int]] = []
        while len(order) < count:
            order += draw.sample(self._all, len(self._all))
        if not lengths:
            return order[:count]
        return [self._padded(ids, min(n, self.longest), draw) for ids, n in zip(order, lengths, strict=False)]

    def _padded(self, ids: list[int], length: int, draw: random.Random) -> list[int]:
        while len(ids) < length:
            ids = draw.choice(self._all) + ids
        return ids[-max(length, 1) :]

    @cached_property
    def _all(self) -> list[list[int]]:
        if self.what == OWN:
            conversations = held_out(HELD_OUT)
        else:
            conversations = [conversation for _, conversation in read_prompts(Path(self.what))]
        encoded = [
            self._tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in conversations
        ]
        fitting = [ids for ids in encoded if len(ids) <= self.longest]
        if not fitting:
            raise ConfigError(f"--prompts {self.what}: none of its prompts has at most {self.longest} tokens")
        return fitting

    @cached_property
    def _words(self) -> list[int]:
        """Ids of ordinary tokens."""
        special = set(self._tokenizer.all_special_ids)
        return [i for i in range(len(self._tokenizer)) if i not in special]

    @cached_property
    def _tokenizer(self):  # type: ignore[no-untyped-def]
        from sglang_nightjar.cpu.bootstrap import prepare_process

        # Without it transformers can't be imported beside a CPU build of torch.
        prepare_process()
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.tokenizer)
