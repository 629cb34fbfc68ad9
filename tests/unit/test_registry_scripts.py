"""The names of functions that are in no module: of scripts, of what is typed in."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sitq.payload.registry import Registry, default_registry
from tests.unit import registry_samples as samples

HERE = "tests.unit.registry_samples"

SCRIPT = """
    import multiprocessing
    from sitq.payload.registry import default_registry, name_of, task

    @task
    def job(): ...

    def child(queue):
        queue.put((name_of(job), default_registry.get(name_of(job)) is not None))

    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print(name_of(job))
        print(*queue.get())
        process.join()
"""

TYPED_IN = """
from sitq.payload.registry import name_of
def job(): ...
print(name_of(job))
"""


def run(*args: str, cwd: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


def test_a_function_of_a_script_is_named_by_the_path_it_was_started_by_also_when_spawned(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "link.py").symlink_to(script)
    name = f"{tmp_path.resolve()}/link.py:job"
    assert run("link.py", cwd=tmp_path) == [name, f"{name} True"]


def test_a_function_of_a_module_run_as_main_is_named_by_the_module(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tool.py").write_text(textwrap.dedent(SCRIPT))
    (package / "__main__.py").write_text(TYPED_IN)
    assert run("-m", "package.tool", cwd=tmp_path) == [
        "package.tool:job",
        "package.tool:job True",
    ]
    assert run("-m", "package", cwd=tmp_path) == ["package.__main__:job"]


def test_functions_typed_in_are_named_apart_in_each_process(tmp_path: Path) -> None:
    first, second = (run("-c", TYPED_IN, cwd=tmp_path)[0] for _ in range(2))
    assert first.startswith("<interactive-")
    assert first.endswith(">:job")
    assert first != second


def test_functions_read_from_stdin_are_named_apart_in_each_process() -> None:
    lines = [
        subprocess.run(
            [sys.executable], input=TYPED_IN, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert all(line.startswith("<interactive-") for line in lines), lines
    assert lines[0] != lines[1]


def test_a_script_that_is_imported_as_a_module_knows_the_name_that_it_had_as_a_script() -> None:
    registry = Registry()
    added = registry.add(samples.add)
    path = Path(samples.__file__).resolve()
    assert registry.get(f"{path}:add") is added
    assert registry.get(f"{path}:wrapped") is None
    assert registry.get(f"{path.parent}:add") is None
    assert default_registry.get(f"{path}:marked_only") is default_registry.get(
        f"{HERE}:marked_only"
    )


REFUSED_IN = """
from sitq import ValidationError
from sitq.payload.registry import name_of
def job(): ...
try:
    name_of(job)
except ValidationError as error:
    print(ascii(str(error)))
"""


@pytest.mark.parametrize("name", [b"two\nlines.py", b"not-utf8-\xff.py"])
def test_a_script_whose_path_cannot_be_stored_is_refused_with_advice(
    tmp_path: Path, name: bytes
) -> None:
    script = os.fsencode(tmp_path) + b"/" + name
    with open(script, "w") as file:  # noqa: PTH123 - a Path takes no bytes
        file.write(REFUSED_IN)
    (text,) = run(os.fsdecode(script), cwd=tmp_path)
    assert "rename the file" in text
