"""A signature covers what decides on a task's run; each change of it is found."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sitq import (
    MsgpackSerializer,
    ReservedTask,
    SerializationError,
    Serializer,
    SigningSerializer,
    Task,
    ValidationError,
)
from sitq.ids import new_task_id
from sitq.payload.signing import MIN_KEY_BYTES, Signer, is_signed, seal, unseal

KEY = b"k" * MIN_KEY_BYTES
OTHER = b"o" * MIN_KEY_BYTES
ETA = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
PAYLOAD = b"\x92\x91\x01\x80"
OVERHEAD = 43


def made(**fields: Any) -> Task:
    given: dict[str, Any] = {"id": new_task_id(), "function": "m:f", "payload": PAYLOAD, **fields}
    return Task(**given)


def signed(task: Task, *keys: bytes) -> Task:
    return MsgpackSerializer(keys=keys or [KEY]).seal(task)


def opened(task: Task | ReservedTask, *keys: bytes) -> bytes:
    return Signer(keys or [KEY]).open(task)


def altered(task: Task, **fields: Any) -> Task:
    return task.model_copy(update=fields)


# -- what is signed --------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [None, ETA, datetime(1, 1, 1, tzinfo=UTC)])
def test_what_was_signed_comes_back_as_it_was(eta: datetime | None) -> None:
    task = made(eta=eta)
    sealed = signed(task)
    assert opened(sealed) == PAYLOAD
    assert altered(sealed, payload=PAYLOAD) == task
    assert len(sealed.payload) == len(PAYLOAD) + OVERHEAD


def test_the_signature_is_hmac_sha256_over_the_parts_with_their_lengths() -> None:
    """Written out once more: a later version must be able to verify what this one signed."""
    task = made(eta=ETA, queue="mail")
    head = b"\xc1\x01\x01" + (1893553445678901).to_bytes(8, "big", signed=True)
    parts = [b"sitq.task", head, task.id.encode(), b"m:f", b"mail", PAYLOAD]
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    mac = hmac.new(KEY, message, hashlib.sha256).digest()
    assert signed(task).payload == head + mac + PAYLOAD


@pytest.mark.parametrize(
    "change",
    [
        {"id": new_task_id()},
        {"function": "m:g"},
        {"queue": "other"},
        {"eta": ETA - MICROSECOND},
        {"eta": None},
    ],
    ids=["id", "function", "queue", "eta", "no eta"],
)
def test_an_altered_field_is_refused(change: dict[str, Any]) -> None:
    sealed = signed(made(eta=ETA))
    with pytest.raises(SerializationError, match="signature"):
        opened(altered(sealed, **change))


def test_what_moves_between_function_and_queue_is_refused() -> None:
    sealed = signed(made(function="ab", queue="c"))
    with pytest.raises(SerializationError, match="signature"):
        opened(altered(sealed, function="a", queue="bc"))


@pytest.mark.parametrize("eta", [None, ETA])
def test_each_altered_bit_of_the_envelope_is_refused(eta: datetime | None) -> None:
    sealed = signed(made(eta=eta))
    for place in range(len(sealed.payload) * 8):
        changed = bytearray(sealed.payload)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(SerializationError, match="signature"):
            opened(altered(sealed, eta=ETA, payload=bytes(changed)))


def test_each_length_but_the_right_one_is_refused() -> None:
    sealed = signed(made())
    for length in range(len(sealed.payload)):
        with pytest.raises(SerializationError, match="signature"):
            opened(altered(sealed, payload=sealed.payload[:length]))
    with pytest.raises(SerializationError, match="signature"):
        opened(altered(sealed, payload=sealed.payload + b"\x00"))


@given(st.binary(max_size=100))
def test_no_bytes_but_an_envelope_are_accepted(noise: bytes) -> None:
    for payload in (noise, b"\xc1\x01" + noise):
        with pytest.raises(SerializationError, match="signature"):
            opened(made(payload=payload))


def test_the_envelope_of_another_task_is_refused() -> None:
    one, other = signed(made()), made()
    with pytest.raises(SerializationError, match="signature"):
        opened(altered(other, payload=one.payload))


def test_a_payload_that_is_not_bytes_is_refused() -> None:
    text: Any = "\xc1\x01"
    with pytest.raises(SerializationError, match="signature"):
        opened(altered(made(), payload=text))


@pytest.mark.parametrize("later", [ETA, ETA + MICROSECOND, ETA + timedelta(days=1)], ids=str)
def test_a_task_that_a_retry_put_off_is_accepted(later: datetime) -> None:
    assert opened(altered(signed(made(eta=ETA)), eta=later)) == PAYLOAD


@pytest.mark.parametrize("filled_in", [None, ETA, datetime(1, 1, 1, tzinfo=UTC)], ids=str)
def test_the_eta_of_a_task_that_had_none_is_free(filled_in: datetime | None) -> None:
    assert opened(altered(signed(made()), eta=filled_in)) == PAYLOAD


def test_an_eta_is_a_moment_in_whatever_zone_it_was_given() -> None:
    sealed = signed(made(eta=ETA.astimezone(timezone(timedelta(hours=-11)))))
    assert opened(altered(sealed, eta=ETA)) == PAYLOAD


def test_an_unknown_format_says_so() -> None:
    sealed = signed(made())
    newer = b"\xc1\x02" + sealed.payload[2:]
    with pytest.raises(SerializationError, match="signature: its format 2 is unknown"):
        opened(altered(sealed, payload=newer))


# -- keys ------------------------------------------------------------------------------------


def test_the_first_key_signs_and_every_key_verifies() -> None:
    sealed = signed(made(), KEY, OTHER)
    assert opened(sealed, KEY) == PAYLOAD
    assert opened(sealed, OTHER, KEY) == PAYLOAD
    with pytest.raises(SerializationError, match="key that is not known here"):
        opened(sealed, OTHER)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ([], "at least one key"),
        (KEY, r"\[key\]"),
        ("k" * 32, r"\[key\]"),
        (32, "a list of bytes"),
        ([KEY, "k" * 32], r"keys\[1\].*got str"),
        ([bytearray(KEY)], r"keys\[0\].*got bytearray"),
        ([KEY[1:]], r"keys\[0\].*only 31 bytes"),
        ([KEY, b""], r"keys\[1\].*only 0 bytes"),
    ],
    ids=str,
)
def test_bad_keys_are_refused_when_the_serializer_is_made(keys: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        MsgpackSerializer(keys=keys)


def test_no_key_shows_in_a_repr_or_in_an_error() -> None:
    short = b"hush-hush"
    with pytest.raises(ValidationError) as refused:
        MsgpackSerializer(keys=[short])
    assert "hush" not in str(refused.value)
    secret = b"hush" * 8
    shown = repr(MsgpackSerializer(keys=[secret])) + repr(Signer([secret]))
    assert "keys" in shown
    assert "hush" not in shown


# -- serializers -----------------------------------------------------------------------------


def test_without_keys_a_serializer_leaves_tasks_as_they_are() -> None:
    task = made()
    serializer = MsgpackSerializer()
    assert serializer.seal(task) is task
    assert serializer.unseal(task) == PAYLOAD
    assert "keys" not in repr(serializer)


def test_without_keys_a_serializer_refuses_a_signed_task_and_says_what_to_do() -> None:
    with pytest.raises(SerializationError, match=r"signature.*keys=\[\.\.\.\]"):
        MsgpackSerializer().unseal(signed(made()))


def test_with_keys_a_serializer_refuses_an_unsigned_task_and_says_what_to_do() -> None:
    with pytest.raises(SerializationError, match="signature.*not signed.*with keys"):
        MsgpackSerializer(keys=[KEY]).unseal(made())


@given(st.recursive(st.none() | st.integers(-9, 9) | st.binary(), st.lists, max_leaves=5))
def test_no_payload_of_msgpack_is_mistaken_for_a_signed_one(value: object) -> None:
    assert not is_signed(MsgpackSerializer().dumps(value))


def test_an_envelope_that_is_not_unsealed_cannot_be_decoded() -> None:
    with pytest.raises(SerializationError):
        MsgpackSerializer(keys=[KEY]).loads(signed(made()).payload)


def test_the_size_limit_counts_the_payload_without_the_signature() -> None:
    serializer = MsgpackSerializer(keys=[KEY], max_bytes=100)
    payload = serializer.dumps("x" * 98)
    assert len(payload) == 100
    sealed = serializer.seal(made(payload=payload))
    assert serializer.loads(serializer.unseal(sealed)) == "x" * 98
    with pytest.raises(SerializationError, match="limit"):
        serializer.dumps("x" * 99)


class Plain:
    """A serializer that knows nothing of seals."""

    def dumps(self, value: Any) -> bytes:
        return repr(value).encode()

    def loads(self, data: bytes) -> Any:
        raise NotImplementedError


class Reversing(Plain):
    """A serializer with a seal of its own."""

    def seal(self, task: Task) -> Task:
        return altered(task, payload=task.payload[::-1])

    def unseal(self, task: Task | ReservedTask) -> bytes:
        return task.payload[::-1]


def test_a_serializer_without_seals_is_left_alone() -> None:
    serializer: Serializer = Plain()
    task = made()
    assert seal(serializer, task) is task
    assert unseal(serializer, task) == PAYLOAD
    assert not isinstance(serializer, SigningSerializer)


def test_a_serializer_with_seals_of_its_own_is_asked() -> None:
    serializer: SigningSerializer = Reversing()
    sealed = seal(serializer, made())
    assert sealed.payload == PAYLOAD[::-1]
    assert unseal(serializer, sealed) == PAYLOAD
    assert isinstance(serializer, SigningSerializer)
    assert isinstance(MsgpackSerializer(), SigningSerializer)
