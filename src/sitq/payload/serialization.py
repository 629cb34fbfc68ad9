"""The default serializer: msgpack, with extension types for Python's own value types.

There is no pickle: reading a payload never runs code that the payload names.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import msgpack
from msgpack.exceptions import ExtraData

from sitq.errors import SerializationError, ValidationError
from sitq.payload._extensions import CONTAINERS, DECODERS, ENCODERS, LEAVES
from sitq.payload._limits import DecodingBudget
from sitq.payload.signing import Signer, is_signed

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from sitq.models import Outcome, ReservedTask, Result, Task
    from sitq.protocols import Serializer

__all__ = ["MsgpackSerializer", "may_seal", "may_seal_results"]

_MAX_DEPTH: Final = 256
# A smaller payload cannot declare enough values to be worth a scan before decoding.
_SMALL: Final = 1024
# The values of a smaller payload cost too little to be counted.
_UNCOUNTED: Final = 4096
# The cost of containers and extensions beside their items, in values; and how many bytes of an
# extension, which are copied at each level, count as one more value.
_PER_LIST: Final = 3
_PER_MAP: Final = 6
_PER_PAIR: Final = 3
_PER_EXTENSION: Final = 12
_BYTES_PER_VALUE: Final = 64
# A time zone is read from a file at its first use.
_PER_ZONE: Final = 400
_INITIAL_BUFFER: Final = 512
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
            data = _pack(value)
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
            _CountingReader(self._max_depth, self._max_values).read(data)
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
            value = self._reader(size).read(data)
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

    def _reader(self, size: int) -> _PayloadReader:
        if size <= _UNCOUNTED:
            return _PayloadReader(self._max_depth)
        return _CountingReader(self._max_depth, self._max_values)

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
                    raise SerializationError(_cannot_carry(kind))
                if item:
                    children = _children(item)
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


def may_seal(serializer: Serializer) -> bool:
    """Return whether a serializer may change a task's payload; an unknown class may."""
    if type(serializer) is MsgpackSerializer:
        return serializer._signer is not None  # noqa: SLF001 - its own module
    return getattr(serializer, "seal", None) is not None


def may_seal_results(serializer: Serializer) -> bool:
    """Return whether a serializer may change outcomes; an unknown class may."""
    if type(serializer) is MsgpackSerializer:
        return serializer._signer is not None  # noqa: SLF001 - its own module
    return getattr(serializer, "seal_outcome", None) is not None


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


def _children(container: Any) -> list[object]:
    if type(container) is dict:
        return [*chain(container, container.values())]
    return container if type(container) is list else [*container]


def _cannot_carry(kind: type) -> str:
    text = f"a value of type {kind.__qualname__} cannot be stored"
    if kind in {bytearray, memoryview}:
        return f"{text}; pass bytes"
    return f"{text}; annotate it with its type, or give plain values"


def _pack(value: object) -> bytes:
    # A new packer each time: it holds a buffer, and threads must not share it.
    return msgpack.Packer(
        default=_extension, strict_types=True, use_bin_type=True, buf_size=_INITIAL_BUFFER
    ).pack(value)


def _extension(value: Any) -> msgpack.ExtType:
    known = ENCODERS.get(type(value))
    if type(value) is int:  # msgpack asks here too about ints that do not fit
        raise OverflowError
    if known is None:
        raise SerializationError(_cannot_carry(type(value)))
    code, write = known
    return msgpack.ExtType(code, write(value, _pack))


def _mapping(pairs: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SerializationError("malformed payload: a map holds a key twice")
    return found


class _PayloadReader:
    """Reads one payload, and limits how deeply extensions are nested."""

    __slots__ = ("_left",)

    def __init__(self, max_depth: int) -> None:
        self._left = max_depth

    def read(self, data: bytes) -> Any:
        if len(data) > _SMALL:
            # A few bytes can declare a list of millions, which msgpack would allocate at once.
            # Skipping over the payload detects that without building anything.
            scanner = msgpack.Unpacker(max_buffer_size=len(data))
            scanner.feed(data)
            scanner.skip()
        return self._unpack(data)

    def _unpack(self, data: bytes) -> Any:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            ext_hook=self._extension,
            object_pairs_hook=_mapping,
        )

    def _extension(self, code: int, body: bytes) -> Any:
        read = DECODERS.get(code)
        if read is None:
            raise SerializationError(f"malformed payload: unknown extension type {code}")
        if not self._left:
            raise SerializationError("a payload is nested too deeply")
        self._left -= 1
        value = read(body, self)
        self._left += 1
        return value

    def check_zone(self, key: str) -> None:
        """See `sitq.payload._extensions.Source`; so small a payload needs no check."""

    def check_keys(self, keys: Sequence[Any]) -> None:
        """See `sitq.payload._extensions.Source`; so small a payload needs no check."""


class _CountingReader(_PayloadReader):
    """Reads a payload that is large enough to be expensive, and counts its values."""

    __slots__ = ("_budget", "_zones")

    def __init__(self, max_depth: int, max_values: int) -> None:
        super().__init__(max_depth)
        self._budget = DecodingBudget(max_values)
        self._zones: set[str] = set()

    def _unpack(self, data: bytes) -> Any:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            ext_hook=self._extension,
            object_pairs_hook=self._mapping,
            list_hook=self._list,
        )

    def _list(self, items: list[Any]) -> list[Any]:
        self._budget.take(_PER_LIST + len(items))
        return items

    def _mapping(self, pairs: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
        self._budget.take(_PER_MAP + _PER_PAIR * len(pairs))
        self._budget.take_keys([key for key, _ in pairs], dict)
        return _mapping(pairs)

    def check_zone(self, key: str) -> None:
        """See `sitq.payload._extensions.Source`."""
        if key not in self._zones:
            self._zones.add(key)
            self._budget.take(_PER_ZONE)

    def check_keys(self, keys: Sequence[Any]) -> None:
        """See `sitq.payload._extensions.Source`."""
        self._budget.take_keys(keys, set)

    def _extension(self, code: int, body: bytes) -> Any:
        self._budget.take(_PER_EXTENSION + len(body) // _BYTES_PER_VALUE)
        return super()._extension(code, body)
