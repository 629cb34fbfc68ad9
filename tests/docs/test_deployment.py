"""The files of the page on deployment start a worker, and end it as a worker wants to be ended."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import sitq
from sitq.worker import _worker_run
from tests.docs.pages import ROOT, blocks, write

PAGE = ROOT / "docs" / "how-to" / "deployment.md"
FILES = {block.title: block.text for block in blocks(PAGE) if block.title}
UNIT, DOCKERFILE, MANIFESTS = (
    FILES[name] for name in ("sitq-worker@.service", "Dockerfile", "sitq.yaml")
)
COMMANDS = "\n".join(block.text for block in blocks(PAGE) if block.language == "bash")


def setting(name: str) -> str:
    """Return a setting of the unit."""
    (value,) = re.findall(rf"(?m)^{name}=(.+)$", UNIT)
    return str(value)


def instructions(name: str) -> list[str]:
    """Return the arguments of an instruction of the Dockerfile."""
    return re.findall(rf"(?m)^{name} (.+)$", DOCKERFILE)


def longest_end() -> float:
    """Return the seconds that a worker with default options may take to end."""
    options = inspect.signature(sitq.Worker).parameters
    own = options["shutdown_timeout"].default + options["cancel_grace"].default
    return float(own + _worker_run._LAST_WRITES + _worker_run._CLEANUP_SECONDS)


def test_each_supervisor_waits_for_longer_than_a_worker_takes_to_end() -> None:
    given = [
        setting("TimeoutStopSec"),
        *re.findall(r"--stop-timeout (\d+)", COMMANDS),
        *re.findall(r"terminationGracePeriodSeconds: (\d+)", MANIFESTS),
    ]
    assert len(given) == 3
    assert all(float(seconds) > longest_end() for seconds in given)
    assert f"{longest_end():g} seconds at most" in PAGE.read_text()


def test_each_supervisor_sends_the_signal_that_a_worker_handles() -> None:
    assert setting("KillSignal") == "SIGTERM"
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert setting("KillMode") == "mixed"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "sitq-worker@1.service"
    # Neither the program nor the user is here.
    path.write_text(
        UNIT.replace("/srv/app/.venv/bin/python", "/bin/true").replace("=app\n", "=root\n")
    )
    command = ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "command",
    [setting("ExecStart").split(), *map(json.loads, instructions("CMD"))],
    ids=["systemd", "docker"],
)
def test_the_command_is_a_worker_that_finishes_its_task_after_the_signal(
    command: list[str], tmp_path: Path
) -> None:
    write(PAGE, tmp_path)
    program, *arguments = command
    assert Path(program).name == "python"
    for pipe in ("started", "go"):
        os.mkfifo(tmp_path / pipe)
    (tmp_path / "jobs.py").write_text(
        "from pathlib import Path\n\n\ndef render(page: int) -> str:\n"
        "    Path('started').write_text('')\n"
        "    return f'page {page}{Path(\"go\").read_text()}'\n"
    )
    env = {**os.environ, "SITQ_URL": f"sqlite:///{tmp_path / 'tasks.db'}"}
    worker = subprocess.Popen(
        [sys.executable, *arguments], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    client = subprocess.Popen(
        [sys.executable, "client.py"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        (tmp_path / "started").read_text()  # waits until the task has it open
        worker.send_signal(getattr(signal, setting("KillSignal")))
        assert worker.stderr is not None
        for line in worker.stderr:
            if "lets running tasks finish" in line:
                break
        (tmp_path / "go").write_text("")
        assert client.communicate(timeout=30)[0] == "page 7\n"
        worker.communicate(timeout=30)
        assert worker.returncode == 0
    finally:
        for process in (worker, client):
            process.kill()
            process.communicate()


def test_the_image_has_what_it_copies_and_installs() -> None:
    copied = {name for line in instructions("COPY") for name in line.split()[:-1]}
    assert copied == {"sitq", "jobs.py", "worker.py"}
    assert {"jobs.py", "worker.py"} <= set(FILES)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "/src/sitq[postgres]" in " ".join(instructions("RUN"))
    assert "postgres" in project["optional-dependencies"]


@pytest.mark.parametrize("command", instructions("RUN"))
def test_the_commands_of_the_image_are_well_formed(command: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_folder_of_the_image_is_fit_for_a_store(tmp_path: Path) -> None:
    """The command that makes it runs here, with another owner and place."""
    (line,) = [line for line in instructions("RUN") if "install -d" in line]
    command = re.sub(r"-o app -g app ", "", line.partition("&& ")[2])
    folder = tmp_path / "app"
    command = command.replace("/var/lib/app", str(folder))
    subprocess.run(["bash", "-euc", command], check=True)
    with sitq.SyncTaskQueue(sitq.SQLiteBackend(folder / "tasks.db")) as queue:
        assert queue.prune(older_than=0) == 0
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_query_that_watches_the_queues_runs(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with sitq.SyncTaskQueue(sitq.SQLiteBackend(path)) as queue:
        queue.options(eta=datetime.now(UTC) - timedelta(minutes=1)).enqueue(print, "due")
        queue.options(delay=60).enqueue(print, "later")
    (query,) = [block.text for block in blocks(PAGE) if block.language == "sql"]
    with closing(sqlite3.connect(path)) as database:
        ((name, due, oldest),) = database.execute(query).fetchall()
    assert (name, due) == ("default", 1)
    assert oldest > 0
