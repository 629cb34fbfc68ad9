"""Whatever plain value goes in comes out; whatever bytes come in, one error comes out at most."""

from __future__ import annotations

import datetime as dt
import pathlib
import zoneinfo
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sitq.errors import SerializationError
from sitq.payload._comparison import difference
from sitq.payload.serialization import MsgpackSerializer

serializer = MsgpackSerializer()

_zones = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "Europe/Dublin",
        "America/New_York",
        "America/St_Johns",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "Africa/Casablanca",
        "Pacific/Apia",
    ]
).map(zoneinfo.ZoneInfo)
_offsets = st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone)
moments = st.datetimes(
    timezones=st.one_of(st.none(), st.just(dt.UTC), _zones, _offsets), allow_imaginary=True
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(),
    st.binary(),
    moments,
    st.dates(),
    st.times(timezones=st.one_of(st.none(), _offsets)),
    st.timedeltas(),
    st.uuids(),
    st.decimals(),
    st.text(st.characters(codec="ascii", exclude_characters="\0")).map(pathlib.Path),
)
# Signalling NaNs cannot be hashed.
hashables = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.text(), moments),
    lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=4)),
    max_leaves=6,
)
plain_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(inner, max_size=6).map(tuple),
        st.dictionaries(hashables, inner, max_size=4),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
    ),
    max_leaves=20,
)


@given(plain_values)
def test_every_plain_value_comes_back_as_what_it_was(value: Any) -> None:
    assert difference(value, serializer.loads(serializer.dumps(value))) is None


@given(moments, st.sampled_from([0, 1]))
def test_every_moment_comes_back_with_its_offset_and_zone(moment: dt.datetime, fold: int) -> None:
    moment = moment.replace(fold=fold)
    back = serializer.loads(serializer.dumps(moment))
    assert back.isoformat() == moment.isoformat()
    assert back.fold == fold
    assert str(back.tzinfo) == str(moment.tzinfo)


def _read(data: bytes) -> None:
    try:
        value = serializer.loads(data)
    except SerializationError:
        return
    # What was read is plain: it can be written again, unless it grows in the writing.
    assert difference(value, serializer.loads(serializer.dumps(value))) is None


@given(st.binary(max_size=200))
@settings(max_examples=1000)
def test_any_bytes_are_a_plain_value_or_one_error(data: bytes) -> None:
    _read(data)


_extension_bytes = st.builds(
    lambda code, body: b"\xc7" + bytes([len(body), code]) + body,
    st.integers(0, 12),
    st.binary(max_size=40),
)


@given(_extension_bytes)
@settings(max_examples=500)
def test_any_extension_is_a_plain_value_or_one_error(data: bytes) -> None:
    _read(data)


@given(plain_values, st.data())
@settings(max_examples=500)
def test_a_payload_with_a_few_bytes_changed_is_a_plain_value_or_one_error(
    value: Any, data: st.DataObject
) -> None:
    payload = bytearray(serializer.dumps(value))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(payload) - 1))
        payload[where] = data.draw(st.integers(0, 255))
    _read(bytes(payload))


@given(plain_values, st.data())
def test_a_payload_cut_short_is_an_error(value: Any, data: st.DataObject) -> None:
    payload = serializer.dumps(value)
    cut = data.draw(st.integers(0, len(payload) - 1))
    try:
        serializer.loads(payload[:cut])
    except SerializationError:
        return
    raise AssertionError("a part of a payload was taken for a whole one")
