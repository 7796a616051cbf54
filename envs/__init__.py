"""Simulators behind one door: `make(task_id, num_envs)` imports the one asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marl_flow.config import nearest
from marl_flow.interfaces import UserError

if TYPE_CHECKING:
    import torch

    from marl_flow.envs.mpe_tasks import ParticleEnv
    from marl_flow.interfaces import Policy, TaskSpec

TASKS = ("mpe/simple_spread", "mpe/simple_tag", "mpe/simple_world")


def make(
    task_id: str,
    num_envs: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    opponent: Policy | None = None,
) -> ParticleEnv:
    """A `VectorEnv` of `num_envs` episodes of a task. dtype: float32 (default) or float64. opponent: who moves the
    part of the world that is not controlled (the prey of tag and world); None takes the task's own."""
    _check(task_id)
    import torch

    from marl_flow.envs.mpe_tasks import ParticleEnv

    return ParticleEnv(task_id, num_envs, device=device, dtype=dtype or torch.float32, opponent=opponent)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task with its own opponent, without building it."""
    _check(task_id)
    import dataclasses

    from marl_flow.envs.mpe_opponents import NATIVE
    from marl_flow.envs.mpe_scenarios import scenario, task_spec

    return dataclasses.replace(task_spec(task_id), opponent=NATIVE if scenario(task_id).has_prey else None)


def _check(task_id: str) -> None:
    if task_id not in TASKS:
        raise UserError(f"unknown task {task_id!r}; {nearest(task_id, TASKS)}")
