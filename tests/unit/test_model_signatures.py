"""A model shows its parameters to ``help``, built or not."""

from __future__ import annotations

import inspect
import pydoc

import pytest

import sitq
from sitq import models
from sitq.models import RetryPolicy

MODELS = [
    sitq.Progress,
    sitq.ReservedTask,
    sitq.Result,
    sitq.RetryPolicy,
    sitq.Task,
    sitq.TaskInfo,
    models.Outcome,
]


@pytest.mark.parametrize("model", MODELS)
def test_the_signature_of_a_model_has_its_fields_and_their_defaults(model: type) -> None:
    class Fresh(model):  # type: ignore[misc]
        """A class that is not built yet."""

    before = inspect.signature(Fresh)
    Fresh.model_rebuild()
    after = inspect.signature(Fresh)
    assert before == after
    assert list(after.parameters) == list(Fresh.model_fields)
    assert "Validator" not in str(after)


def test_help_of_a_retry_policy_shows_its_parameters() -> None:
    shown = pydoc.render_doc(RetryPolicy, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    # From Python 3.13 on, each parameter has a line of its own, with a bar before it.
    text = " ".join(word for word in shown.split() if word != "|")
    assert "max_attempts: int = 3, delay: float = 1.0, factor: float = 2.0" in text


def test_a_subclass_with_an_unresolved_annotation_has_a_signature() -> None:
    class Later(RetryPolicy):
        extra: NotDefined | None = None  # type: ignore[name-defined]  # noqa: F821

    assert next(iter(inspect.signature(Later).parameters)) == "max_attempts"
