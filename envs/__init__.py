"""Environments: `make(task_id, num_envs)` imports the one requested. Tasks of other packages are found the same way.

A task of another package is a factory, which is found by
- its task id, if an installed package has an entry point of that name in the group `marl_flow.tasks`;
- its task id, after `register(task_id, factory)` or `load_factory("module:factory")` in this process;
- `module:factory` in place of the task id.
`marl_flow.envs.registry` says what a factory looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from marl_flow import tasks
from marl_flow.config import nearest
from marl_flow.envs import registry
from marl_flow.envs.registry import load_factory, register
from marl_flow.interfaces import UserError

if TYPE_CHECKING:
    import torch

    from marl_flow.interfaces import Policy, TaskSpec, VectorEnv

__all__ = ["SUITES", "TASKS", "Suite", "knows", "load_factory", "make", "register", "spec"]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Where the tasks of one suite are implemented.

    module: has `make(task_id, num_envs, device, dtype, opponent)` and `spec(task_id)`; imported when one of its tasks
    is requested. tasks: their names. family: the pattern of further names, which the module checks; None: no others.
    """

    module: str
    tasks: tuple[str, ...]
    family: str | None = None


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "mpe": Suite(module="marl_flow.envs.mpe.env", tasks=tasks.task_names("mpe")),
        "mamujoco": Suite(
            module="marl_flow.envs.mamujoco.env",
            tasks=tasks.task_names("mamujoco"),
            family="v1/<scenario>/<partition>",
        ),
        "smac": Suite(module="marl_flow.envs.smac.env", tasks=tasks.task_names("smac")),
        "smacv2": Suite(module="marl_flow.envs.smac.v2", tasks=tasks.task_names("smacv2")),
        "smac-sc2": Suite(module="marl_flow.envs.starcraft2", tasks=(), family="<map>"),
        "smacv2-sc2": Suite(module="marl_flow.envs.starcraft2", tasks=(), family="<race>_<n>_vs_<m>"),
    }
)
TASKS = tuple(f"{name}/{task}" for name, suite in SUITES.items() for task in suite.tasks)
"""Ids of the tasks that this package brings and that need nothing else to be installed."""


def make(
    task_id: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    opponent: Policy | None = None,
) -> VectorEnv:
    """A `VectorEnv` of `num_envs` episodes of a task, given by its id or as `module:factory`.

    dtype: float32 (default) or float64. opponent: the policy that moves the part of the world that is not controlled
    (the prey of tag and world); None means the task's own. A task of another package gets `device`, `dtype` and
    `opponent` only if its factory has parameters of these names.
    """
    module = _module(task_id)
    if module is not None:
        return module.make(task_id, num_envs, device, dtype, opponent)
    return registry.build(task_id, _factory(task_id), num_envs, device, dtype, opponent)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task with its own opponent. A task of another package is built once to read it."""
    module = _module(task_id)
    return make(task_id).spec if module is None else module.spec(task_id)


def knows(task_id: str) -> bool:
    """Whether this id is one of `TASKS`, registered, or an entry point: `make` then needs nothing else.

    False for the ids of families such as `smac-sc2/<map>`, which `make` tries but which may need a game that is not
    installed, and for `module:factory`, which is not an id.
    """
    return task_id in TASKS or registry.find(task_id) is not None


def _module(task_id: str) -> Any:
    """Our module that has the task, None if it is none of ours."""
    name, _, task = task_id.partition("/")
    suite = SUITES.get(name)
    if suite is None or not (task in suite.tasks or _in_family(task, suite.family)):
        return None
    return import_module(suite.module)


def _factory(task_id: str) -> registry.Factory:
    """The factory of a task that is none of ours."""
    factory = registry.resolve(task_id) if ":" in task_id else registry.find(task_id)
    if factory is None:
        families = [f"{name}/{suite.family}" for name, suite in SUITES.items() if suite.family is not None]
        raise UserError(
            f"unknown task {task_id!r}; {nearest(task_id, [*TASKS, *registry.names()])}; "
            f"further ids: {', '.join(families)}; a task of your own is given as module:factory (for a command: --task "
            "module:factory), or by its id once its package is installed with an entry point in the group "
            f"{registry.GROUP}"
        )
    return factory


def _in_family(task: str, family: str | None) -> bool:
    """Whether a name has the family's pattern, in which <...> stands for any non-empty text."""
    if family is None:
        return False
    parts, pattern = task.split("/"), family.split("/")
    return len(parts) == len(pattern) and all(
        bool(part) if expected.startswith("<") else part == expected
        for part, expected in zip(parts, pattern, strict=True)
    )
