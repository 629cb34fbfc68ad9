"""What a task carries: names and functions, annotations and values, msgpack, signatures."""

__all__: list[str] = []
