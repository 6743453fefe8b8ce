"""What the agent is told: by the environment that the launcher exports, and by the config file that it names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sglang_nightjar import config
from sglang_nightjar.policy import config_file

#: Γ, unless the config says otherwise: no drafting, and chains of one to five tokens.
DEFAULT_CANDIDATES = (0, 1, 2, 3, 4, 5)

#: γ without a plan, if neither the config nor --speculative-num-steps says otherwise.
DEFAULT_GAMMA = 3


@dataclass(frozen=True)
class Settings:
    """The agent's settings.

    Attributes:
        endpoint: ZMQ endpoint of the policy process; None: nothing steers this scheduler.
        keys: directory of CURVE keys, for a ``tcp://`` endpoint.
        steered: whether γ is Nightjar's to choose; False is plain SGLang (policy "off").
        candidates: Γ, ascending and distinct.
        fallback_gamma: γ while no plan counts; None: the γ that the user gave to SGLang, or DEFAULT_GAMMA.
        stale_after_s: seconds without a sign of life after which a new connection is no good; plans say it themselves.
        journal_bytes: what the target's hidden states may take that are kept for the draft at γ=0.
        offload: the draft's memory may become KV cache while it is away.
        reclaim_kv: its own KV cache goes too, and is lost then.
        retract: requests may be retracted to make room for its return.
    """

    endpoint: str | None = None
    keys: Path | None = None
    steered: bool = True
    candidates: tuple[int, ...] = DEFAULT_CANDIDATES
    fallback_gamma: int | None = None
    stale_after_s: float = 1.0
    journal_bytes: int = 256 * 2**20
    offload: bool = True
    reclaim_kv: bool = False
    retract: bool = False


def load(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. Raises ConfigError for what can't work."""
    options = config.from_environment(environment)
    file = config_file.load(Path(options.config)) if options.config else config_file.Config()
    link = file.link
    return Settings(
        endpoint=environment.get(config.ENDPOINT_ENV) or None,
        keys=Path(link.keys) if link.keys else None,
        steered=(options.policy or file.policy.name) != config.OFF,
        candidates=file.gamma.candidates or DEFAULT_CANDIDATES,
        fallback_gamma=link.fallback,
        stale_after_s=link.stale_after,
        journal_bytes=file.memory.journal_mb * 2**20,
        offload=file.memory.mode == "offload",
        reclaim_kv=file.memory.reclaim == "weights+kv",
        retract=file.memory.retract,
    )
