"""Signed payloads: whoever can write to the store cannot make a worker run what nobody enqueued.

`Signer` makes and checks the signatures; `seal` and `unseal` apply those of any serializer.
"""

from __future__ import annotations

import hmac
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sitq.errors import SerializationError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.models import ReservedTask, Task
    from sitq.protocols import Serializer

__all__ = ["MIN_KEY_BYTES", "Signer", "is_signed", "seal", "unseal"]

MIN_KEY_BYTES: Final = 32
# No msgpack document begins with this byte, so signed and plain payloads cannot be mixed up.
_MARK: Final = 0xC1
_MARK_BYTE: Final = bytes((_MARK,))
_VERSION: Final = 1
_DIGEST: Final = "sha256"
_MAC_BYTES: Final = 32
# Mark, version, whether there is an eta, the eta in microseconds since 1970.
_HEAD: Final = struct.Struct(">BB?q")
_LENGTH: Final = struct.Struct(">Q")
_PAYLOAD_AT: Final = _HEAD.size + _MAC_BYTES
# Another use of the same key must not give a signature that is good here.
_PURPOSE: Final = b"sitq.task"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Signer:
    """Signs with HMAC-SHA256 over a task's id, function, queue, eta and payload.

    The first key signs, every key verifies. To rotate, put the new key first, and take the old
    one out when no task that it signed is left.

    The envelope carries the eta as it was asked for, because a store fills in a missing one and
    moves it at every retry. A task whose eta lies before that was altered; one that was put off
    cannot be told from a retry. So a retry that lands before the eta, on a clock that was set
    back in between, is refused too.

    Args:
        keys: secrets of at least 32 random bytes each.

    Raises:
        ValidationError: there is no key, or one is too short or not bytes.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys: Final = _checked(keys)

    def __repr__(self) -> str:
        return f"Signer(<{len(self._keys)} keys>)"

    def sign(self, task: Task) -> bytes:
        """Return the envelope to store as the task's payload: head, signature, payload."""
        eta = 0 if task.eta is None else _micros(task.eta)
        head = _HEAD.pack(_MARK, _VERSION, task.eta is not None, eta)
        return head + _mac(self._keys[0], _message(task, head, task.payload)) + task.payload

    def open(self, task: Task | ReservedTask) -> bytes:
        """Return the payload that was signed; nothing of it has been decoded.

        Raises:
            SerializationError: the task is not signed, was altered, or its key is not known.
        """
        envelope = task.payload
        if not is_signed(envelope):
            raise SerializationError(
                "bad signature: the task is not signed; give its queue a serializer with keys"
            )
        if len(envelope) < _PAYLOAD_AT:
            raise SerializationError("bad signature: it is cut off")
        head = envelope[: _HEAD.size]
        _, version, has_eta, eta = _HEAD.unpack(head)
        if version != _VERSION:
            raise SerializationError(
                f"bad signature: its format {version} is unknown; this sitq reads {_VERSION}"
            )
        payload = envelope[_PAYLOAD_AT:]
        message = _message(task, head, payload)
        found = envelope[_HEAD.size : _PAYLOAD_AT]
        if not any(hmac.compare_digest(_mac(key, message), found) for key in self._keys):
            raise SerializationError(
                "bad signature: the task was altered, or signed with a key that is not known here"
            )
        if has_eta and (task.eta is None or _micros(task.eta) < eta):
            raise SerializationError("bad signature: the eta was moved to before the signed one")
        return payload


def is_signed(payload: bytes) -> bool:
    """Tell if a payload is an envelope, good or bad."""
    return type(payload) is bytes and payload.startswith(_MARK_BYTE)


def seal(serializer: Serializer, task: Task) -> Task:
    """Return the task as it is to be stored: sealed, if its serializer does that."""
    method = getattr(serializer, "seal", None)
    sealed: Task = task if method is None else method(task)
    return sealed


def unseal(serializer: Serializer, task: Task | ReservedTask) -> bytes:
    """Return a stored task's payload, to be decoded; a serializer that seals verifies it first.

    Raises:
        SerializationError: the seal is missing, broken, or of another task.
    """
    method = getattr(serializer, "unseal", None)
    payload: bytes = task.payload if method is None else method(task)
    return payload


def _checked(keys: Any) -> tuple[bytes, ...]:
    """The keys; no text of an error shows anything of them."""
    if isinstance(keys, str | bytes | bytearray | memoryview):
        kind = type(keys).__name__
        raise ValidationError(f"keys: give a list of keys, [key] for a single one (got {kind})")
    try:
        found = tuple(keys)
    except TypeError:
        kind = type(keys).__name__
        raise ValidationError(f"keys: give a list of bytes (got {kind})") from None
    if not found:
        raise ValidationError("keys: give at least one key, or None to sign nothing")
    for index, key in enumerate(found):
        if type(key) is not bytes:
            raise ValidationError(f"keys[{index}]: a key is bytes (got {type(key).__name__})")
        if len(key) < MIN_KEY_BYTES:
            hint = f"use {MIN_KEY_BYTES} random bytes or more, secrets.token_bytes(32) say"
            raise ValidationError(f"keys[{index}]: the key has only {len(key)} bytes; {hint}")
    return found


def _message(task: Task | ReservedTask, head: bytes, payload: bytes) -> bytes:
    """What is signed; each part comes after its length, so that no byte can change sides."""
    texts = (task.id, task.function, task.queue)
    parts = (_PURPOSE, head, *(text.encode("utf-8", "surrogatepass") for text in texts), payload)
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, _DIGEST)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND
