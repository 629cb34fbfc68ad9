"""Every error that sitq raises, under one root.

SitqError
├── ValidationError            also a ValueError: an argument, option or value was refused
├── SerializationError         a payload that cannot be written or read
├── UsageError                 a call that does not fit the state: two loops, closed, forked
├── TaskNotFoundError          also a LookupError: the store does not know the task id
├── TaskFailedError            the result of a task that did not succeed was asked for
├── LeaseLostError             an outcome came too late: another attempt is the current one
└── BackendError               the store could not do its work
    ├── BackendConnectionError     it cannot be opened, or has gone away
    │   └── UnknownOutcomeError        the work may be done: its confirmation did not come
    ├── BackendBusyError           another process held it for too long
    ├── BackendFullError           no room is left, or it is read-only
    ├── BackendValueError          it can never keep one of the values
    └── BackendFormatError         the file is newer, foreign, truncated or not a database
"""

from __future__ import annotations

__all__ = [
    "BackendBusyError",
    "BackendConnectionError",
    "BackendError",
    "BackendFormatError",
    "BackendFullError",
    "BackendValueError",
    "LeaseLostError",
    "SerializationError",
    "SitqError",
    "TaskFailedError",
    "TaskNotFoundError",
    "UnknownOutcomeError",
    "UsageError",
    "ValidationError",
]


class SitqError(Exception):
    """The root of all errors that sitq raises on purpose."""


class ValidationError(SitqError, ValueError):
    """An argument, an option or a value was refused; nothing was stored.

    The text names the parameter, the type of what was given and what to do.
    """


class SerializationError(SitqError):
    """A value could not be turned into a payload, or a payload into a value."""


class UsageError(SitqError):
    """A call that does not fit the state of the object; the text names a call that does."""


class TaskNotFoundError(SitqError, LookupError):
    """The store does not know the task id: it never did, or the task has been pruned."""


class TaskFailedError(SitqError):
    """The value of a task was asked for that ended without one.

    The text carries the task's error and, where there is one, its traceback.
    """


class LeaseLostError(SitqError):
    """The attempt's lease has ended or was taken over; what it reported changed nothing."""


class BackendError(SitqError):
    """The store could not carry out an operation; the text names it and the cause."""


class BackendConnectionError(BackendError):
    """The store could not be opened, or is gone."""


class UnknownOutcomeError(BackendConnectionError):
    """The store may have carried out the operation or not: its confirmation did not come.

    After an `enqueue` the task may be stored, and a second call may store a second task. With a
    ``unique_key`` a second call is safe while the first task is not final.
    """


class BackendBusyError(BackendError):
    """The store stayed locked by another process or connection for longer than sitq waits."""


class BackendFullError(BackendError):
    """The store cannot take more: the disk is full, or the file is read-only."""


class BackendValueError(BackendError):
    """The store can never keep one of the values: another try would not help.

    A text is too long, for example, or has characters that the store's encoding lacks. Nothing was
    stored. A worker whose store refuses an outcome so ends the attempt with a plain error instead.
    """


class BackendFormatError(BackendError):
    """The file is not a sitq store that this version can use; it was left as it was."""
