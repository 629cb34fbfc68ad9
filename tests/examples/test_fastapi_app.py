"""The FastAPI example serves over HTTP, works in the background and stops cleanly."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

APP = Path(__file__).parents[2] / "examples" / "fastapi_app.py"


class Service:
    """The example in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "tasks.db"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(APP)],
            cwd=folder,
            env={**os.environ, "PORT": "0", "SITQ_DATABASE": str(self.database)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stderr is not None
        self.log = ""
        self.address = ""
        for line in self.process.stderr:
            self.log += line
            if found := re.search(r"running on (http://\S+)", line):
                self.address = found[1]
                break
        assert self.address, self.log

    def stop(self) -> str:
        """Ask the service to stop; return all that it logged."""
        self.process.send_signal(signal.SIGTERM)
        _, rest = self.process.communicate(timeout=30)
        return self.log + rest


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.communicate()


def test_a_report_is_ordered_written_and_read_over_http(service: Service) -> None:
    with httpx.Client(base_url=service.address, timeout=30) as client:
        order = client.post("/reports", json={"title": "Q1", "numbers": [1, 2, 39]})
        assert order.status_code == 202
        report = client.get(f"/reports/{order.json()['task_id']}", params={"wait": 10})
    assert report.json() == {
        "status": "success",
        "report": {"title": "Q1", "total": 42},
        "error": None,
    }


def test_a_report_that_fails_says_why(service: Service) -> None:
    with httpx.Client(base_url=service.address, timeout=30) as client:
        order = client.post("/reports", json={"title": "Q2", "numbers": []})
        state = client.get(f"/reports/{order.json()['task_id']}", params={"wait": 10}).json()
    assert state["status"] == "failed"
    assert state["error"] == "ValueError: a report needs numbers"


@pytest.mark.parametrize("numbers", [[10**25], [0] * 1_100_000])
def test_an_order_that_cannot_be_stored_is_refused(service: Service, numbers: list[int]) -> None:
    url = f"{service.address}/reports"
    order = httpx.post(url, json={"title": "Q3", "numbers": numbers}, timeout=30)
    assert order.status_code == 422
    assert "request" in order.json()["detail"]
    assert "Traceback" not in service.stop()


def test_an_unknown_report_is_not_found(service: Service) -> None:
    assert httpx.get(f"{service.address}/reports/nothing", timeout=30).status_code == 404


def test_the_service_stops_cleanly_with_every_accepted_task_in_its_file(service: Service) -> None:
    for number in range(20):
        request = {"title": "many", "numbers": [number]}
        assert httpx.post(f"{service.address}/reports", json=request, timeout=30).status_code == 202
    log = service.stop()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
    with closing(sqlite3.connect(service.database)) as database:
        rows = dict(database.execute("SELECT status, count(*) FROM tasks GROUP BY status"))
    assert sum(rows.values()) == 20
    assert set(rows) <= {"pending", "success"}
