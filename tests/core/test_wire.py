"""The wire: golden bytes that an older or newer side must read, round trips, and errors a sender can act on."""

import json
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnmech.wire import (
    MAX_STEP,
    VERSION,
    Ack,
    Batch,
    Event,
    Frame,
    Lineage,
    Measurement,
    Rejection,
    RunInfo,
    Status,
    WireError,
    decode,
    encode,
)

GOLDEN = Path(__file__).parent / "golden"

BATCH = Batch(
    run=RunInfo(
        id="0123456789abcdef0123456789abcdef",
        name="digits",
        created=1_700_000_000.25,
        project="lab",
        tags={"seed": "0"},
        context={"optimizer": "SGD", "parameters": 3466},
    ),
    attempt=1,
    start_step=40,
    writer="fedcba9876543210fedcba9876543210",
    rank=0,
    sent=1_700_000_010.5,
    frames=[
        Frame(
            sequence=0,
            step=40,
            time=1_700_000_009.0,
            samples=20_000,
            tokens=None,
            measurements=[
                Measurement("learning_rate", 0.4),
                Measurement("sharpness", 4.97, stderr=0.002, method="double_backward", cost=0.031),
                Measurement("loss", math.nan, status=Status.NON_FINITE),
                Measurement("grad_norm", -math.inf, scope="layer.0"),
                Measurement("noise_scale", None, status=Status.UNDETERMINED, reason="the denominator is not resolved"),
            ],
        ),
        Frame(
            sequence=1,
            step=41,
            time=1_700_000_010.0,
            events=[Event("run_finished", 41, 1_700_000_010.0, data={"n": 1})],
        ),
    ],
)
RESUMED = msgspec.structs.replace(
    BATCH, frames=[], lineage=Lineage(id="1" * 32, begun=1_700_000_008.5, parent="2" * 32)
)
ACK = Ack(
    accepted=4, duplicates=0, rejected=[Rejection(0, 2, "los", "unknown observable")], last_sequence=1, server_time=5.0
)


MESSAGES = {"batch_v1": BATCH, "resumed_v1": RESUMED, "ack_v1": ACK}


@pytest.mark.parametrize("name", [f"{stem}.{encoding}" for stem in MESSAGES for encoding in ("json", "msgpack")])
def test_golden_files_are_written_and_read(name):
    """A change that fails here is a change of the encoding: raise VERSION and add files, never edit these."""
    stem, _, encoding = name.rpartition(".")
    message = MESSAGES[stem]
    golden = (GOLDEN / name).read_bytes()
    assert encode(message, encoding) == golden
    assert encode(decode(golden, type(message), encoding), encoding) == golden
    assert f"_v{VERSION}." in name


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_an_acknowledgement_with_a_request_is_read_by_older_clients_and_one_without_by_newer(encoding):
    class OlderAck(msgspec.Struct, frozen=True):
        accepted: int
        duplicates: int
        rejected: list[Rejection]
        last_sequence: int
        server_time: float

    older = OlderAck(4, 0, ACK.rejected, 1, 5.0)
    assert decode(encode(msgspec.structs.replace(ACK, asked=3), encoding), OlderAck, encoding) == older
    assert decode(encode(older, encoding), Ack, encoding) == ACK
    assert ACK.asked == 0


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_non_finite_numbers_are_kept_as_data(encoding):
    measurements = decode(encode(BATCH, encoding), Batch, encoding).frames[0].measurements
    assert math.isnan(measurements[2].value)
    assert measurements[3].value == -math.inf
    assert measurements[4].value is None


measurements = st.builds(
    Measurement,
    observable=st.text(max_size=250),
    value=st.none() | st.floats(allow_nan=False),
    scope=st.text(max_size=250),
    stderr=st.none() | st.floats(allow_nan=False),
    status=st.sampled_from(Status),
    reason=st.text(max_size=300),
    method=st.text(max_size=50),
    cost=st.none() | st.floats(0, 1e6),
)
frames = st.lists(
    st.builds(
        Frame,
        sequence=st.integers(0, MAX_STEP),
        step=st.integers(0, MAX_STEP),
        time=st.floats(-1e12, 1e12),
        samples=st.none() | st.integers(0, MAX_STEP),
        tokens=st.none() | st.integers(0, MAX_STEP),
        measurements=st.lists(measurements, max_size=4),
    ),
    max_size=3,
    unique_by=lambda frame: frame.sequence,
).map(lambda items: sorted(items, key=lambda frame: frame.sequence))


@given(frames, st.sampled_from(["json", "msgpack"]))
def test_any_batch_survives_the_round_trip(items, encoding):
    batch = msgspec.structs.replace(BATCH, frames=items)
    assert decode(encode(batch, encoding), Batch, encoding) == batch


@given(st.binary(max_size=300), st.sampled_from(["json", "msgpack"]))
def test_garbage_is_a_wire_error_and_nothing_else(data, encoding):
    try:
        decode(data, Batch, encoding)
    except WireError:
        return
    raise AssertionError("random bytes were taken for a batch")


@given(st.integers(0, 600), st.sampled_from(["json", "msgpack"]))
def test_a_truncated_batch_is_a_wire_error(cut, encoding):
    data = encode(BATCH, encoding)
    with pytest.raises(WireError):
        decode(data[: min(cut, len(data) - 1)], Batch, encoding)


def changed(path, value):
    tree = json.loads(encode(BATCH, "json"))
    *parents, last = path
    node = tree
    for key in parents:
        node = node[key]
    node[last] = value
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["version"], 2, "message version 2, but this side speaks version 1; upgrade"),
        (["version"], "new", "message version 'new'"),
        (["frames", 0, "step"], -1, "frames[0].step"),
        (["frames", 0, "step"], 2**63, "frames[0].step"),
        (["frames", 0, "measurements", 0, "value"], "big", "frames[0].measurements[0].value"),
        (["frames", 0, "measurements", 0, "status"], "fine", "frames[0].measurements[0].status"),
        (["frames", 0, "measurements", 0, "observable"], "x" * 251, "length <= 250"),
        (["frames", 1, "sequence"], 0, "frames[1].sequence is 0 after 0"),
        (["run", "id"], "digits", "run.id"),
        (["run", "name"], "", "run.name"),
        (["writer"], None, "writer"),
        (["attempt"], -1, "attempt"),
        (["heartbeat"], True, "a heartbeat carries no frames"),
        (["lineage"], {"id": "me", "begun": 1.0}, "lineage.id"),
    ],
)
def test_a_wrong_field_is_named(path, value, sentence):
    with pytest.raises(WireError) as caught:
        decode(changed(path, value), Batch, "json")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changed"),
    [("sent", {"sent": math.nan}), ("lineage.begun", {"lineage": Lineage(id="1" * 32, begun=math.nan)})],
)
def test_a_time_that_is_not_finite_is_refused(name, changed):
    batch = msgspec.structs.replace(BATCH, **changed)
    with pytest.raises(WireError, match=f"{name} is nan; expected seconds since the epoch"):
        decode(encode(batch), Batch)
