"""Signatures of tasks and results, so that access to the store is not enough to forge them.

`Signer` makes and checks the signatures; the functions apply those of any serializer.
"""

from __future__ import annotations

import hmac
import re
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sitq._system_errors import LOST_ERROR, NO_ATTEMPT_LEFT, UNREADABLE
from sitq.errors import SerializationError, ValidationError
from sitq.models import OutcomeKind
from sitq.states import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.models import Outcome, ReservedTask, Result, Task
    from sitq.protocols import Serializer

__all__ = [
    "MIN_KEY_BYTES",
    "Signer",
    "is_signed",
    "is_stores_own",
    "seal",
    "seal_outcome",
    "unseal",
    "unseal_result",
]

MIN_KEY_BYTES: Final = 32
# No msgpack document begins with this byte, so signed and plain payloads cannot be mixed up.
_MARK: Final = 0xC1
_MARK_BYTE: Final = bytes((_MARK,))
_VERSION: Final = 1
_DIGEST: Final = "sha256"
_MAC_BYTES: Final = 32
# The mark, the version, whether there is an eta, and the eta in microseconds since 1970.
_HEAD: Final = struct.Struct(">BB?q")
_LENGTH: Final = struct.Struct(">Q")
_PAYLOAD_AT: Final = _HEAD.size + _MAC_BYTES
# A signature made with the same key for another purpose must not be valid here.
_PURPOSE: Final = b"sitq.task"
_RESULT_PURPOSE: Final = b"sitq.result"
# Comes before the signature and the value of a success.
_RESULT_HEAD: Final = bytes((_MARK, _VERSION))
_VALUE_AT: Final = len(_RESULT_HEAD) + _MAC_BYTES
# A line of its own after the traceback of a failure: the signature needs no column.
_SEAL_LINE: Final = re.compile(r"(?P<trace>(?s:.*)\n)?\[signature 1: (?P<mac>[0-9a-f]{64})\]")
# The errors that a store or a worker writes when it has no outcome to sign, or cannot store one.
_STORES_OWN: Final = re.compile(
    rf"{re.escape(LOST_ERROR).replace('%d', '[0-9]{1,12}')}"
    rf"|{re.escape(UNREADABLE)}"
    rf"|{re.escape(NO_ATTEMPT_LEFT)}"
    r"|BackendValueError: the store cannot keep the (error|result) of this attempt"
)
_NOT_SIGNED: Final = (
    "bad signature: the result is not signed; give its worker a serializer with keys"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Signer:
    """Signs with HMAC-SHA256 over a task's id, function, queue, eta and payload.

    The first key signs, every key verifies. To rotate, put the new key first, and take the old
    one out when no task that it signed is left.

    The envelope carries the eta as it was asked for, because a store fills in a missing one and
    moves it at every retry. A task whose eta lies before that was altered. A later eta cannot be
    distinguished from a retry. A retry that gets an eta before the signed one, on a clock that was
    set back, is refused too.

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
        """Return the payload that was signed; nothing is decoded.

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
        if not self._verifies(message, found):
            raise SerializationError(
                "bad signature: the task was altered, or signed with a key that is not known here"
            )
        if has_eta and (task.eta is None or _micros(task.eta) < eta):
            raise SerializationError("bad signature: the eta was moved to before the signed one")
        return payload

    def sign_outcome(self, task: ReservedTask, outcome: Outcome) -> Outcome:
        """Return an outcome with a signature: before its value, or after its traceback.

        Other kinds of outcome carry no text or value to sign.
        """
        key = self._keys[0]
        if outcome.kind is OutcomeKind.SUCCESS:
            value = outcome.value or b""
            mac = _mac(key, _result_message(task.id, task.function, TaskStatus.SUCCESS, value))
            return outcome.model_copy(update={"value": _RESULT_HEAD + mac + value})
        if outcome.kind in {OutcomeKind.FAILURE, OutcomeKind.RETRY}:
            # When the attempts are spent, a store fails the task with the retry's texts.
            error, trace = _storable(outcome.error), _storable(outcome.traceback)
            message = _result_message(task.id, task.function, TaskStatus.FAILED, None, error, trace)
            line = f"[signature 1: {_mac(key, message).hex()}]"
            signed = line if trace is None else f"{trace}\n{line}"
            return outcome.model_copy(update={"error": error, "traceback": signed})
        return outcome

    def open_result(self, result: Result[Any]) -> Result[Any]:
        """Return a result without its signature; nothing is decoded.

        Raises:
            SerializationError: it is not signed, was altered, or its key is not known.
        """
        status, value, trace = result.status, result.value, result.traceback
        if status is TaskStatus.SUCCESS and value is not None:
            if not value.startswith(_RESULT_HEAD) or len(value) < _VALUE_AT:
                raise SerializationError(f"task {result.task_id}: {_NOT_SIGNED}")
            found, value = value[len(_RESULT_HEAD) : _VALUE_AT], value[_VALUE_AT:]
        elif status is TaskStatus.FAILED and not is_stores_own(result):
            match = None if trace is None else _SEAL_LINE.fullmatch(trace)
            if match is None:
                raise SerializationError(f"task {result.task_id}: {_NOT_SIGNED}")
            found = bytes.fromhex(match["mac"])
            trace = None if match["trace"] is None else match["trace"].removesuffix("\n")
        else:
            if value is None and trace is None and (result.error is None or is_stores_own(result)):
                return result
            raise SerializationError(f"task {result.task_id}: {_NOT_SIGNED}")
        parts = (result.task_id, result.function, status, value, result.error, trace)
        message = _result_message(*parts)
        if not self._verifies(message, found):
            raise SerializationError(
                f"task {result.task_id}: bad signature: the result was altered, or signed with a "
                "key that is not known here"
            )
        return result.model_copy(update={"value": value, "traceback": trace})

    def _verifies(self, message: bytes, found: bytes) -> bool:
        return any(hmac.compare_digest(_mac(key, message), found) for key in self._keys)


def is_stores_own(result: Result[Any]) -> bool:
    """Return whether a store or a worker wrote this failure where there was no outcome to sign."""
    return (
        result.status is TaskStatus.FAILED
        and result.traceback is None
        and _STORES_OWN.fullmatch(result.error or "") is not None
    )


def is_signed(payload: bytes) -> bool:
    """Return whether a payload is a signed envelope, valid or not."""
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


def seal_outcome(serializer: Serializer, task: ReservedTask, outcome: Outcome) -> Outcome:
    """Return the outcome as it is to be stored: sealed, if its serializer does that."""
    method = getattr(serializer, "seal_outcome", None)
    sealed: Outcome = outcome if method is None else method(task, outcome)
    return sealed


def unseal_result(serializer: Serializer, result: Result[Any]) -> Result[Any]:
    """Return a stored result without its seal; a serializer that seals verifies it first.

    Raises:
        SerializationError: the seal is missing, broken, or of another result.
    """
    method = getattr(serializer, "unseal_result", None)
    if method is None or result.is_unsealed:
        return result
    unsealed: Result[Any] = method(result)
    return unsealed if unsealed is result else unsealed.as_unsealed()


def _checked(keys: Any) -> tuple[bytes, ...]:
    """Check the keys and return them; no error shows any part of a key."""
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
    """Return the message to sign; each part follows its length, so the split is unambiguous."""
    texts = (task.id, task.function, task.queue)
    parts = (_PURPOSE, head, *(text.encode("utf-8", "surrogatepass") for text in texts), payload)
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def _result_message(
    task_id: str,
    function: str,
    status: TaskStatus,
    value: bytes | None,
    error: str | None = None,
    trace: str | None = None,
) -> bytes:
    """Return the message to sign for a result; a part follows its length, ``None`` is a mark."""
    texts = (task_id, function, status.value, error, trace)
    encoded = [None if text is None else text.encode("utf-8", "surrogatepass") for text in texts]
    parts = [_RESULT_PURPOSE, value, *encoded]
    return b"".join(
        piece
        for part in parts
        for piece in ((b"-",) if part is None else (b"+", _LENGTH.pack(len(part)), part))
    )


def _storable(text: str | None) -> str | None:
    """Return a text as every store keeps it: PostgreSQL refuses the NUL character."""
    return None if text is None else text.replace("\0", "\\x00")


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, _DIGEST)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND
