"""The one-hot agent id some layouts put before every observation: checked, taken off, put on."""

from __future__ import annotations

import numpy as np

from marl_flow.datasets.formats.columns import Column
from marl_flow.datasets.specs import has_agent_ids
from marl_flow.interfaces import TaskSpec, UserError


def width_with_ids(spec: TaskSpec) -> int:
    """Columns of the task's observation where the id comes first."""
    return spec.observation_size + (0 if has_agent_ids(spec) else spec.num_agents)


def check_width(spec: TaskSpec, column: Column, width: int) -> None:
    """Raises unless the column's observations have this width, [rows, N, width]."""
    if len(column.shape) == 3 and column.shape[2] != width:
        other = (
            "; 113 columns are OMIGA's 2ant data, the whole ant seen by every agent, whose means differ: "
            "other data, not another form of these"
            if column.shape[2] in (111, 113)
            else ""
        )
        raise UserError(
            f"{column.name}: expected observations of {width} columns ({spec.task_id}), found {column.shape[2]}{other}"
        )
    column.expect(column.rows, spec.num_agents, width)


def without_ids(spec: TaskSpec, observations: np.ndarray, where: str, first_row: int) -> np.ndarray:
    """Observations [M, N, O] of the task from ones [M, N, ...] that begin with the id, which is checked."""
    ids = observations[..., : spec.num_agents]
    wrong = (ids != np.eye(spec.num_agents, dtype=ids.dtype)).any(axis=-1)
    if wrong.any():
        row, agent = (int(index) for index in np.argwhere(wrong)[0])
        raise UserError(
            f"{where}: expected the one-hot id of agent {agent} in the first {spec.num_agents} columns, "
            f"found {ids[row, agent].tolist()} at row {first_row + row}"
        )
    return observations if has_agent_ids(spec) else observations[..., spec.num_agents :]


def with_ids(spec: TaskSpec, observations: np.ndarray) -> np.ndarray:
    """Observations that begin with the id, [M, N, ...], from ones that do not."""
    ids = np.broadcast_to(
        np.eye(spec.num_agents, dtype=observations.dtype), (len(observations), *(spec.num_agents,) * 2)
    )
    return np.concatenate([ids, observations], axis=-1)
