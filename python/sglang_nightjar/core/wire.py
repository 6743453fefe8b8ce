"""Messages as bytes: one JSON object per frame, ``"v"`` and ``"type"`` and then the fields of the dataclass by name.

Strict: an unknown or missing key, another type, a value out of range or a text that is too long is a `WireError`, and
nothing else ever is raised by `decode`. Telemetry records are rows (arrays in the order of `Telemetry`'s fields),
because checking a row costs a fifth of checking an object; the whole frame is refused if one row is wrong.
"""

from collections.abc import Callable
from typing import Any

import orjson

from sglang_nightjar.core import gammas
from sglang_nightjar.core.messages import (
    MAX_BATCH,
    MAX_FRAME_BYTES,
    MAX_GAMMA,
    MAX_INT,
    MAX_RECORDS,
    MAX_TEXT,
    VERSION,
    Ack,
    Arrivals,
    Hello,
    HelloWanted,
    Message,
    Plan,
    Reply,
    Request,
    Residency,
    Telemetry,
    TelemetryBatch,
)

_COLUMNS = len(Telemetry._fields)
_INTS = {int}
_RESIDENCIES = len(Residency)
_PREFIX = b'{"v":%d,"type":"' % VERSION


class WireError(ValueError):
    """A frame is no message of this version. ``kind``: count it as ``malformed``, ``oversized`` or ``version``."""

    def __init__(self, message: str, kind: str = "malformed") -> None:
        super().__init__(message)
        self.kind = kind


def encode(message: Message) -> bytes:
    """The frame of ``message``. It does not check values: the receiver does."""
    if type(message) is TelemetryBatch:
        body: dict[str, Any] = {
            "v": VERSION,
            "type": "telemetry",
            "sender": message.sender,
            "seq": message.seq,
            "dropped": message.dropped,
            # orjson takes plain tuples only.
            "records": [tuple(record) for record in message.records],
        }
        return orjson.dumps(body)
    return _PREFIX + _NAMES[type(message)] + b'",' + orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS)[1:]


def decode(frame: bytes, limit: int = MAX_FRAME_BYTES) -> Message:
    """The message in ``frame``, at most ``limit`` bytes. Raises WireError, and nothing else."""
    if len(frame) > limit:
        raise WireError(f"a frame of {len(frame)} bytes; at most {limit} are allowed", "oversized")
    try:
        body = orjson.loads(frame)
    except ValueError as error:
        raise WireError(f"not JSON: {error}") from None
    if type(body) is not dict:
        raise WireError("not a JSON object")
    version = body.pop("v", None)
    if type(version) is not int or version != VERSION:
        raise WireError(f"version {_show(version)}; this is version {VERSION}", "version")
    kind = body.pop("type", None)
    if kind == "telemetry":
        return _telemetry(body)
    if type(kind) is not str or kind not in _TYPES:
        raise WireError(f"type {_show(kind)} is none of {', '.join(sorted(_TYPES))}")
    message_class, fields = _TYPES[kind]
    if body.keys() != fields.keys():
        raise WireError(_wrong_keys(kind, body, fields))
    message = message_class(**{name: check(name, body[name]) for name, check in fields.items()})
    if kind == "hello" and message.start_gamma not in message.candidates:
        raise WireError(
            f"start_gamma must be one of the candidates {list(message.candidates)}, not {message.start_gamma}"
        )
    return message  # type: ignore[no-any-return]


def _telemetry(body: dict[str, Any]) -> TelemetryBatch:
    try:
        sender, seq, dropped, rows = body["sender"], body["seq"], body["dropped"], body["records"]
    except KeyError:
        raise WireError(_wrong_keys("telemetry", body, _TELEMETRY)) from None
    if len(body) != len(_TELEMETRY):
        raise WireError(_wrong_keys("telemetry", body, _TELEMETRY))
    # Spelt out, as this is the frame of which there are many; the checks themselves say what is wrong.
    if type(sender) is not str or not 0 < len(sender) <= MAX_TEXT or not sender.isprintable():
        _name("sender", sender)
    if type(seq) is not int or not 0 < seq <= MAX_INT or type(dropped) is not int or not 0 <= dropped <= MAX_INT:
        _positive("seq", seq)
        _int("dropped", dropped)
    if type(rows) is not list or not 1 <= len(rows) <= MAX_RECORDS:
        raise WireError(f"records must be a list of 1 to {MAX_RECORDS} rows")
    return TelemetryBatch(sender, seq, tuple([record(row) for row in rows]), dropped)


def record(row: Any) -> Telemetry:
    """One row as `Telemetry`. Raises WireError."""
    if type(row) is not list or len(row) != _COLUMNS:
        raise WireError(f"a telemetry record must be a row of {_COLUMNS} values")
    accepted = row.pop()
    # Sets and min/max run in C: 2 µs instead of 10 for nineteen checks in Python.
    if type(accepted) is not list or set(map(type, row)) != _INTS or not set(map(type, accepted)) <= _INTS:
        raise WireError("a telemetry record must hold integers, and a list of integers as accepted")
    if min(row) < 0 or max(row) > MAX_INT:
        raise WireError(f"a value of a telemetry record is not in 0 to {MAX_INT}")
    row.append(tuple(accepted))
    made = Telemetry._make(row)
    batch_size, gamma = made.batch_size, made.gamma
    if not (1 <= batch_size <= MAX_BATCH and gamma <= MAX_GAMMA and made.committed <= batch_size * (gamma + 1)):
        raise WireError(
            f"a telemetry record with batch_size {batch_size}, gamma {gamma}, committed {made.committed}; allowed are "
            f"1 to {MAX_BATCH}, 0 to {MAX_GAMMA}, and up to batch_size * (gamma + 1)"
        )
    if accepted and (len(accepted) != gamma or min(accepted) < 0 or max(accepted) > batch_size):
        raise WireError(f"accepted {accepted} of a telemetry record with gamma {gamma} and batch_size {batch_size}")
    if made.rows and not batch_size <= made.rows <= batch_size * (gamma + 1):
        raise WireError(f"rows {made.rows} of a telemetry record with gamma {gamma} and batch_size {batch_size}")
    if made.residency >= _RESIDENCIES or made.cuda_graph > 1:
        raise WireError(f"residency {made.residency} or cuda_graph {made.cuda_graph} of a telemetry record")
    return made


