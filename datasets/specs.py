"""What a task is, for every task whose published data can be imported: no simulator is needed to read a file.

Sizes and limits: `Guowei-Zou/coflow-release: diffuser/datasets/{mpe,mamujoco,smac_env}.py`, `oxwhirl/smac:
smac/env/starcraft2/{starcraft2.py,maps/smac_maps.py}`. Those of `marl_flow.envs` equal their `spec`; a test says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal

from marl_flow.config import nearest
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

AGENT_IDS_IN_OBSERVATION = ("mamujoco",)
"""Suites whose observations begin with the one-hot agent id (N columns), in our environments as in published files."""


def known_spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task whose published data can be imported, by its id such as `mamujoco/2ant`."""
    if task_id not in TASKS:
        raise UserError(f"unknown task {task_id!r}: expected one whose data are published; {nearest(task_id, TASKS)}")
    return TASKS[task_id]


def has_agent_ids(spec: TaskSpec) -> bool:
    """Whether the task's own observations begin with the one-hot agent id."""
    return spec.task_id.partition("/")[0] in AGENT_IDS_IN_OBSERVATION


def _box(size: int) -> ActionSpec:
    return ActionSpec(kind="continuous", size=size, low=(-1.0,) * size, high=(1.0,) * size)


def _spec(
    task_id: str,
    agents: int,
    observation_size: int,
    action: ActionSpec,
    max_steps: int,
    team_reward: Literal["shared", "mean"] = "shared",
    state_size: int | None = None,
) -> TaskSpec:
    return TaskSpec(
        task_id=task_id,
        agents=tuple(f"agent_{index}" for index in range(agents)),
        observation_size=observation_size,
        action=action,
        max_steps=max_steps,
        team_reward=team_reward,
        state_size=state_size,
    )


def _battles(
    name: str, *, agents: int, enemies: int, observation_size: int, max_steps: int, state_size: int
) -> Iterator[TaskSpec]:
    """A StarCraft map in the embedded simulator and in the game, which published data are of.

    Choices: no-op, stop, four moves, then one attack per enemy.
    """
    action = ActionSpec(kind="discrete", size=6 + enemies)
    for suite in ("smac", "smac-sc2"):
        yield _spec(f"{suite}/{name}", agents, observation_size, action, max_steps, state_size=state_size)


TASKS: Mapping[str, TaskSpec] = MappingProxyType(
    {
        spec.task_id: spec
        for spec in (
            _spec("mpe/simple_spread", 3, 18, _box(2), 25, "mean"),
            _spec("mpe/simple_tag", 3, 16, _box(2), 25),
            _spec("mpe/simple_world", 3, 24, _box(2), 25),
            _spec("mamujoco/2ant", 2, 56, _box(4), 1000),
            _spec("mamujoco/4ant", 4, 37, _box(2), 1000),
            _spec("mamujoco/2halfcheetah", 2, 15, _box(3), 1000),
            *_battles("3m", agents=3, enemies=3, observation_size=30, max_steps=60, state_size=48),
            *_battles("8m", agents=8, enemies=8, observation_size=80, max_steps=120, state_size=168),
            *_battles("2s3z", agents=5, enemies=5, observation_size=80, max_steps=120, state_size=120),
            *_battles("5m_vs_6m", agents=5, enemies=6, observation_size=55, max_steps=70, state_size=98),
        )
    }
)
