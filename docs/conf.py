"""The settings of the documentation site, which `nox -s docs_site` builds.

The pages are read as GitHub shows them, and the contents of the site are the lists of `index.md`.
The pages below `reference/python` are made from the docstrings.
"""

from __future__ import annotations

import inspect
import re
from collections import namedtuple
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

from docutils.nodes import Text
from pydantic import BaseModel
from sphinx.util.inspect import stringify_signature

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement, document
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "sitq"
author = "The sitq developers"
release = version_of("sitq")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]

html_theme = "furo"
html_title = f"sitq {release}"
html_show_copyright = False
smartquotes = False  # the text is as it was written, options of commands too

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

default_role = "py:obj"  # a name in single backticks is a link where it can be one
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_default_options = {
    "members": True,
    "exclude-members": "model_config",
    # The members of these and of their bases are no part of sitq.
    "inherited-members": "BaseModel, BaseException, Enum, Generic, Protocol, str, tuple",
}
napoleon_numpy_docstring = False

_MADE_BY_SITQ = {
    "sitq.BoundQueue",
    "sitq.QueueClient",
    "sitq.SyncBoundQueue",
    "sitq.SyncQueueClient",
    "sitq.TaskContext",
    "sitq.TransactionQueue",
    "sitq.sync.SyncTransactionQueue",
}
_SECTION = re.compile(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)")
_PAGE = re.compile(r"\]\(([^)#\s]+\.md)\)")
_TITLED_FENCE = re.compile(r'(?m)^```(\w+) title="([^"]+)"$')
_FIELD_OF_A_TUPLE = type(namedtuple("Pair", "left right").left)  # noqa: PYI024 - its type is asked


def contents(index: str) -> str:
    """Return the site's tables of contents: one for each section of the index that links pages."""
    tables = [(title, _PAGE.findall(text)) for title, text in _SECTION.findall(index)]
    names = sorted(path.stem for path in Path(__file__).parent.glob("reference/python/*.rst"))
    tables.append(("API from the docstrings", [f"reference/python/{name}" for name in names]))
    return "\n".join(
        "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"])
        for title, pages in tables
        if pages
    )


def read_page(_: Sphinx, name: str, source: list[str]) -> None:
    """Show the names of files above their code, and give the index its tables of contents."""
    source[0] = _TITLED_FENCE.sub(r"```{code-block} \1\n:caption: \2\n", source[0])
    if name == "index":
        source[0] += "\n" + contents(source[0])


def skip_member(
    _app: Sphinx, _kind: str, _name: str, member: object, _skip: object, _options: object
) -> bool | None:
    """Leave out the fields of named tuples: their class says what they are."""
    return True if isinstance(member, _FIELD_OF_A_TUPLE) else None


def show_parameters(
    _app: Sphinx, _kind: str, name: str, member: object, _options: object, *_: str | None
) -> tuple[str, str] | None:
    """Show the parameters of a model as ``help`` does, without what pydantic adds to the types.

    Those of classes that users do not make themselves are left out.
    """
    if name in _MADE_BY_SITQ:
        return "", ""
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return None
    signature = inspect.signature(member).replace(return_annotation=inspect.Signature.empty)
    return stringify_signature(signature, unqualified_typehints=True), ""


def find_public_name(
    app: Sphinx, environment: BuildEnvironment, node: pending_xref, text: TextElement
) -> Element | None:
    """Link a name without its module, as it stands in a docstring or an annotation."""
    if node["refdomain"] != "py":
        return None
    domain = environment.domains.python_domain
    name = re.sub(r"^sitq\.[a-z_.]+\.(?=[A-Z])", "", node["reftarget"])
    found = [f"sitq.{name}"] if f"sitq.{name}" in domain.objects else []
    found = found or [full for full in domain.objects if full.endswith(f".{name}")]
    if len(found) != 1:
        return None
    return domain.resolve_xref(
        environment, node["refdoc"], app.builder, "obj", found[0], node, text
    )


def drop_docstring_of_type(
    _app: Sphinx, kind: str, _name: str, _member: object, _options: object, lines: list[str]
) -> None:
    """Leave out what Python says of the type of a constant; the page says what it is for."""
    if kind == "data":
        lines.clear()


def show_parameter_specifications(_: Sphinx, page: document) -> None:
    """Show a `ParamSpec` by its name: Sphinx has no short form of one."""
    for text in list(page.findall(Text)):
        if "~typing.~" in text:
            text.parent.replace(text, Text(text.replace("~typing.~", "")))


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", read_page)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", drop_docstring_of_type)
    app.connect("autodoc-process-signature", show_parameters)
    app.connect("doctree-read", show_parameter_specifications)
    app.connect("missing-reference", find_public_name)
