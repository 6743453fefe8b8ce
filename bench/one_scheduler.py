"""Schedulers of the demo pair for benchmarks of single iterations, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "test"))

from helpers.one_scheduler import OneScheduler

from sglang_nightjar.cpu import threads
from sglang_nightjar.demo.corpus import held_out, render
from sglang_nightjar.demo.pair import ensure_pair


class Arm:
    """A scheduler in another process, which does nothing but what it is asked for; use it in a ``with`` block."""

    def __init__(self, has_draft: bool, **flags: Any):
        # As a server's launcher does: a child's libgomp reads how long idle threads spin when it is loaded.
        threads.configure()
        context = multiprocessing.get_context("spawn")
        self._pipe, its = context.Pipe()
        self._process = context.Process(target=_serve, args=(its, has_draft, flags))
        self._process.start()
        its.close()

    def __enter__(self) -> Arm:
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join(30)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function(scheduler, *arguments)`` returns; it must be a module's own."""
        self._pipe.send((function, arguments))
        return self._answer()

    def _answer(self) -> Any:
        ok, answer = self._pipe.recv()
        if not ok:
            raise RuntimeError(answer)
        return answer


def _serve(pipe: Any, has_draft: bool, flags: dict[str, Any]) -> None:
    import traceback

    try:
        pair = ensure_pair(say=lambda *_: None)
        one = OneScheduler(str(pair.target), str(pair.draft) if has_draft else None, strict=False, **flags)
        pipe.send((True, None))
        while True:
            function, arguments = pipe.recv()
            pipe.send((True, function(one, *arguments)))
    except EOFError:
        pass
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def prompt_ids(count: int) -> list[list[int]]:
    """Token ids of held-out prompts of the demo pair, as chat turns."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ensure_pair(say=lambda *_: None).target / "tokenizer.json"))
    texts = [render(c) for c in held_out(count)]
    return [tokenizer.encode(texts[i % len(texts)], add_special_tokens=False).ids for i in range(count)]
