"""A log call never raises: filters, handlers and the errors that they show are the user's code."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from sitq._logging import Log

NAME = "sitq.tests.logging"


class Broken:
    """A filter and a handler that raise."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError(f"filter of {record.name}")


class BrokenHandler(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise RuntimeError(f"handler of {record.name}")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger(NAME)
    yield logger
    logger.filters.clear()
    logger.handlers.clear()
    logger.propagate = True


@pytest.mark.parametrize("where", ["filter", "handler"])
def test_what_a_filter_or_a_handler_raises_is_shown_once(
    where: str, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "filter":
        logger.addFilter(Broken())
    else:
        logger.addHandler(BrokenHandler())
    log = Log(NAME)
    for _ in range(3):
        log.warning("%s", "a fact")
    shown = capsys.readouterr().err
    assert shown.count(f"RuntimeError: {where} of {NAME}") == 1


def test_nothing_is_shown_where_the_program_wants_to_hear_nothing(
    logger: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.addFilter(Broken())
    Log(NAME).error("a fact")
    assert not capsys.readouterr().err


def test_the_record_names_the_caller_and_has_the_error(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("text")
    Log(NAME).error("%d facts", 2, error=error, extra={"task_id": "t"})
    (record,) = caplog.records
    assert (record.getMessage(), record.funcName) == (
        "2 facts",
        "test_the_record_names_the_caller_and_has_the_error",
    )
    assert record.exc_info == (ValueError, error, None)
    assert vars(record)["task_id"] == "t"


class Recording(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _bite(_: object) -> Any:
    raise RuntimeError("bitten")


def test_no_code_of_an_errors_class_runs(logger: logging.Logger) -> None:
    kind = type(
        "Biting", (Exception,), dict.fromkeys(("__traceback__", "__class__"), property(_bite))
    )
    handler = Recording()
    logger.addHandler(handler)
    logger.propagate = False
    Log(NAME).warning("a fact", error=kind())
    assert [record.exc_info and record.exc_info[0] for record in handler.records] == [kind]


class SignallingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        assert record.name == NAME
        signal.raise_signal(signal.SIGTERM)


def test_what_a_signal_handler_raises_meanwhile_ends_the_process(logger: logging.Logger) -> None:
    def on_term(number: int, frame: FrameType | None) -> None:
        sys.exit(5)

    logger.addHandler(SignallingHandler())
    before = signal.signal(signal.SIGTERM, on_term)
    try:
        with pytest.raises(SystemExit):
            Log(NAME).warning("a fact")
    finally:
        signal.signal(signal.SIGTERM, before)
