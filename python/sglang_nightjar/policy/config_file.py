"""The YAML config: one strict schema for the policy process and the server.

policy: {name: model, params: {objective: latency}}    # or path: /my/policy.py
shadow: [{name: ema}]
gamma: {candidates: [0, 1, 3, 5]}
memory: {journal_mb: 256, reclaim: weights}
link: {endpoint: ipc:///run/nightjar/policy, stale_after: 1.0}
log: {path: /var/log/nightjar/decisions.jsonl}
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_nightjar.core import strict
from sglang_nightjar.core.messages import MAX_GAMMA
from sglang_nightjar.errors import ConfigError

_MAX_BYTES = 1_000_000
#: Ahead of the paper's planner on average of every set of loads that had both, measured or simulated (docs/results.md).
DEFAULT_POLICY = "model"


@dataclass(frozen=True)
class PolicySection:
    """Which policy, ours by ``name`` or the user's by ``path``, and what it may use. Applied on save.

    Attributes:
        name: one of ``nightjar policy list``; `DEFAULT_POLICY` if neither is given.
        path: a Python file with one class that derives from `Policy`; absolute, or relative to the config.
        params: the policy's own.
        seed: of its random numbers.
        timeout: seconds that it may be busy with what it was sent, before it is restarted.
        memory_mb: address space of its process.
        state: folder for what it has learnt, absolute or relative to the config; "none" keeps nothing; None is one
            below the cache.
    """

    name: str | None = None
    path: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    seed: int = field(default=0, metadata={"min": 0, "max": 2**53})
    timeout: float = field(default=3.0, metadata={"min": 0.05, "max": 60.0})
    memory_mb: int = field(default=1024, metadata={"min": 64, "max": 1_048_576})
    state: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and self.path is not None:
            raise ValueError("name and path can't both be set")
        if self.name is None and self.path is None:
            object.__setattr__(self, "name", DEFAULT_POLICY)


@dataclass(frozen=True)
class GammaSection:
    """Attributes:
    candidates: γ that policies may choose, of those that a server can run; None is all. Applied on save.
    """

    candidates: tuple[int, ...] | None = field(default=None, metadata={"min": 0, "max": MAX_GAMMA})

    def __post_init__(self) -> None:
        if self.candidates is not None:
            if not self.candidates:
                raise ValueError("candidates: [] must have at least one γ")
            object.__setattr__(self, "candidates", tuple(sorted(set(self.candidates))))


@dataclass(frozen=True)
class MemorySection:
    """What the draft may cost while it is not used. Read when a server starts.

    Attributes:
        mode: ``offload`` lets policies send the draft away, so that its memory becomes KV cache; ``keep`` does not.
        reclaim: what it gives back: ``weights``, or ``weights+kv``, its own KV cache too, which it then has lost.
        retract: whether requests may be retracted to make room for the draft's return; else it waits until there is.
        journal_mb: of the target's hidden states that are kept for a draft at γ=0; what no longer fits is computed
            anew before the draft is used again. 0 keeps none.
    """

    mode: str = field(default="offload", metadata={"choices": ("offload", "keep")})
    reclaim: str = field(default="weights", metadata={"choices": ("weights", "weights+kv")})
    retract: bool = False
    journal_mb: int = field(default=256, metadata={"min": 0, "max": 1_048_576})

    def __post_init__(self) -> None:
        if self.mode == "keep" and self.reclaim != "weights":
            raise ValueError(f"reclaim: {self.reclaim} gives memory back, which mode: keep does not; use mode: offload")


@dataclass(frozen=True)
class LinkSection:
    """How servers and the policy process meet. Only ``stale_after`` is applied on save.

    Attributes:
        endpoint: ``ipc:///path`` or ``tcp://host:port``; None lets the launcher choose.
        keys: directory of CURVE keys, for tcp.
        stale_after: seconds without a sign of life after which agents fall back. Plans carry that of the policy
            process; a server's own counts until its first plan.
        fallback: γ to fall back to; None is the one that the server starts with.
    """

    endpoint: str | None = None
    keys: str | None = None
    stale_after: float = field(default=1.0, metadata={"min": 0.3, "max": 60.0})
    fallback: int | None = field(default=None, metadata={"min": 0, "max": MAX_GAMMA})


@dataclass(frozen=True)
class LogSection:
    """The decision log; off without a ``path``. Applied on save.

    Attributes:
        path: JSON lines; older files get ``.1``, ``.2``, ...
        max_mb: size at which a file is rotated.
        files: how many are kept, the current one included.
        telemetry: also log every telemetry record, as ``nightjar replay`` needs it.
    """

    path: str | None = None
    max_mb: float = field(default=64.0, metadata={"min": 0.01, "max": 1_000_000.0})
    files: int = field(default=4, metadata={"min": 1, "max": 1000})
    telemetry: bool = True


@dataclass(frozen=True)
class Config:
    """The whole file. Every section may be left out."""

    policy: PolicySection = field(default_factory=PolicySection)
    shadow: tuple[PolicySection, ...] = ()
    gamma: GammaSection = field(default_factory=GammaSection)
    memory: MemorySection = field(default_factory=MemorySection)
    link: LinkSection = field(default_factory=LinkSection)
    log: LogSection = field(default_factory=LogSection)

    def __post_init__(self) -> None:
        if len(self.shadow) > 8:
            raise ValueError(f"shadow: {len(self.shadow)} policies; at most 8 are allowed")


def parse(text: str, where: str = "the config") -> Config:
    """The config in ``text``. Raises ConfigError that names the key, its value and what is allowed."""
    import yaml

    try:
        loaded = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where} is no YAML: {' '.join(str(error).split())[:300]}") from None
    try:
        return strict.build(Config, loaded, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


@functools.cache
def _loader() -> Any:
    """A safe YAML loader for which, as in YAML 1.2, only true and false are booleans: ``name: off`` names a policy."""
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resolvers = {
        first: [(tag, pattern) for tag, pattern in found if first in "tTfF" or tag != "tag:yaml.org,2002:bool"]
        for first, found in base.yaml_implicit_resolvers.items()
    }
    return type("Loader", (base,), {"yaml_implicit_resolvers": resolvers})


def load(path: Path) -> Config:
    """The config in a file; paths of policies are relative to its directory. Raises ConfigError like `parse`."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    config = parse(text, str(path))
    beside = path.absolute().parent
    return dataclasses.replace(
        config, policy=_from(beside, config.policy), shadow=tuple(_from(beside, spec) for spec in config.shadow)
    )


def _from(directory: Path, spec: PolicySection) -> PolicySection:
    path = None if spec.path is None else str(directory / spec.path)
    state = spec.state if spec.state in (None, "none") else str(directory / spec.state)
    return dataclasses.replace(spec, path=path, state=state)


def not_live(old: Config, new: Config) -> list[str]:
    """What of the difference can't be applied to a running server: a reason for each."""
    reasons = []
    for key in ("endpoint", "keys"):
        if getattr(old.link, key) != getattr(new.link, key):
            reasons.append(f"link.{key} can't change while servers are connected; restart to apply it")
    if old.link.fallback != new.link.fallback:
        reasons.append("link.fallback is read when a server starts; restart it to apply it")
    for key in ("mode", "reclaim", "retract", "journal_mb"):
        if getattr(old.memory, key) != getattr(new.memory, key):
            reasons.append(f"memory.{key} is read when a server starts; restart it to apply it")
    return reasons


class Watcher:
    """Sees when a file was saved, by looking at it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._mark()

    def changed(self) -> bool:
        """True once after each change, the file's disappearance included."""
        mark = self._mark()
        if mark == self._seen:
            return False
        self._seen = mark
        return True

    def _mark(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)
