"""What the project is checked with: each session is one kind of proof.

`nox` runs the checks that every change must pass. A Python that is not installed is skipped.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

__all__ = [
    "bench",
    "bench_peers",
    "dev",
    "docs",
    "docs_site",
    "lint",
    "nightly",
    "soak",
    "tests",
    "types",
]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
VERSIONS = ["3.11", "3.12", "3.13"]
COVERAGE_FILE = str(ROOT / ".nox" / ".coverage")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
WHEELS: list[Path] = []  # the wheel that this run has built

# Tests wait for processes and for leases: more processes than cores keep the cores at work. The
# tests of a file stay in one process, which starts that file's servers. The files start in this
# order: those that take long come first.
PARALLEL = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]
ALL_TESTS = [
    "tests/faults",
    "tests/docs",
    "tests/properties",
    "tests/postgres",
    "tests/conformance",
    "tests/transactions",
    "tests/worker",
    "tests/examples",
    "tests/sqlite",
    "tests/unit",
]
# What differs between Pythons: the event loops, annotations, the end of the interpreter, sqlite3.
PYTHON_TESTS = [
    "tests/faults/test_process_exit.py",
    "tests/faults/test_exit.py",
    "tests/properties/test_codec_annotations.py",
    "tests/properties/test_codec_payloads.py",
    "tests/properties/test_closing.py",
    "tests/conformance/test_backends.py",
    "tests/worker",
    "tests/examples/test_basic.py",
    "tests/examples/test_fastapi_app.py",
    "tests/sqlite",
    "tests/unit",
]

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "docs_site", "tests"]
nox.options.default_venv_backend = "virtualenv"  # it copies pip; venv installs it
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False


def find_pyenv_interpreters() -> None:
    """Let nox find what pyenv installed: its shims refuse versions that are not chosen."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [
        str(folder)
        for version in VERSIONS
        for folder in sorted(root.glob(f"versions/{version}.*/bin"), reverse=True)
    ]
    os.environ["PATH"] = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])


def install(session: nox.Session, *groups: str) -> None:
    """Install the tools of ``groups`` and the wheel as users get it, never the tree.

    Python compiles the modules that are imported; pip would compile all of them.
    """
    wheel = build_wheel(session)
    options = ["--quiet", "--disable-pip-version-check", "--no-compile"]
    is_reused = any(Path(session.virtualenv.location).rglob("sitq-*.dist-info"))
    session.install(*options, f"{wheel}[trio]", *nox.project.dependency_groups(PYPROJECT, *groups))
    if is_reused:  # with a wheel of the same version
        session.install(*options, "--no-deps", "--force-reinstall", str(wheel))


def build_wheel(session: nox.Session) -> Path:
    """Build the wheel once, for all sessions of this run."""
    if not WHEELS:
        folder = ROOT / ".nox" / "wheel"
        shutil.rmtree(folder, ignore_errors=True)
        words = ["--quiet", "--no-deps", "--wheel-dir", str(folder), "."]
        session.run("python", "-m", "pip", "wheel", *words)
        WHEELS.extend(folder.glob("sitq-*.whl"))
    (wheel,) = WHEELS
    return wheel


find_pyenv_interpreters()


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, form, and that imports go down only."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the code, and those that users see, with both checkers."""
    install(session, "types")
    session.run("mypy", "src", "tests", "noxfile.py", *sorted(map(str, examples())))
    check_pages(session)
    session.run("pyright", env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})
    session.run("pyright", "--verifytypes", "sitq", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Run every code block of the README and the docs; `tests` does so as well."""
    install(session, "test", "example")
    session.run("python", "-m", "pytest", "-n", "3", "tests/docs", *session.posargs)


@nox.session
def docs_site(session: nox.Session) -> None:
    """Build the documentation site in build/site; a warning or a missing section fails."""
    install(session, "docs")
    site = ROOT / "build" / "site"
    shutil.rmtree(site, ignore_errors=True)
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--fresh-env"]
    cache = f"--doctree-dir={session.create_tmp()}"
    session.run("python", "-m", "sphinx", *options, cache, "docs", str(site))
    session.run("python", "-m", "tests.docs.site", str(site))


@nox.session(python=sorted({*VERSIONS, HERE}, key=lambda version: int(version[2:])))
def tests(session: nox.Session) -> None:
    """Test the built wheel; arguments go to pytest.

    The Python that runs nox runs every test and page, and measures the coverage. The others run the
    tests of what differs between Pythons; tests/README.md lists them.
    """
    install(session, "test", "example")
    if session.python == HERE:
        arguments = session.posargs or [*PARALLEL, *ALL_TESTS]
        # A part of the tests is only reported on.
        limit = ["--cov-fail-under=0"] if session.posargs else []
        env = {"COVERAGE_FILE": COVERAGE_FILE}
        session.run("python", "-m", "pytest", "--cov", *limit, *arguments, env=env)
        return
    arguments = session.posargs or [*PARALLEL, *PYTHON_TESTS]
    session.run("python", "-m", "pytest", *arguments, env={"HYPOTHESIS_PROFILE": "quick"})


@nox.session
def nightly(session: nox.Session) -> None:
    """Run every test, with long searches, all mutants and long kills: about an hour."""
    install(session, "test", "example")
    session.run(
        "python",
        "-m",
        "pytest",
        *(session.posargs or [*PARALLEL, "--timeout=3600", *ALL_TESTS]),
        env={
            "HYPOTHESIS_PROFILE": "nightly",
            "SITQ_SOAK": "1",
            "SITQ_KILL_SECONDS": "60",
            "SITQ_SOAK_SECONDS": "600",
        },
    )


@nox.session(venv_backend="none")
def dev(session: nox.Session) -> None:
    """Install sitq, editable, and every tool beside nox, in the environment that runs it."""
    groups = nox.project.dependency_groups(PYPROJECT, "dev", "docs")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    session.run(*pip, "--editable", ".[trio,postgres]", *groups, external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure sitq against the raw driver on this machine.

    `-- drain growth --quick` is a part; `-- --store postgres` measures the PostgreSQL store, on the
    server of `SITQ_BENCH_POSTGRES_DSN` or one of its own.
    """
    install(session, "bench")
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


@nox.session
def bench_peers(session: nox.Session) -> None:
    """Run the same work through other queues; `-- --store postgres` through those on a server."""
    install(session, "bench", "peers")
    session.run("python", "-m", "tests.benchmarks.peers", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Search for hours: many more generated examples than `nightly`, and longer runs of faults."""
    install(session, "test", "example")
    session.run(
        "python",
        "-m",
        "pytest",
        "--timeout=0",
        *(session.posargs or ["tests/properties", "tests/faults", "tests/postgres"]),
        env={"HYPOTHESIS_PROFILE": "soak", "SITQ_SOAK": "1", "SITQ_KILL_SECONDS": "600"},
    )


def check_pages(session: nox.Session) -> None:
    """Check the types of the code that the pages show."""
    folder = Path(session.create_tmp()).resolve() / "pages"
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "tests.docs.pages", str(folder))
    for page in sorted({path.parent for path in folder.glob("**/*.py")}):
        with session.chdir(page):
            files = sorted(path.name for path in page.glob("*.py"))
            cache = f"--cache-dir={folder / 'cache'}"
            session.run("mypy", "--config-file=", "--strict", cache, *files, silent=True)


def examples() -> list[Path]:
    """Return the programs under examples/."""
    return [path.relative_to(ROOT) for path in ROOT.glob("examples/**/*.py")]
