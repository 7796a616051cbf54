"""Tasks whose published data can be imported: no simulator is needed to read a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from marl_flow import tasks
from marl_flow.config import nearest
from marl_flow.interfaces import TaskSpec, UserError

AGENT_IDS_IN_OBSERVATION = ("mamujoco",)
"""Suites whose observations begin with the one-hot agent id (N columns), in our environments as in published files."""

TASKS: Mapping[str, TaskSpec] = MappingProxyType(
    {task_id: card.spec for task_id, card in tasks.CARDS.items() if card.published_means}
)


def known_spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task whose published data can be imported, by its id such as `mamujoco/2ant`."""
    if task_id not in TASKS:
        raise UserError(f"unknown task {task_id!r}: expected one whose data are published; {nearest(task_id, TASKS)}")
    return TASKS[task_id]


def has_agent_ids(spec: TaskSpec) -> bool:
    """Whether the task's own observations begin with the one-hot agent id."""
    return spec.task_id.partition("/")[0] in AGENT_IDS_IN_OBSERVATION
