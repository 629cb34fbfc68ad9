"""The public surface is written down here, and importing it is cheap."""

from __future__ import annotations

import builtins
import importlib
import inspect
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import sitq
from sitq import extensions
from sitq.backends.memory import MemoryBackend
from sitq.backends.postgres import PostgresBackend
from sitq.testing import FakeClock, FaultyBackend

NAMES = [
    "Admin",
    "Backend",
    "BackendBusyError",
    "BackendConnectionError",
    "BackendError",
    "BackendFormatError",
    "BackendFullError",
    "BackendValueError",
    "BoundQueue",
    "Call",
    "Clock",
    "Extension",
    "Fail",
    "LeaseLostError",
    "MsgpackSerializer",
    "Progress",
    "QueueClient",
    "ReservedTask",
    "Result",
    "Retry",
    "RetryPolicy",
    "SQLiteBackend",
    "SerializationError",
    "Serializer",
    "ResultSigningSerializer",
    "SigningSerializer",
    "SitqError",
    "SyncAdmin",
    "SyncBoundQueue",
    "SyncQueueClient",
    "SyncTaskQueue",
    "Task",
    "TaskContext",
    "TaskFailedError",
    "TaskFilter",
    "TaskId",
    "TaskInfo",
    "TaskNotFoundError",
    "TaskQueue",
    "TaskStatus",
    "TransactionQueue",
    "TransactionalBackend",
    "UnknownOutcomeError",
    "UsageError",
    "ValidationError",
    "Worker",
    "call",
    "connect",
    "current_task",
    "shared",
    "task",
]

ROOT = Path(sitq.__file__).parent
# Found without importing them: what a module does when it is first used is its own affair.
MODULES = sorted(
    ".".join(("sitq", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.stem != "__main__"
)


def place(name: str) -> tuple[int, str]:
    """Constants first, then classes, then functions: as the formatter sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_the_public_names_are_these_and_sorted() -> None:
    assert sitq.__all__ == sorted(NAMES)


def test_there_are_no_other_public_names_but_the_modules() -> None:
    modules = {name.split(".")[1] for name in MODULES if "." in name}
    public = {name for name in dir(sitq) if not name.startswith("_")} - {"TYPE_CHECKING"}
    # `task` and `call` are functions, and no module may hide them.
    assert public - modules == set(NAMES)
    assert modules.isdisjoint(NAMES)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for_and_has_a_sorted_all(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert list(module.__all__) == sorted(module.__all__, key=place)
    assert all(hasattr(module, public) for public in module.__all__)


def test_every_error_has_the_root_and_hides_no_builtin() -> None:
    for name in sitq.__all__:
        member = getattr(sitq, name)
        if (
            isinstance(member, type)
            and issubclass(member, Exception)
            and name not in {"Fail", "Retry"}
        ):
            assert issubclass(member, sitq.SitqError)
            assert not hasattr(builtins, name)


def test_every_public_name_leads_to_something_of_its_own_name() -> None:
    for name in sitq.__all__:
        assert getattr(getattr(sitq, name), "__name__", name) == name
    with pytest.raises(AttributeError, match="'sitq' has no attribute 'enqueue'"):
        getattr(sitq, "enqueue")  # noqa: B009 - type checkers know that it is not there


def test_the_version_is_that_of_the_installed_package() -> None:
    assert sitq.__version__ == metadata.version("sitq")
    assert "__version__" in dir(sitq)


def test_the_version_is_read_when_it_is_asked_for_and_a_bare_tree_has_none(tmp_path: Path) -> None:
    (tmp_path / "sitq").symlink_to(ROOT)
    program = (
        "import sys, sitq; assert 'importlib.metadata' not in sys.modules; "
        "sys.path[:] = [path for path in sys.path if 'site-packages' not in path]; "
        "assert sitq.__version__ == '0+unknown', sitq.__version__"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-S", "-W", "error", "-c", program]
    subprocess.run(command, check=True, timeout=30, env=env)


def test_marking_functions_loads_neither_the_store_nor_the_worker() -> None:
    program = (
        "import sys; from sitq import task; "
        "heavy = {'asyncio', 'sqlite3', 'sitq.worker'} & set(sys.modules); assert not heavy, heavy"
    )
    # Measuring the coverage of the program would load them.
    env = {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE")}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=30, env=env)


def test_importing_sitq_needs_no_extra_and_starts_no_loop() -> None:
    program = (
        "import sys, threading; from sitq import *; "
        "extras = {'trio', 'asyncpg', 'psycopg', 'sqlalchemy'}; "
        "heavy = {*extras, 'pytest', 'hypothesis', 'sitq.testing'} & set(sys.modules); "
        "assert not heavy, heavy; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=30)


@pytest.mark.parametrize(
    "made",
    [
        FakeClock,
        FaultyBackend,
        MemoryBackend,
        PostgresBackend,
        *extensions.Event.__args__,
        sitq.Fail,
        sitq.MsgpackSerializer,
        sitq.Progress,
        sitq.ReservedTask,
        sitq.Result,
        sitq.Retry,
        sitq.RetryPolicy,
        sitq.SQLiteBackend,
        sitq.SyncTaskQueue,
        sitq.Task,
        sitq.TaskInfo,
        sitq.TaskQueue,
        sitq.Worker,
    ],
)
def test_help_shows_a_signature_and_what_each_parameter_is(made: type) -> None:
    parameters = list(inspect.signature(made).parameters)
    documented = re.findall(r"^    (\w+): ", inspect.getdoc(made) or "", re.MULTILINE)
    assert parameters
    assert "args" not in parameters
    assert "kwargs" not in parameters
    assert set(parameters) <= set(documented)
