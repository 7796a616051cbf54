"""Simulators behind one door: `make(task_id, num_envs)` imports the one asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from marl_flow.config import nearest
from marl_flow.interfaces import UserError

if TYPE_CHECKING:
    import torch

    from marl_flow.interfaces import Policy, TaskSpec, VectorEnv


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Where the tasks of one suite live.

    module: has `make(task_id, num_envs, device, dtype, opponent)` and `spec(task_id)`, and is imported when one of its
    tasks is asked for. tasks: its names. family: how further names look, which the module itself checks; None: no more.
    """

    module: str
    tasks: tuple[str, ...]
    family: str | None = None


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "mpe": Suite(module="marl_flow.envs.mpe.env", tasks=("simple_spread", "simple_tag", "simple_world")),
        "mamujoco": Suite(
            module="marl_flow.envs.mamujoco.env",
            tasks=("2ant", "4ant", "2halfcheetah"),
            family="v1/<scenario>/<partition>",
        ),
        "smac": Suite(
            module="marl_flow.envs.smac.env",
            tasks=(
                *(
                    "3m",
                    "8m",
                    "25m",
                    "5m_vs_6m",
                    "8m_vs_9m",
                    "10m_vs_11m",
                    "27m_vs_30m",
                    "2s3z",
                    "3s5z",
                    "3s5z_vs_3s6z",
                ),
                *("3s_vs_3z", "3s_vs_4z", "3s_vs_5z", "2m_vs_1z", "2s_vs_1sc", "so_many_baneling", "MMM", "MMM2"),
                *("1c3s5z", "6h_vs_8z", "corridor", "bane_vs_bane"),
            ),
        ),
        "smacv2": Suite(
            module="marl_flow.envs.smac.v2",
            tasks=tuple(
                f"{race}_{size}"
                for race in ("terran", "protoss", "zerg")
                for size in ("5_vs_5", "10_vs_10", "20_vs_20", "10_vs_11", "20_vs_23")
            ),
        ),
        "smac-sc2": Suite(module="marl_flow.envs.starcraft2", tasks=(), family="<map>"),
        "smacv2-sc2": Suite(module="marl_flow.envs.starcraft2", tasks=(), family="<race>_<n>_vs_<m>"),
    }
)
TASKS = tuple(f"{name}/{task}" for name, suite in SUITES.items() for task in suite.tasks)


def make(
    task_id: str,
    num_envs: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    opponent: Policy | None = None,
) -> VectorEnv:
    """A `VectorEnv` of `num_envs` episodes of a task. dtype: float32 (default) or float64. opponent: who moves the
    part of the world that is not controlled (the prey of tag and world); None takes the task's own."""
    return _module(task_id).make(task_id, num_envs, device, dtype, opponent)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task with its own opponent."""
    return _module(task_id).spec(task_id)


def _module(task_id: str) -> Any:
    """The module that knows the task."""
    name, _, task = task_id.partition("/")
    suite = SUITES.get(name)
    families = [f"{other}/{one.family}" for other, one in SUITES.items() if one.family is not None]
    if suite is None or not (task in suite.tasks or _in_family(task, suite.family)):
        further = f"; further ids: {', '.join(families)}" if families else ""
        raise UserError(f"unknown task {task_id!r}; {nearest(task_id, TASKS)}{further}")
    return import_module(suite.module)


def _in_family(task: str, family: str | None) -> bool:
    """Whether a name has the family's form, in which <...> stands for anything but nothing."""
    if family is None:
        return False
    parts, form = task.split("/"), family.split("/")
    return len(parts) == len(form) and all(
        bool(part) if wanted.startswith("<") else part == wanted for part, wanted in zip(parts, form, strict=True)
    )
