"""``python -m sglang_nightjar.policy``: the policy process."""

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path

from sglang_nightjar.errors import ConfigError
from sglang_nightjar.policy import config_file, loader


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the policy process; each wins over the config."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML; read again whenever it is saved")
    parser.add_argument("--endpoint", metavar="URL", help="ipc:///path or tcp://host:port (default: link.endpoint)")
    parser.add_argument("--keys", metavar="DIR", help="CURVE keys for tcp (default: link.keys)")
    parser.add_argument("--policy", metavar="NAME|PATH", help="one of `nightjar policy list`, or a Python file")
    parser.add_argument("--log", metavar="FILE", help="decision log (default: log.path)")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def configure(args: argparse.Namespace) -> config_file.Config:
    """The config with the flags applied. Raises ConfigError."""
    config = config_file.load(args.config) if args.config is not None else config_file.Config()
    link, policy, log = config.link, config.policy, config.log
    if args.endpoint is not None:
        link = dataclasses.replace(link, endpoint=args.endpoint)
    if args.keys is not None:
        link = dataclasses.replace(link, keys=args.keys)
    if args.policy is not None:
        policy = policy_flag(args.policy, policy)
    if args.log is not None:
        log = dataclasses.replace(log, path=args.log)
    if link.endpoint is None:
        raise ConfigError("an endpoint must be given: --endpoint, or link.endpoint in the config")
    loader.find(policy.name, policy.path)
    return dataclasses.replace(config, link=link, policy=policy, log=log)


def policy_flag(text: str, policy: config_file.PolicySection) -> config_file.PolicySection:
    """``--policy``: what ends in .py or has a slash is a path. Parameters of the config are those of its own policy."""
    is_path = text.endswith(".py") or "/" in text
    name, path = (None, str(Path(text).resolve())) if is_path else (text, None)
    params = policy.params if (name, path) == (policy.name, policy.path) else {}
    return dataclasses.replace(policy, name=name, path=path, params=params)


def serve(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigError."""
    config = configure(args)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(asctime)s nightjar policy %(levelname)s: %(message)s", stream=sys.stderr
    )
    import zmq

    from sglang_nightjar.policy.server import Server

    with contextlib.suppress(OSError):
        # Each record wakes this process, its worker and ZMQ's threads, perhaps on cores where a model runs. A batch
        # process takes a free core or waits for its turn; else it would push off a thread for which all others wait.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    assert config.link.endpoint is not None
    server = Server(zmq.Context(), config, config.link.endpoint, args.config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    logging.getLogger(__name__).info("serving %s", config.link.endpoint)
    server.run()
    return 0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 2 for a wrong setting."""
    parser = argparse.ArgumentParser(prog="python -m sglang_nightjar.policy", description="The policy process.")
    add_flags(parser)
    args = parser.parse_args(argv)
    try:
        return serve(args)
    except ConfigError as error:
        print(f"nightjar policy: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
