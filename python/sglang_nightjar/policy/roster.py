"""Who talks to the policy process: the last sequence number, route, and state of every sender."""

from collections.abc import Iterator
from dataclasses import dataclass

from sglang_nightjar.core.messages import Hello, Plan, Telemetry

_MAX_SENDERS = 8192


@dataclass(slots=True)
class Sender:
    """One process start that talks to us; an agent once it said `Hello`.

    Attributes:
        sender: its id.
        route: routing id of its connection.
        seq: of its last frame.
        seen: when that came (monotonic s).
        offered: its hello as it came.
        hello: the same with the candidates that the config allows.
        record: its last telemetry record.
        plan: the last plan for it, and ``plan_sent`` when it was last sent.
        greeted: when it was last asked for a hello.
        applied, refused: from its acks.
        records, dropped, replayed: counts.
    """

    sender: str
    route: bytes
    seq: int = 0
    seen: float = 0.0
    offered: Hello | None = None
    hello: Hello | None = None
    record: Telemetry | None = None
    plan: Plan | None = None
    plan_sent: float = 0.0
    greeted: float = -1e9
    applied: int = 0
    refused: str = ""
    records: int = 0
    dropped: int = 0
    replayed: int = 0


class Roster:
    """All senders, bounded in number."""

    def __init__(self) -> None:
        self._senders: dict[str, Sender] = {}

    def admit(self, name: str, seq: int, route: bytes, now: float) -> Sender | None:
        """The sender of a frame; None if the frame is a replay, which then changes nothing but a count."""
        sender = self._senders.get(name)
        if sender is None:
            if len(self._senders) >= _MAX_SENDERS:
                return None
            sender = self._senders[name] = Sender(name, route)
        elif seq <= sender.seq:
            sender.replayed += 1
            return None
        sender.seq = seq
        sender.seen = now
        sender.route = route
        return sender

    def get(self, name: str) -> Sender | None:
        """The sender of that id."""
        return self._senders.get(name)

    def agents(self) -> Iterator[tuple[Sender, Hello]]:
        """Those that introduced themselves."""
        for sender in list(self._senders.values()):
            if sender.hello is not None:
                yield sender, sender.hello

    def forget(self, before: float) -> list[Sender]:
        """Remove and return those that were last seen before ``before``."""
        gone = [sender for sender in self._senders.values() if sender.seen < before]
        for sender in gone:
            del self._senders[sender.sender]
        return gone
