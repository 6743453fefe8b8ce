"""Is a text the target's own? Reference by the target alone: a teacher-forced forward pass in plain transformers.

Two correct computations of the same logits differ by rounding, so where the top two logits are closer than that, either
may be greedy's choice and everything after it may differ. Anything else is a loss.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = Path(__file__).parents[1] / "data" / "prompts.json"

# How much larger the rounding of SGLang's kernels may be than that of one fp32 forward pass against a float64 one:
# they sum in another order, and errors in cached keys and values add up over the tokens.
SLACK = 8.0


@dataclass(frozen=True)
class Difference:
    """The first place where two greedy continuations of the same prompt part.

    Attributes:
        position: index into the continuations.
        tokens: the two tokens there (None where a continuation had ended).
        gap: distance of their logits in float64, in logits.
        rounding: error of the fp32 logits at this position, in logits.
        is_tie: whether both are within rounding of the largest logit.
    """

    position: int
    tokens: tuple[int | None, int | None]
    gap: float
    rounding: float
    is_tie: bool


class Referee:
    """The target as transformers computes it, on the CPU, in fp32 and in float64."""

    def __init__(self, target: Path):
        self._target = target
        self.tokenizer = AutoTokenizer.from_pretrained(target)
        self._single = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()

    @cached_property
    def _double(self) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(self._target, dtype=torch.float64).eval()

    def prompts(self) -> list[list[int]]:
        """Token ids of the suite's prompts, as one chat turn each."""
        return [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            for text in json.loads(PROMPTS.read_text())
        ]

    @torch.inference_mode()
    def logits(self, ids: list[int], last: int) -> tuple[torch.Tensor, float]:
        """Float64 logits ``[last, vocabulary]`` after each of the last tokens, and the error of fp32 there."""
        double = self._double(torch.tensor([ids])).logits[0, -last:]
        single = self._single(torch.tensor([ids])).logits[0, -last:]
        return double, float((double - single).abs().max())

    def first_difference(self, prompt: list[int], ours: list[int], reference: list[int]) -> Difference | None:
        """None if the continuations are the same; otherwise where they part, and whether it is a tie."""
        if ours == reference:
            return None
        length = min(len(ours), len(reference))
        at = next((i for i in range(length) if ours[i] != reference[i]), length)
        tokens = (ours[at] if at < len(ours) else None, reference[at] if at < len(reference) else None)
        logits, error = self.logits(prompt + reference[:at], last=1)
        if None in tokens:
            return Difference(at, tokens, float("inf"), error, is_tie=False)
        top = float(logits[0].max())
        below = [top - float(logits[0, token]) for token in tokens]
        rounding = SLACK * error
        return Difference(at, tokens, abs(below[0] - below[1]), error, is_tie=max(below) <= rounding)

    @torch.inference_mode()
    def not_greedy(self, prompt: list[int], continuation: list[int]) -> list[int]:
        """Positions of ``continuation`` whose token is neither the target's argmax nor tied with it."""
        ids, length = torch.tensor([prompt + continuation[:-1]]), len(continuation)
        tokens = torch.tensor(continuation)
        single = self._single(ids).logits[0, -length:]
        if torch.equal(single.argmax(dim=1), tokens):
            return []
        # Only now is the slow float64 pass needed: are the exceptions ties?
        logits, error = self.logits(ids[0].tolist(), last=length)
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        return torch.nonzero(logits.max(dim=1).values - chosen > SLACK * error).flatten().tolist()
