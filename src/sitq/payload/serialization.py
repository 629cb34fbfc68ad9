"""The default serializer: msgpack, with extension types for Python's own value types.

There is no pickle: reading a payload never runs code that the payload names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgpack.exceptions import ExtraData

from sitq.errors import SerializationError, ValidationError
from sitq.payload._msgpack import CONTAINERS, LEAVES, Reader, cannot_store, items_of, pack
from sitq.payload.signing import Signer, is_signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sitq.models import Outcome, ReservedTask, Result, Task
    from sitq.protocols import Serializer

__all__ = ["MsgpackSerializer", "may_seal"]

_MAX_DEPTH: Final = 256
# The values of a smaller payload cost too little to be counted.
_UNCOUNTED: Final = 4096
_FLAT: Final = 2


class MsgpackSerializer:
    """Plain values as msgpack; see `sitq.protocols.Serializer` for what is plain.

    Args:
        max_bytes: the longest payload, in bytes.
        max_depth: how many containers may lie within each other (1 to 256). The arguments of a
            task travel as two: a list or dict of arguments, in a list.
        max_values: how many values a payload of more than 4 KiB may hold, counted so that
            decoding any payload takes a few hundredths of a second at most. A number, text or
            ``None`` counts 1, a list 3, a dict 6, an entry of it 1 more, and a value of any other
            type 12, beside the items that each holds.
        keys: sign the payloads of tasks, and their results; see `sitq.payload.signing.Signer`.

    Raises:
        ValidationError: a limit is out of its range, or a key is refused.
    """

    __slots__ = ("_max_bytes", "_max_depth", "_max_values", "_signer")

    def __init__(
        self,
        *,
        max_bytes: int = 1_048_576,
        max_depth: int = 64,
        max_values: int = 131_072,
        keys: Sequence[bytes] | None = None,
    ) -> None:
        if type(max_bytes) is not int or max_bytes < 1:
            raise ValidationError("max_bytes: must be an int of 1 or more")
        if type(max_depth) is not int or not 1 <= max_depth <= _MAX_DEPTH:
            raise ValidationError(f"max_depth: must be an int from 1 to {_MAX_DEPTH}")
        if type(max_values) is not int or max_values < 1:
            raise ValidationError("max_values: must be an int of 1 or more")
        self._max_bytes = max_bytes
        self._max_depth = max_depth
        self._max_values = max_values
        self._signer = None if keys is None else Signer(keys)

    def __repr__(self) -> str:
        limits = f"max_bytes={self._max_bytes}, max_depth={self._max_depth}"
        return f"MsgpackSerializer({limits}{', keys=...' if self._signer else ''})"

    def seal(self, task: Task) -> Task:
        """Sign the task's payload, if there are keys."""
        if self._signer is None:
            return task
        return task.model_copy(update={"payload": self._signer.sign(task)})

    def unseal(self, task: Task | ReservedTask) -> bytes:
        """Return the task's payload, its signature verified if there are keys.

        Raises:
            SerializationError: with keys: the task is not signed, was altered, or its key is not
                known. Without: it is signed.
        """
        if self._signer is not None:
            return self._signer.open(task)
        if is_signed(task.payload):
            raise SerializationError(
                "the task has a signature, and there are no keys to verify it; "
                "use MsgpackSerializer(keys=[...])"
            )
        return task.payload

    def seal_outcome(self, task: ReservedTask, outcome: Outcome) -> Outcome:
        """Sign how an attempt ended, if there are keys."""
        return outcome if self._signer is None else self._signer.sign_outcome(task, outcome)

    def unseal_result(self, result: Result[Any]) -> Result[Any]:
        """Return the result without its signature, verified if there are keys.

        Raises:
            SerializationError: with keys: the result is not signed, was altered, or its key is not
                known. Without: it is signed.
        """
        if self._signer is not None:
            return self._signer.open_result(result)
        if result.value is not None and is_signed(result.value):
            raise SerializationError(
                f"task {result.task_id}: the result has a signature, and there are no keys to "
                "verify it; use MsgpackSerializer(keys=[...])"
            )
        return result

    def dumps(self, value: Any) -> bytes:
        """Encode a plain value.

        Raises:
            SerializationError: the value cannot be stored, is nested too deeply, or is too large.
        """
        if not _is_flat(value) or self._max_depth < _FLAT:
            self._inspect(value)
        try:
            data = pack(value)
        except OverflowError:
            raise SerializationError(
                "an int does not fit into 64 bits; pass it as a str or a Decimal"
            ) from None
        except UnicodeEncodeError:
            raise SerializationError(
                "a str holds surrogates, which UTF-8 cannot carry; pass bytes"
            ) from None
        except (ValueError, MemoryError):
            raise SerializationError("a value is too large for msgpack") from None
        if len(data) > self._max_bytes:
            raise SerializationError(
                f"the payload is {len(data)} bytes long, over the limit of "
                f"{self._max_bytes} bytes; store the data elsewhere and pass where it is"
            )
        if len(data) > _UNCOUNTED:
            # The reader has the same limits, so what is stored can be read.
            Reader(self._max_depth, self._max_values).read(data)
        return data

    def loads(self, data: bytes) -> Any:
        """Decode what ``dumps`` made.

        Raises:
            SerializationError: whatever is wrong with ``data``; never anything else.
        """
        if type(data) is not bytes:
            raise SerializationError(f"a payload is bytes, not {type(data).__name__}")
        size = len(data)
        if size > self._max_bytes:
            raise SerializationError(
                f"the payload is {size} bytes long, over the limit of {self._max_bytes} bytes"
            )
        try:
            max_values = None if size <= _UNCOUNTED else self._max_values
            value = Reader(self._max_depth, max_values).read(data)
        except SerializationError:
            raise
        except ExtraData:
            raise SerializationError("malformed payload: bytes follow its end") from None
        except Exception as error:  # noqa: BLE001 - whatever hostile bytes set off is one error
            raise SerializationError(f"malformed payload ({type(error).__name__})") from None
        # Each level takes a byte at least, and msgpack's own timestamp has the code 0xff.
        if size > self._max_depth or b"\xff" in data:
            self._inspect(value)
        return value

    def _inspect(self, value: object) -> None:
        """Refuse values that are not plain or too deep; level by level, without recursion."""
        level = [value]
        for _ in range(self._max_depth):
            inner: list[object] = []
            for item in level:
                kind = type(item)
                if kind in LEAVES:
                    continue
                if kind not in CONTAINERS:
                    raise cannot_store(kind)
                if item:
                    children = items_of(item)
                    if not LEAVES.issuperset(map(type, children)):
                        inner += [child for child in children if type(child) not in LEAVES]
            if not inner:
                return
            # Each takes a byte at least; a value that refers to itself twice over would explode.
            if len(inner) > self._max_bytes:
                raise SerializationError(
                    f"the payload is over the limit of {self._max_bytes} bytes"
                )
            level = inner
        raise SerializationError(
            f"a value is nested more than {self._max_depth} levels deep, or holds itself"
        )


def may_seal(serializer: Serializer, method: str = "seal") -> bool:
    """Return whether a serializer may change tasks, or outcomes with ``seal_outcome``.

    A class that is not known here may.
    """
    if type(serializer) is MsgpackSerializer:
        return serializer._signer is not None  # noqa: SLF001 - its own module
    return getattr(serializer, method, None) is not None


def _is_flat(value: Any) -> bool:
    """Return whether a value is a list of leaves and of lists of leaves, as most arguments are."""
    if type(value) is not list:
        return type(value) in LEAVES
    for item in value:
        kind = type(item)
        if kind is list:
            if item and not LEAVES.issuperset(map(type, item)):
                return False
        elif kind not in LEAVES and (kind is not dict or item):
            return False
    return True
