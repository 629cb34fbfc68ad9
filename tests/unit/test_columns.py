"""The columns are named in one place, in one order."""

from __future__ import annotations

from sitq.backends._rows import INSERT_TYPES, TASK_FIELDS, insert_values
from sitq.backends.postgres._rows import columns
from sitq.ids import new_task_id
from sitq.models import Task

TASK = Task(id=new_task_id(), function="tests:nothing", payload=b"p")


def test_the_values_of_an_insert_are_those_of_its_columns_in_order() -> None:
    values = insert_values(TASK, lambda moment: moment, lambda seconds: seconds)
    assert [*values, "payload"] == list(INSERT_TYPES)


def test_every_field_of_a_task_is_stored_in_a_column_of_its_name() -> None:
    assert set(TASK_FIELDS) == set(INSERT_TYPES) - {"max_attempts"}  # which is the policy's


def test_a_batch_has_all_columns_however_many_tasks_there_are() -> None:
    for tasks in ([], [TASK], [TASK, TASK]):
        assert [len(column) for column in columns(tasks)] == [len(tasks)] * len(INSERT_TYPES)
