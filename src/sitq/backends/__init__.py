"""The stores that sitq brings along."""

__all__: list[str] = []
