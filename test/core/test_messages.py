"""Every message survives the wire; everything else is refused with a WireError."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_nightjar.core.messages import (
    MAX_BATCH,
    MAX_FRAME_BYTES,
    MAX_GAMMA,
    MAX_INT,
    MAX_RECORDS,
    Ack,
    Arrivals,
    Hello,
    HelloWanted,
    Plan,
    Reply,
    Request,
    Telemetry,
    TelemetryBatch,
    make_sender_id,
)
from sglang_nightjar.core.wire import WireError, decode, encode

counts = st.integers(0, MAX_INT)
names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40)
gammas = st.integers(0, MAX_GAMMA)


@st.composite
def records(draw):
    batch_size, gamma = draw(st.integers(1, MAX_BATCH)), draw(gammas)
    accepted = draw(st.just(()) | st.tuples(*[st.integers(0, batch_size)] * gamma))
    numbers = draw(st.lists(counts, min_size=13, max_size=13))
    rows = draw(st.just(0) | st.integers(batch_size, batch_size * (gamma + 1)))
    return Telemetry(
        *numbers[:3], batch_size, gamma, draw(st.integers(0, batch_size * (gamma + 1))), *numbers[3:13],
        draw(st.integers(0, 6)), draw(st.integers(0, 1)), draw(counts), rows, accepted
    )  # fmt: skip


@st.composite
def ranges(draw):
    ends = sorted(draw(st.sets(st.integers(1, MAX_BATCH), max_size=5)))
    starts = [1, *(end + 1 for end in ends)]
    return tuple((first, last, draw(gammas)) for first, last in zip(starts, [*ends, None], strict=True))


@st.composite
def hellos(draw):
    candidates = tuple(sorted(draw(st.sets(gammas, min_size=1))))
    return Hello(
        draw(names), draw(st.integers(1, MAX_INT)), draw(names), 0, 1, 2, draw(names), "", draw(names), candidates,
        draw(st.sampled_from(candidates)), draw(st.integers(1, MAX_BATCH)), *draw(st.tuples(counts, counts, counts)),
        tuple(draw(st.lists(st.tuples(counts, st.integers(1, MAX_BATCH), counts), max_size=4))), "0.5.17", "0.1.0"
    )  # fmt: skip


messages = st.one_of(
    hellos(),
    st.builds(
        TelemetryBatch,
        names,
        st.integers(1, MAX_INT),
        st.lists(records(), min_size=1, max_size=3).map(tuple),
        counts,
    ),
    st.builds(Arrivals, names, st.integers(1, MAX_INT), names, counts, counts, counts, counts),
    st.builds(HelloWanted, names),
    st.builds(
        Plan, st.integers(1, MAX_INT), names, names, ranges(), st.sampled_from(["device", "host"]), names,
        st.integers(1, 86_400_000), counts
    ),
    st.builds(Ack, names, st.integers(1, MAX_INT), counts, counts, names),
    st.builds(Request, names, st.integers(1, MAX_INT), names, st.dictionaries(names, counts | names | st.none())),
    st.builds(Reply, counts, st.booleans(), names, st.dictionaries(names, counts | names)),
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(messages)
def test_survives_the_wire(message):
    assert decode(encode(message)) == message


@given(messages, st.data())
@settings(max_examples=300)
def test_one_wrong_value_or_key_is_a_message_or_a_wire_error(message, data):
    """Never another exception, and never a message that would not survive the wire again."""
    body = json.loads(encode(message))
    key = data.draw(st.sampled_from(sorted(body)))
    if data.draw(st.booleans()):
        body[key] = data.draw(json_values)
    else:
        del body[key]
        with pytest.raises(WireError):
            decode(json.dumps(body).encode())
    try:
        changed = decode(json.dumps(body).encode())
    except WireError:
        return
    assert decode(encode(changed)) == changed


@given(messages, st.data())
def test_a_truncated_frame_is_refused(message, data):
    frame = encode(message)
    with pytest.raises(WireError):
        decode(frame[: data.draw(st.integers(0, len(frame) - 1))])


@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(WireError):
        decode(noise)


@given(records(), st.integers(0, 19), st.sampled_from([-1, MAX_INT + 1, 2**64, 1.0, 1.5, None, True, "1", [], 1e300]))
def test_a_wrong_number_in_a_record_refuses_the_frame(record, column, wrong):
    body = json.loads(encode(TelemetryBatch("a", 1, (record, record))))
    body["records"][1][column] = wrong
    with pytest.raises(WireError):
        decode(json.dumps(body).encode())


RECORD = Telemetry(1, 2, 3, batch_size=4, gamma=2, committed=9, accepted=(4, 1))


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"batch_size": MAX_BATCH + 1},
        {"gamma": MAX_GAMMA + 1},
        {"committed": 13},
        {"accepted": (4, 1, 0)},
        {"accepted": (5, 1)},
        {"accepted": (-1, 1)},
        {"accepted": (True, 1)},
        {"residency": 7},
        {"cuda_graph": 2},
        {"rows": 3},
        {"rows": 13},
    ],
)
def test_an_impossible_record_is_refused(change):
    assert decode(encode(TelemetryBatch("a", 1, (RECORD,)))).records == (RECORD,)
    with pytest.raises(WireError):
        decode(encode(TelemetryBatch("a", 1, (RECORD._replace(**change),))))


@pytest.mark.parametrize(
    "gammas",
    [(), ((2, None, 1),), ((1, 4, 1),), ((1, 4, 1), (6, None, 0)), ((1, 0, 1), (1, None, 0)), ((1, None, 65),),
     ((1, None, -1),), ((1, None, True),), ((1, None, 1), (2, None, 0))],
)  # fmt: skip
def test_a_plan_with_gaps_is_refused(gammas):
    with pytest.raises(WireError, match="gammas"):
        decode(encode(Plan(1, "p", "1", gammas, "device", "", 1)))


def test_kinds_of_refusal():
    frame = encode(Ack("a", 1, 2, 3))
    for wrong, kind in (
        (frame.replace(b'"v":1', b'"v":2'), "version"),
        (frame.replace(b'"v":1', b'"v":"1"'), "version"),
        (frame.replace(b'"v":1', b'"v":true'), "version"),
        (frame + b" " * MAX_FRAME_BYTES, "oversized"),
        (b"[" * 100_000, "malformed"),
        (b"null", "malformed"),
        (frame.replace(b'"ack"', b'"pickle"'), "malformed"),
    ):
        with pytest.raises(WireError) as caught:
            decode(wrong)
        assert caught.value.kind == kind
        assert len(str(caught.value)) < 300


def test_bounds_of_lists_and_texts():
    with pytest.raises(WireError, match="records"):
        decode(encode(TelemetryBatch("a", 1, (RECORD,) * (MAX_RECORDS + 1))))
    with pytest.raises(WireError, match="records"):
        decode(encode(TelemetryBatch("a", 1, ())))
    for text in ("x" * 513, "line\nbreak", "\x1b[31m", ""):
        with pytest.raises(WireError, match="sender"):
            decode(encode(Ack(text, 1, 2, 3)))


def test_the_largest_batch_fits_a_frame():
    record = Telemetry(
        *[MAX_INT] * 3,
        MAX_BATCH,
        MAX_GAMMA,
        1,
        *[MAX_INT] * 10,
        1,
        1,
        MAX_INT,
        MAX_BATCH * (MAX_GAMMA + 1),
        (MAX_BATCH,) * MAX_GAMMA,
    )  # fmt: skip
    batch = TelemetryBatch("s" * 512, MAX_INT, (record,) * MAX_RECORDS, MAX_INT)
    assert decode(encode(batch)) == batch


def test_a_machine_that_has_been_up_for_years_is_heard():
    at_ns = 10 * 365 * 86_400 * 10**9
    batch = TelemetryBatch("a", 1, (RECORD._replace(at_ns=at_ns),))
    assert decode(encode(batch)).records[0].at_ns == at_ns


def test_sender_ids_differ():
    assert make_sender_id("host", "dp0") != make_sender_id("host", "dp0")
    assert make_sender_id("host", "dp0").startswith("host/dp0/")
