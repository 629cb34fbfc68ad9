"""The backend that is not sitq's passes the checks, is found by its URL, and serves a worker."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import anyio
import pytest

import sitq
from sitq import TaskQueue, Worker
from tests.unit.queue_support import add

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_backend"


@pytest.mark.timeout(180)
def test_it_passes_the_checks_under_plain_pytest(tmp_path: Path) -> None:
    """In a folder of its own, with no settings of this project's."""
    path = os.pathsep.join(filter(None, [str(EXAMPLE), os.environ.get("PYTHONPATH", "")]))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "-W",
        "error",
    ]
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, "-c", os.devnull, EXAMPLE / "test_jsonfile.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as pip would install it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "sitq_jsonfile-1.0.dist-info"
    info.mkdir()
    lines = [f"{key}: {project[key.lower()]}" for key in ("Name", "Version")]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
    entries = project["entry-points"]["sitq.backends"].items()
    (info / "entry_points.txt").write_text(
        "\n".join(["[sitq.backends]", *(f"{name} = {value}" for name, value in entries), ""])
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLE)


@pytest.mark.anyio
@pytest.mark.usefixtures("installed")
async def test_a_url_finds_it_and_a_worker_is_woken_over_it(tmp_path: Path) -> None:
    url = f"jsonfile:{tmp_path / 'tasks.json'}"
    worker = Worker(sitq.connect(url), poll_interval=3600)
    async with TaskQueue(sitq.connect(url)) as queue:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                await group.start(worker.start)
                await anyio.wait_all_tasks_blocked()
                task_id = await queue.enqueue(add, 1, 2)
                result = await queue.get_result(task_id)
                assert result is not None
                assert queue.deserialize_result(result) == 3
                await worker.stop()
