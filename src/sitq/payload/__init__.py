"""A task's function and arguments in stored form: names, values, msgpack and signatures."""

__all__: list[str] = []