def _wrong_keys(kind: str, body: dict[str, Any], fields: dict[str, Any]) -> str:
    unknown = ", ".join(sorted(_show(key) for key in body.keys() - fields.keys()))
    missing = ", ".join(sorted(fields.keys() - body.keys()))
    return f"{kind}: " + "; ".join(
        part for part in (f"unknown {unknown}" * bool(unknown), f"missing {missing}" * bool(missing)) if part
    )


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _between(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise WireError(f"{name} must be an integer from {low} to {high}, not {_show(value)}")
        return value

    return check


_int = _between(0, MAX_INT)
_positive = _between(1, MAX_INT)


def _text(name: str, value: Any) -> str:
    # Texts end in log lines: no line breaks, no escape sequences.
    if type(value) is not str or len(value) > MAX_TEXT or not value.isprintable():
        raise WireError(f"{name} must be a printable text of at most {MAX_TEXT} characters, not {_show(value)}")
    return value


def _long_text(name: str, value: Any) -> str:
    if type(value) is not str or len(value) > 65_536:
        raise WireError(f"{name} must be a text of at most 65536 characters, not {_show(value)}")
    return value


def _name(name: str, value: Any) -> str:
    if not _text(name, value):
        raise WireError(f"{name} must not be empty")
    return str(value)


def _bool(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise WireError(f"{name} must be true or false, not {_show(value)}")
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise WireError(f"{name} must be an object, not {_show(value)}")
    return value


def _candidates(name: str, value: Any) -> tuple[int, ...]:
    if type(value) is not list or not 1 <= len(value) <= MAX_GAMMA + 1:
        raise WireError(f"{name} must be a list of 1 to {MAX_GAMMA + 1} integers, not {_show(value)}")
    made = tuple(_between(0, MAX_GAMMA)(name, gamma) for gamma in value)
    if list(made) != sorted(set(made)):
        raise WireError(f"{name} must ascend and be distinct, not {_show(value)}")
    return made


def _switch_costs(name: str, value: Any) -> tuple[tuple[int, int, int], ...]:
    if type(value) is not list or len(value) > 1024:
        raise WireError(f"{name} must be a list of at most 1024 rows")
    for row in value:
        if type(row) is not list or len(row) != 3:
            raise WireError(f"{name} must hold rows of (lag, batch size, ns), not {_show(row)}")
    return tuple((_int(name, lag), _between(1, MAX_BATCH)(name, size), _int(name, ns)) for lag, size, ns in value)


def _ranges(name: str, value: Any) -> gammas.Ranges:
    if (wrong := gammas.fault(value, MAX_GAMMA, MAX_BATCH)) is not None:
        raise WireError(f"{name}: {wrong}")
    return tuple((first, last, gamma) for first, last, gamma in value)


def _residency(name: str, value: Any) -> str:
    if value not in ("device", "host"):
        raise WireError(f"{name} must be device or host, not {_show(value)}")
    return str(value)


_SENDER = {"sender": _name, "seq": _positive}
_TELEMETRY: dict[str, Any] = {**_SENDER, "dropped": _int, "records": record}
_TYPES: dict[str, tuple[Any, dict[str, Callable[[str, Any], Any]]]] = {
    "hello": (
        Hello,
        {
            **_SENDER,
            "server": _name,
            "dp_rank": _int,
            "dp_size": _between(1, MAX_BATCH),
            "tp_size": _between(1, MAX_BATCH),
            "target": _name,
            "draft": _text,
            "hardware": _name,
            "candidates": _candidates,
            "start_gamma": _between(0, MAX_GAMMA),
            "max_batch_size": _between(1, MAX_BATCH),
            "kv_tokens": _int,
            "kv_tokens_without_draft": _int,
            "draft_bytes": _int,
            "switch_costs": _switch_costs,
            "sglang_version": _text,
            "nightjar_version": _text,
        },
    ),
    "arrivals": (
        Arrivals,
        {
            **_SENDER,
            "server": _name,
            "at_ns": _int,
            "interval_ns": _int,
            "requests": _int,
            "prompt_tokens": _int,
        },
    ),
    "hello_wanted": (HelloWanted, {"process": _name}),
    "plan": (
        Plan,
        {
            "plan_id": _positive,
            "policy": _name,
            "policy_version": _text,
            "gammas": _ranges,
            "residency": _residency,
            "reason": _text,
            "valid_for_ms": _between(1, 86_400_000),
            "echo_ns": _int,
            "trim": _bool,
        },
    ),
    "ack": (Ack, {**_SENDER, "plan_id": _int, "iteration": _int, "refused": _text}),
    "request": (Request, {**_SENDER, "op": _name, "args": _object}),
    "reply": (Reply, {"seq": _int, "ok": _bool, "error": _long_text, "body": _object}),
}
_NAMES: dict[type, bytes] = {made: name.encode() for name, (made, _) in _TYPES.items()}
