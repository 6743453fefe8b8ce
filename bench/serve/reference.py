"""Are the answers the target's own? Every answer that was not seen before is put before a referee: a forward pass of
the target alone in plain transformers, where greedy text has to be the argmax at each position, or tied with it within
rounding.

The referee is a program of its own (``python -m bench.serve.reference``), so that its memory is not the benchmark's.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import orjson

from bench.provenance import ROOT
from bench.serve.job import Answer, Job
from bench.serve.store import write_whole

Case = dict[str, list[int]]


class Reference:
    """Answers that the referee has agreed with, kept in ``file`` over interruptions, so that each is judged once."""

    def __init__(self, target: Path, file: Path) -> None:
        self._target, self._file = target, file
        # By prompt. Several answers to one prompt may be the target's own: those that part at a tie.
        self._agreed: dict[str, list[list[int]]] = orjson.loads(file.read_bytes()) if file.exists() else {}

    def wrong(self, job: Job, answers: Sequence[Answer]) -> list[int]:
        """Requests whose answers are not the target's own greedy text; failed ones are left out."""
        new: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        for answer in answers:
            if not answer.error and answer.tokens and not self._knows(job, answer):
                new.setdefault((_key(job, answer), tuple(answer.tokens)), []).append(answer.request)
        prompts = [job.requests[requests[0]].prompt for requests in new.values()]
        verdicts = self._ask([{"prompt": p, "tokens": list(k[1])} for p, k in zip(prompts, new, strict=True)])
        wrong = []
        for ((key, tokens), requests), bad in zip(new.items(), verdicts, strict=True):
            if bad:
                wrong += requests
            else:
                self._agreed.setdefault(key, []).append(list(tokens))
        write_whole(self._file, orjson.dumps(self._agreed))
        return sorted(set(wrong))

    def _knows(self, job: Job, answer: Answer) -> bool:
        length = len(answer.tokens)
        return any(known[:length] == answer.tokens for known in self._agreed.get(_key(job, answer), ()))

    def _ask(self, cases: list[Case]) -> list[list[int]]:
        if not cases:
            return []
        with tempfile.TemporaryDirectory() as folder:
            asked, said = Path(folder) / "cases.json", Path(folder) / "verdicts.json"
            asked.write_bytes(orjson.dumps(cases))
            command = [sys.executable, "-m", "bench.serve.reference", str(self._target), str(asked), str(said)]
            subprocess.run(command, cwd=ROOT, check=True)
            return orjson.loads(said.read_bytes())


def _key(job: Job, answer: Answer) -> str:
    return hashlib.sha256(orjson.dumps(job.requests[answer.request].prompt)).hexdigest()[:20]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("verdicts", type=Path)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "test"))
    from sglang_nightjar.cpu.bootstrap import prepare_process

    prepare_process()
    from helpers.lossless import Referee

    referee = Referee(args.target)
    cases: list[Case] = orjson.loads(args.cases.read_bytes())
    args.verdicts.write_bytes(orjson.dumps([referee.not_greedy(c["prompt"], c["tokens"]) for c in cases]))


if __name__ == "__main__":
    main()
