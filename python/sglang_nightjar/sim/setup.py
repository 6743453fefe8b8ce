"""A simulated server: its engine, costs and acceptance, from a YAML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_nightjar.core import strict
from sglang_nightjar.core.messages import MAX_BATCH, Hello
from sglang_nightjar.errors import ConfigError
from sglang_nightjar.sim.acceptance import Acceptance
from sglang_nightjar.sim.costs import Costs


@dataclass(frozen=True)
class DraftMoves:
    """What it costs that the draft leaves and comes back.

    Attributes:
        parks: at γ=0 the draft's KV is not kept, and has to be caught up; otherwise γ changes for nothing.
        catch_up_ns, catch_up_token_ns: a catch-up: fixed, and per token of lag.
        catch_up_chunk: tokens that are caught up between two iterations.
        offload_ns, shrink_ns, load_ns: how long these take; decoding goes on.
    """

    parks: bool = False
    catch_up_ns: float = field(default=0.0, metadata={"min": 0.0})
    catch_up_token_ns: float = field(default=0.0, metadata={"min": 0.0})
    catch_up_chunk: int = field(default=512, metadata={"min": 1})
    offload_ns: float = field(default=20e6, metadata={"min": 0.0})
    shrink_ns: float = field(default=20e6, metadata={"min": 0.0})
    load_ns: float = field(default=100e6, metadata={"min": 0.0})


@dataclass(frozen=True)
class EngineSettings:
    """How the scheduler works.

    Attributes:
        candidates, start_gamma: Γ, and γ until the first plan.
        max_running: most requests that decode together.
        kv_tokens, kv_tokens_without_draft: KV capacity.
        chunk: prompt tokens of a prefill iteration at most.
        headroom: tokens per running request that must stay free when another one is admitted.
        plan_delay: iterations between the one that a decision answers and the first that it decides, beyond the next.
        draft: moves of the draft.
    """

    candidates: tuple[int, ...] = (0, 1, 2, 3, 5)
    start_gamma: int = 3
    max_running: int = field(default=64, metadata={"min": 1, "max": MAX_BATCH})
    kv_tokens: int = field(default=32_768, metadata={"min": 1})
    kv_tokens_without_draft: int = 0
    chunk: int = field(default=8192, metadata={"min": 1})
    headroom: int = field(default=32, metadata={"min": 0})
    plan_delay: int = field(default=1, metadata={"min": 0, "max": 1000})
    draft: DraftMoves = field(default_factory=DraftMoves)

    def __post_init__(self) -> None:
        if self.start_gamma not in self.candidates or list(self.candidates) != sorted(set(self.candidates)):
            raise ValueError(
                f"candidates: {self.candidates!r} must ascend and hold start_gamma, which is {self.start_gamma}"
            )


@dataclass(frozen=True)
class Setup:
    """A server.

    Attributes:
        name: what it is.
        source: where its figures are from, or that they are assumed.
        target, draft, hardware: as the schedulers say it in `Hello`.
    """

    costs: Costs
    acceptance: Acceptance
    engine: EngineSettings = field(default_factory=EngineSettings)
    name: str = "setup"
    source: str = ""
    target: str = "target"
    draft: str = "draft"
    hardware: str = "simulated"

    def hello(self, replica: int) -> Hello:
        """The greeting of a replica's scheduler."""
        engine = self.engine
        return Hello(
            sender=f"simulated-{replica}/dp0/0", seq=1, server=f"simulated-{replica}", dp_rank=0, dp_size=1, tp_size=1,
            target=self.target, draft=self.draft, hardware=self.hardware, candidates=engine.candidates,
            start_gamma=engine.start_gamma, max_batch_size=engine.max_running, kv_tokens=engine.kv_tokens,
            kv_tokens_without_draft=max(engine.kv_tokens, engine.kv_tokens_without_draft), draft_bytes=0,
            sglang_version="simulated",
        )  # fmt: skip

    @classmethod
    def load(cls, file: Path) -> Setup:
        """Raises ConfigError with the key, the value and what is allowed."""
        return strict.build(cls, read_yaml(file), "")

    def dump(self) -> str:
        """The file's text."""
        import yaml

        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False, default_flow_style=None, width=120)


def read_yaml(file: Path) -> Any:
    """What a YAML file holds. Raises ConfigError."""
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())[:300]}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
