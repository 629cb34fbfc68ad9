"""A web service that answers at once and works in the background, in one process.

python fastapi_app.py                  serves on port 8000
SITQ_DATABASE=/path/tasks.db           names the file (default: tasks.db)
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict, cast

import anyio
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from sitq import (
    SerializationError,
    SQLiteBackend,
    TaskId,
    TaskNotFoundError,
    TaskQueue,
    TaskStatus,
    ValidationError,
    Worker,
)

__all__ = ["Report", "ReportRequest", "app", "write_report"]


class ReportRequest(BaseModel):
    """What a client asks for; it travels to the worker as it is."""

    title: str
    numbers: list[int]


class Report(BaseModel):
    """What the worker makes of it."""

    title: str
    total: int


class Accepted(BaseModel):
    """The answer to a request for work: come back with this id."""

    task_id: str


class State(BaseModel):
    """How far the work is."""

    status: TaskStatus
    report: Report | None = None
    error: str | None = None


async def write_report(request: ReportRequest) -> Report:
    """Do the slow part, in the background."""
    await anyio.sleep(0.01)
    if not request.numbers:
        message = "a report needs numbers"
        raise ValueError(message)
    return Report(title=request.title, total=sum(request.numbers))


class _Lifespan(TypedDict):
    queue: TaskQueue


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[_Lifespan, None]:
    """Run a worker beside the service; a shutdown lets running tasks finish."""
    backend = SQLiteBackend(os.environ.get("SITQ_DATABASE", "tasks.db"))
    async with TaskQueue(backend) as queue, Worker(backend, tasks=[write_report]):
        yield {"queue": queue}


def get_queue(request: Request) -> TaskQueue:
    """Give the endpoints the queue that the lifespan opened."""
    return cast("TaskQueue", request.state.queue)


Queue = Annotated[TaskQueue, Depends(get_queue)]
app = FastAPI(lifespan=lifespan)


@app.exception_handler(ValidationError)
@app.exception_handler(SerializationError)
async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Answer 422 to what cannot be enqueued, such as a text that is too long."""
    return JSONResponse({"detail": str(error)}, status_code=422)


@app.post("/reports", status_code=202)
async def order_report(request: ReportRequest, queue: Queue) -> Accepted:
    """Take the order; once this returns, a crash does not lose it."""
    return Accepted(task_id=await queue.enqueue(write_report, request))


@app.get("/reports/{task_id}")
async def read_report(
    task_id: str, queue: Queue, wait: Annotated[float, Query(ge=0, le=10)] = 0
) -> State:
    """Return the state of the report; wait up to ``wait`` seconds for its end."""
    typed = TaskId[Report](task_id)
    try:
        result = await queue.get_result(typed, timeout=wait)
        if result is None:
            return State(status=(await queue.get_task(typed)).status)
    except TaskNotFoundError as error:
        raise HTTPException(404, "no such report") from error
    if result.status is not TaskStatus.SUCCESS:
        return State(status=result.status, error=result.error)
    return State(status=result.status, report=queue.deserialize_result(result))


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
