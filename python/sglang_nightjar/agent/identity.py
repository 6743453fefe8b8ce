"""Who we are in the protocol: the ids, and the hello."""

import os
import platform
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_nightjar.agent.selector import GammaSelector
from sglang_nightjar.config import SERVER_ENV
from sglang_nightjar.core.messages import Hello, make_sender_id
from sglang_nightjar.draft import status as draft_status
from sglang_nightjar.draft import upkeep
from sglang_nightjar.version import __version__


def server() -> str:
    """Id of the server that this process belongs to: the launcher's, or one of our own if nobody gave it one."""
    if SERVER_ENV not in os.environ:
        os.environ[SERVER_ENV] = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    return os.environ[SERVER_ENV]


def sender(role: str) -> str:
    """A sender id for ``role`` of this server; another one at every call."""
    return make_sender_id(server(), role)


@dataclass(frozen=True)
class Place:
    """Where a scheduler stands among the others.

    Attributes:
        decides: it receives SGLang's requests for its TP group, and the plans with them.
    """

    dp_rank: int
    dp_size: int
    tp_rank: int
    tp_size: int
    decides: bool

    @classmethod
    def of(cls, scheduler: Any) -> "Place":
        ps = scheduler.ps
        first = ps.pp_rank == 0 and ps.attn_tp_rank == 0 and ps.attn_cp_rank == 0
        return cls(ps.dp_rank or 0, ps.dp_size or 1, ps.tp_rank, ps.tp_size, first)


def hello_maker(scheduler: Any, place: Place, selector: GammaSelector) -> Callable[[str, int], Hello]:
    """What makes this scheduler's `Hello`, given the sender and the sequence number."""
    args = scheduler.server_args
    draft_bytes = private_draft_bytes(scheduler)
    target, draft, device, tp_size = pool_of(args)

    def make(sender_id: str, seq: int) -> Hello:
        base, gain = draft_status.kv_tokens(scheduler)
        return Hello(
            sender=sender_id,
            seq=seq,
            server=server(),
            dp_rank=place.dp_rank,
            dp_size=place.dp_size,
            tp_size=tp_size,
            target=target,
            draft=draft,
            hardware=device,
            candidates=selector.candidates,
            start_gamma=selector.fallback_gamma,
            max_batch_size=max(1, scheduler.max_running_requests),
            kv_tokens=base,
            kv_tokens_without_draft=base + gain,
            draft_bytes=draft_bytes,
            switch_costs=upkeep.current.costs.table(scheduler.max_running_requests) if upkeep.current else (),
            sglang_version=_sglang_version(),
            nightjar_version=__version__,
        )

    return make


def pool_of(args: Any) -> tuple[str, str, str, int]:
    """`core.messages.Hello.pool` of a server with these arguments: servers that have it in common have equal costs."""
    draft = args.speculative_draft_model_path or ""
    return (_model_name(args.model_path), _model_name(draft), hardware(args.device), args.tp_size)


def private_draft_bytes(scheduler: Any) -> int:
    """Bytes of the draft's parameters that it does not share with the target."""
    worker = getattr(scheduler, "draft_worker", None)
    runner = getattr(getattr(worker, "draft_worker", None), "draft_runner", None)
    if runner is None:
        return 0
    shared = {p.untyped_storage().data_ptr() for p in scheduler.tp_worker.model_runner.model.parameters()}
    private = {
        storage.data_ptr(): storage.nbytes()
        for storage in (p.untyped_storage() for p in runner.model.parameters())
        if storage.data_ptr() not in shared
    }
    return sum(private.values())


def hardware(device: str) -> str:
    """Name of the device: the GPU's, or the CPU's model and the number of threads."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{_cpu_model()} x{torch.get_num_threads()}"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def _model_name(path: str) -> str:
    """The last part of a path, or the whole of a Hugging Face id."""
    return os.path.basename(os.path.normpath(path)) if os.path.isdir(path) else path


def _sglang_version() -> str:
    from importlib.metadata import version

    return version("sglang")
