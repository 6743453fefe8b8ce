"""A closed loop of clients whose number follows a profile, and what each request was given.

Run as a program, so that the one who measures can give it a processor of its own or a lock around it:
``python -m bench.control_loop.load URL OUT.json --profile 15:1 25:24 15:1``.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.crossover.run import rendered_prompts

_HELD_OUT = 256


@dataclass(frozen=True)
class Phase:
    """``clients`` requests at a time for ``seconds``."""

    seconds: float
    clients: int

    @classmethod
    def parse(cls, text: str) -> Phase:
        """``"15:24"``: 24 clients for 15 s."""
        seconds, _, clients = text.partition(":")
        return cls(float(seconds), int(clients))


@dataclass(frozen=True)
class Answer:
    """One request: Unix times of its start and end (s), and the tokens that it got."""

    began: float
    ended: float
    tokens: int


@dataclass(frozen=True)
class Load:
    """What a run of the profile gave: Unix time of its start (s), its phases, its answers, and failed requests."""

    began: float
    phases: list[Phase]
    answers: list[Answer]
    failed: int

    def tokens_between(self, start: float, end: float) -> float:
        """Tokens that fell into [start, end) (s after the beginning), each answer's spread evenly over its time."""
        total = 0.0
        for answer in self.answers:
            first, last = answer.began - self.began, answer.ended - self.began
            overlap = min(last, end) - max(first, start)
            if overlap > 0:
                total += answer.tokens * overlap / (last - first)
        return total

    def rates(self) -> list[float]:
        """Tokens per second of each phase."""
        rates, start = [], 0.0
        for phase in self.phases:
            rates.append(self.tokens_between(start, start + phase.seconds) / phase.seconds)
            start += phase.seconds
        return rates

    @property
    def rate(self) -> float:
        """Tokens per second of the whole profile."""
        seconds = sum(phase.seconds for phase in self.phases)
        return self.tokens_between(0, seconds) / seconds

    @classmethod
    def read(cls, file: Path) -> Load:
        raw = json.loads(file.read_text())
        return cls(
            raw["began"], [Phase(**p) for p in raw["phases"]], [Answer(**a) for a in raw["answers"]], raw["failed"]
        )


def run(url: str, phases: list[Phase], new_tokens: int, seed: int) -> Load:
    """Send prompts that the draft head never saw, each client its next as soon as it has an answer."""
    texts = rendered_prompts(None, _HELD_OUT, seed)
    wanted, stopping, lock = [phases[0].clients], threading.Event(), threading.Lock()
    answers: list[Answer] = []
    failed = [0]

    def client(number: int) -> None:
        turn = 0
        while not stopping.is_set():
            if number >= wanted[0]:
                time.sleep(0.02)
                continue
            # Which client sends what does not depend on the speed of the server.
            text = texts[(number * 7 + turn * 31 + seed) % len(texts)]
            turn += 1
            began = time.time()
            tokens = _ask(url, text, new_tokens)
            with lock:
                if tokens is None:
                    failed[0] += 1
                else:
                    answers.append(Answer(began, time.time(), tokens))

    most = max(phase.clients for phase in phases)
    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(most)]
    began = time.time()
    for thread in threads:
        thread.start()
    for phase in phases:
        wanted[0] = phase.clients
        time.sleep(phase.seconds)
    stopping.set()
    # Those still running count for the part that fell into the profile.
    for thread in threads:
        thread.join(120)
    return Load(began, phases, answers, failed[0])


def _ask(url: str, text: str, new_tokens: int) -> int | None:
    body = {"text": text, "sampling_params": {"max_new_tokens": new_tokens, "ignore_eos": True, "temperature": 0}}
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)["meta_info"]["completion_tokens"]
    except (OSError, ValueError):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", nargs="+", type=Phase.parse, required=True, metavar="SECONDS:CLIENTS")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    load = run(args.url, args.profile, args.new_tokens, args.seed)
    args.out.write_text(json.dumps(asdict(load)))


if __name__ == "__main__":
    main()
