"""The part of msgpack that sitq uses."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from msgpack import exceptions as exceptions

class ExtType(NamedTuple):
    code: int
    data: bytes

class Packer:
    def __init__(
        self,
        *,
        default: Callable[[Any], Any] | None = None,
        use_bin_type: bool = True,
        strict_types: bool = False,
        buf_size: int = ...,
    ) -> None: ...
    def pack(self, obj: object) -> bytes: ...

class Unpacker:
    def __init__(self, *, max_buffer_size: int = ...) -> None: ...
    def feed(self, next_bytes: bytes) -> None: ...
    def skip(self) -> None: ...
    def tell(self) -> int: ...

def packb(
    o: object,
    *,
    default: Callable[[Any], Any] | None = None,
    use_bin_type: bool = True,
    strict_types: bool = False,
) -> bytes: ...
def unpackb(
    packed: bytes,
    *,
    raw: bool = False,
    strict_map_key: bool = True,
    ext_hook: Callable[[int, bytes], Any] = ...,
    object_pairs_hook: Callable[[list[tuple[Hashable, Any]]], Any] | None = None,
    list_hook: Callable[[list[Any]], Any] | None = ...,
) -> Any: ...
