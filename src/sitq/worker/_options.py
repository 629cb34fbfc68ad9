"""A worker's settings, validated."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sitq._validation import PositiveSeconds, Seconds, ServedQueue
from sitq.models import RetryPolicy

__all__ = ["WorkerOptions"]


class WorkerOptions(BaseModel):
    """See `sitq.Worker`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", defer_build=True)

    queues: tuple[ServedQueue, ...]
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)]
    poll_interval: PositiveSeconds
    lease: Annotated[PositiveSeconds, Field(ge=0.1)]
    shutdown_timeout: Seconds
    cancel_grace: Seconds
    retry: RetryPolicy | None
    max_crashes: Annotated[int, Field(ge=1, le=1000)]
