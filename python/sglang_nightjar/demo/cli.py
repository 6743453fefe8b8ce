"""``nightjar demo``: fetch, verify, train and test the pair that is served when no model is named."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from sglang_nightjar.cache import cache_dir
from sglang_nightjar.errors import ConfigError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds ``demo`` and its own subcommands to the ``nightjar`` parser."""
    demo = commands.add_parser("demo", help="the demo pair: fetch, verify, train, test")
    verbs = demo.add_subparsers(title="commands", required=True)

    fetch = verbs.add_parser("fetch", help="convert the target into the cache, unless it is there")
    fetch.set_defaults(run=_fetch)

    verify = verbs.add_parser("verify", help="check every byte of the pair (exit code 1: damaged)")
    verify.set_defaults(run=_verify)

    train = verbs.add_parser(
        "train",
        help="make the draft head from nothing",
        description="Makes the draft head from nothing: prompts, the target's answers to them, training, a card. "
        "Hours on a CPU, minutes on a GPU. It can be stopped at any time: the same command goes on where it stopped.",
    )
    _add_places(train)
    train.add_argument(
        "--only",
        choices=("answers", "head"),
        help="only make the answers, or only train the head on those that are there; both can run at the same time",
    )
    train.add_argument("--packets", type=_positive, metavar="N", help="packets of prompts, about 100,000 tokens each")
    train.add_argument(
        "--first-packet", type=_not_negative, default=0, metavar="N", help="for several processes, each a part"
    )
    train.add_argument("--steps", type=_positive, metavar="N", help="optimizer steps, of about 1,024 tokens each")
    train.add_argument("--minutes", type=_positive, metavar="N", help="train for so long, instead of --steps")
    train.add_argument(
        "--continue-from", type=Path, metavar="DIR", help='a head to go on from; "shipped" is the one in the package'
    )
    train.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write the head (default: draft below --folder)"
    )
    train.set_defaults(run=_train)

    test = verbs.add_parser("test", help="accepted length of a draft head on greedy answers, by category")
    _add_places(test)
    test.add_argument("--draft", type=Path, metavar="DIR", help="the head to test (default: the one that ships)")
    test.add_argument("--prompts", type=Path, metavar="FILE", help='JSON lines {"category": ..., "turns": [...]}; '
                      "default: the held-out part of our own prompts")  # fmt: skip
    test.add_argument("--gamma", type=_positive, default=3, help="draft tokens a verify step (default: 3)")
    test.add_argument("--json", action="store_true", help="for scripts")
    test.set_defaults(run=_test)


def _add_places(parser: argparse.ArgumentParser) -> None:
    default = cache_dir() / "train"
    parser.add_argument(
        "--folder", type=Path, default=default, metavar="DIR", help=f"working files (default: {default})"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _say(text: str) -> None:
    print(text, flush=True)


def _fetch(_: argparse.Namespace) -> int:
    from .target import ensure_target

    print(ensure_target())
    return 0


def _verify(_: argparse.Namespace) -> int:
    from . import target
    from .pair import draft_damage

    folder = target.target_dir()
    if not target.is_ready(folder):
        print(f"target: not converted yet (nightjar demo fetch): {folder}")
        return 1
    bad = [f"{folder / name}" for name in target.damage(folder)] + draft_damage()
    print("\n".join(f"damaged: {path}" for path in bad) or f"target and draft are whole: {folder}")
    return 1 if bad else 0


def _train(args: argparse.Namespace) -> int:
    from . import recipe
    from .pair import draft_dir
    from .target import ensure_target

    plan = recipe.Recipe()
    length = {"steps": args.steps, "minutes": args.minutes}
    plan = dataclasses.replace(
        plan,
        corpus=dataclasses.replace(
            plan.corpus, packets=args.packets or plan.corpus.packets, first_packet=args.first_packet
        ),
        train=dataclasses.replace(plan.train, **{k: v for k, v in length.items() if v}),
    )
    start = draft_dir() if args.continue_from == Path("shipped") else args.continue_from
    if start is not None and not (start / "model.safetensors").is_file():
        raise ConfigError(f"--continue-from {start}: there is no model.safetensors")
    checkpoint = ensure_target()
    try:
        if args.only != "head":
            recipe.make_answers(plan, args.folder, checkpoint, args.device, _say)
        if args.only != "answers":
            out = args.out or args.folder / "draft"
            recipe.make_head(plan, args.folder, checkpoint, out, args.device, start, _say)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
        return 130
    return 0


def _test(args: argparse.Namespace) -> int:
    from . import recipe
    from .corpus import Corpus
    from .head import DraftHead
    from .llama import LlamaModel
    from .pair import draft_dir
    from .target import ensure_target

    checkpoint = ensure_target()
    device, dtype = recipe.pick_device(args.device)
    target = LlamaModel(checkpoint, dtype, device)
    head = DraftHead.load(args.draft or draft_dir(), target)
    corpus = Corpus(args.folder / "corpus", checkpoint, recipe.Recipe().corpus, recipe.Recipe().sampling)
    groups: dict[str, list[list[int]]] = {}
    if args.prompts is None:
        groups["held out"] = recipe.held_out_prompts(recipe.Recipe(), corpus)
    else:
        if not args.prompts.is_file():
            raise ConfigError(f"--prompts {args.prompts}: there is no such file")
        for category, conversation in recipe.read_prompts(args.prompts):
            groups.setdefault(category, []).append(corpus.encode(conversation)[-1024:])
    results = {
        name: recipe.head_acceptance(head, target, corpus, prompts, args.gamma) for name, prompts in groups.items()
    }
    if args.json:
        print(json.dumps({n: {**dataclasses.asdict(r), "mean_length": r.mean_length} for n, r in results.items()}))
        return 0
    print(f"{'category':20} {'length':>7}  accepted by position")
    for name, r in results.items():
        print(f"{name:20} {r.mean_length:7.3f}  " + " ".join(f"{p:.3f}" for p in r.by_position))
    steps = sum(r.verify_steps for r in results.values())
    print(f"{'all':20} {sum(r.tokens for r in results.values()) / max(1, steps):7.3f}  {steps} verify steps")
    return 0
