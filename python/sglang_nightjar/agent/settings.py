"""What the agent is told: by the environment that the launcher exports, and by the config file that it names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sglang_nightjar import config

#: Γ, unless the config says otherwise: no drafting, and chains of one to five tokens.
DEFAULT_CANDIDATES = (0, 1, 2, 3, 4, 5)

#: γ without a policy, if neither the config nor --speculative-num-steps says otherwise.
DEFAULT_GAMMA = 3

#: Seconds without a sign of life from the policy process after which its plan no longer counts.
DEFAULT_STALE_AFTER_S = 1.0


@dataclass(frozen=True)
class Settings:
    """The agent's settings.

    Attributes:
        endpoint: ZMQ endpoint of the policy process; None: nothing steers this scheduler.
        steered: whether γ is Nightjar's to choose; False is plain SGLang (policy "off").
        candidates: Γ, ascending and distinct.
        fallback_gamma: γ while no plan counts; None: the γ that the user gave to SGLang, or DEFAULT_GAMMA.
        stale_after_s: see DEFAULT_STALE_AFTER_S.
    """

    endpoint: str | None = None
    steered: bool = True
    candidates: tuple[int, ...] = DEFAULT_CANDIDATES
    fallback_gamma: int | None = None
    stale_after_s: float = DEFAULT_STALE_AFTER_S


def load(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. Raises ConfigError for what can't work."""
    options = config.from_environment(environment)
    return Settings(endpoint=environment.get(config.ENDPOINT_ENV) or None, steered=options.policy != config.OFF)
