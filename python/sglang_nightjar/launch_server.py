"""``python -m sglang_nightjar.launch_server``: SGLang's server with Nightjar on.

It takes all of SGLang's flags and Nightjar's own. Without ``--model-path`` it serves the demo pair, with speculation.
SGLang spawns its processes, and each imports this module again, so nothing but imports may happen at module level.
"""

import argparse
import itertools
import os
import signal
import sys
from typing import Any, NoReturn

from sglang_nightjar import config, policy_check
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.patches.seams import Seam

PROGRAM = "python -m sglang_nightjar.launch_server"

SEAMS = (
    Seam("sglang.srt.server_args:prepare_server_args", ("argv",), "call", "to parse SGLang's flags"),
    Seam("sglang.srt.server_args:ServerArgs.add_cli_args", ("parser",), "call", "to know SGLang's flags"),
    Seam(
        "sglang.srt.server_args_config_parser:ConfigArgumentMerger.merge_config_with_args",
        ("cli_args",),
        "call",
        "to see what --config sets",
    ),
    Seam("sglang.launch_server:run_server", ("server_args",), "call", "to serve"),
    Seam(
        "sglang.srt.utils:kill_process_tree",
        ("parent_pid", "include_parent", "skip_pid", "wait_timeout"),
        "call",
        "to stop the children",
    ),
)


class _Parser(argparse.ArgumentParser):
    """SGLang has some 400 flags: printing all of them hides the error."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists all flags)")


def main(argv: list[str]) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises SystemExit: 0 after SIGTERM, 130 after Ctrl-C, 2 for a wrong setting."""
    _exit_on_signals()
    try:
        options, argv = config.split(argv)
        policy_check.check(options)
        options.export()
        if _asks_for_cpu(argv):
            os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
        server_args = _server_args(argv, options)
    except ConfigError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    _serve(server_args)


def _asks_for_cpu(argv: list[str]) -> bool:
    """SGLang reads its environment for this while it is imported, which is before it can parse ``--device cpu``."""
    return "--device=cpu" in argv or ("--device", "cpu") in itertools.pairwise(argv)


def _server_args(argv: list[str], options: config.Options) -> Any:
    """Parse, fill in the demo pair, check, and let SGLang resolve the rest. Raises ConfigError."""
    _prepare()
    # SGLang's import takes seconds, so flags of our own were checked before it.
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    from sglang_nightjar import plugin, preflight

    load_plugins()
    plugin.verify()
    argv, args = _parse(argv)
    if args.model_path is None:
        argv, args = _parse(argv + _demo_flags(args))
    preflight.check(args)
    policy_check.check_steerable(options, args)
    try:
        return prepare_server_args(argv)
    except (ValueError, AssertionError) as error:
        # What SGLang itself refuses: its message says it, its traceback only hides it.
        raise ConfigError(str(error) or repr(error)) from error


def _prepare() -> None:
    """Prepare this process now, though importing SGLang would do it, to say what is missing without a traceback."""
    from sglang_nightjar.cpu.bootstrap import prepare_process
    from sglang_nightjar.cpu.build import KernelBuildError

    try:
        prepare_process()
    except (KernelBuildError, ValueError) as error:
        raise ConfigError(str(error)) from None


def _parse(argv: list[str]) -> tuple[list[str], argparse.Namespace]:
    """Parse with SGLang's flags and ours, ``--model-path`` optional. Returns ``argv`` with any ``--config`` merged."""
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.server_args_config_parser import ConfigArgumentMerger

    parser = _Parser(
        prog=PROGRAM,
        description="SGLang's server with Nightjar on. Without --model-path it serves the demo pair.",
    )
    config.add_flags(parser)
    ServerArgs.add_cli_args(parser)
    for action in parser._actions:
        if action.dest == "model_path":
            action.required = False
            action.default = None
    if "--config" in argv:
        try:
            argv = ConfigArgumentMerger(parser).merge_config_with_args(argv)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return argv, parser.parse_args(argv)


def _demo_flags(args: argparse.Namespace) -> list[str]:
    """The flags that serve the demo pair; what the user set about speculation stays."""
    from sglang_nightjar.demo.pair import ensure_pair

    pair = ensure_pair()
    flags = ["--model-path", str(pair.target)]
    if args.served_model_name is None:
        flags += ["--served-model-name", pair.target.name]
    if args.speculative_algorithm is None:
        flags += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(pair.draft)]
        if args.speculative_num_steps is None and not args.speculative_adaptive:
            flags += ["--speculative-num-steps", "3"]
        if args.speculative_eagle_topk is None:
            flags += ["--speculative-eagle-topk", "1"]
    return flags


def _serve(server_args: Any) -> None:
    from sglang.launch_server import run_server
    from sglang.srt.utils import kill_process_tree

    from sglang_nightjar.patches import shutdown
    from sglang_nightjar.supervise import policy_process

    shutdown.in_launcher = True
    try:
        run_server(server_args)
    finally:
        # A second Ctrl-C must not leave children behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        policy_process.stop()
        kill_process_tree(os.getpid(), include_parent=False)


def _exit_on_signals() -> None:
    """Signals that arrive before or after uvicorn handles them. SystemExit lets ``finally`` stop the children."""

    def on_sigterm(_signum: int, _frame: Any) -> NoReturn:
        raise SystemExit(0)

    def on_sigint(_signum: int, _frame: Any) -> NoReturn:
        shutdown = sys.modules.get("sglang_nightjar.patches.shutdown")
        raise SystemExit(0 if shutdown is not None and shutdown.terminated else 130)

    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGINT, on_sigint)


if __name__ == "__main__":
    main(sys.argv[1:])
