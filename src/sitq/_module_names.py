"""The module part of stored names: scripts by their path, and other names of the same file.

A script can be started by its path or with ``-m``, or be imported as a module, and each process may
do it in another way. No name from a store is imported here, and no code of a module runs.
"""

from __future__ import annotations

import functools
import os
import secrets
import sys
from types import ModuleType
from typing import Any, Final

__all__ = ["class_name", "is_class_named", "is_module_named", "is_same_module", "module_name"]

_MAINS: Final = frozenset({"__main__", "__mp_main__"})
_NAMESPACES: Final = (ModuleType, type)
_INTERACTIVE: Final = f"<interactive-{secrets.token_hex(8)}>"


def module_name(module: str) -> str:
    """Return the module part of a stored name: that of a script is its path.

    Args:
        module: the name of a module that this process has loaded.
    """
    if module not in _MAINS:
        return module
    return _spec_name(module) or _file_of(module) or _INTERACTIVE


def is_module_named(where: str, module: str) -> bool:
    """Return whether the module part of a stored name means a module of this process.

    1. It does if it is the module's own name, as `module_name` gives it.
    2. A path does if it leads to the file of the module now, through links too.
    3. The name of a module means a script of this process that would have the name if it was
       imported: ``package.app`` means ``.../package/app.py``.

    Args:
        where: the module part of a stored name.
        module: the name of a module that this process has loaded.
    """
    if where == module_name(module):
        return True
    file = _file_of(module)
    if file is None:
        return False
    if os.path.isabs(where):
        return _is_same_file(where, file)
    if module not in _MAINS or _spec_name(module) is not None:
        return False
    if where in sys.modules:  # the name belongs to that module
        return is_same_module(where, module)
    return any(_ends_with(path, where.split(".")) for path in (file, os.path.realpath(file)))


def is_same_module(one: str, other: str) -> bool:
    """Return whether two loaded modules are one, or come from one file.

    A script that is imported as well is loaded twice, and so is a module with two ways to it.
    """
    if one == other:
        return True
    file, other_file = _file_of(one), _file_of(other)
    return file is not None and other_file is not None and _is_same_file(file, other_file)


def class_name(cls: type) -> str:
    """Return the stored name of a class: ``module.Class``, and ``path:Class`` in a script."""
    where = module_name(cls.__module__)
    is_script = cls.__module__ in _MAINS and _spec_name(cls.__module__) is None
    return f"{where}{':' if is_script else '.'}{cls.__qualname__}"


def is_class_named(name: str, cls: type) -> bool:
    """Return whether a stored name is that of a class, or leads to it among what is imported.

    ``__main__.Class`` means a class of the running script, whatever its path.
    """
    module, qualname = cls.__module__, cls.__qualname__
    if name == f"{module}.{qualname}":
        return True
    if name.endswith((f".{qualname}", f":{qualname}")):
        where = name[: -len(qualname) - 1]
        if is_module_named(where, module) or (where in _MAINS and module in _MAINS):
            return True
    return _find_loaded(name) is cls


def _spec_name(module: str) -> str | None:
    """Return the importable name of a module that was run with ``-m``."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return None if spec is None or spec.name in _MAINS else str(spec.name)


def _file_of(module: str) -> str | None:
    """Return the path of a module's source file, if it has one."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(file, str) or not file or os.path.basename(file) == "<stdin>":
        return None
    return _logical(file)


@functools.cache  # the links in the path may change later
def _logical(file: str) -> str:
    """Return an absolute path that keeps the links by which the program was started.

    The kernel reports the current folder without links. ``PWD`` has the path that the shell used,
    which stays the same through a link such as ``current`` that each release replaces.
    """
    path = file if os.path.isabs(file) else os.path.join(os.getcwd(), file)
    if os.pardir in path.split(os.sep):  # what it means depends on the links before it
        return os.path.realpath(path)
    path = os.path.normpath(path)
    shown = os.environ.get("PWD", "")
    if os.path.isabs(shown):
        folder = os.path.realpath(shown)
        inner = path.removeprefix(folder.rstrip(os.sep) + os.sep)
        if inner != path and folder != shown:
            return os.path.join(os.path.normpath(shown), inner)
    return path


def _is_same_file(one: str, other: str) -> bool:
    return one == other or _identity(one) == _identity(other)


def _identity(path: str) -> tuple[int, int, str]:
    """Return the identity of a file on this machine, independent of the path.

    For a file in an archive (a zipapp): the archive's identity, and the path in it.
    """
    rest = ""
    while True:
        head, tail = os.path.split(path)
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            if not tail:
                return (0, 0, f"{path}{rest}")
            path, rest = head, f"{os.sep}{tail}{rest}"
        else:
            return (found.st_dev, found.st_ino, rest)


def _ends_with(path: str, steps: list[str]) -> bool:
    """Return whether a source file is where a module of this name would be."""
    parts = os.path.splitext(path)[0].split(os.sep)
    return parts[-len(steps) :] == steps


def _find_loaded(name: str) -> object:
    """Return what ``module.name`` means among imported modules; plain dictionaries only."""
    steps = name.replace(":", ".").split(".")
    for count in range(len(steps) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(steps[:count]))
        if found is None:
            continue
        for step in steps[count:]:
            found = vars(found).get(step) if type(found) in _NAMESPACES else None
        return found
    return None
