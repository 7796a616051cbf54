"""The environment of a `TaskSpec`: its task, against the opponent that it names.

The prey of tag and world is part of the task. Ours is shipped, the scripted one is code; a published one is read once
from its file, kept under the data root by a name that holds its hash, and found again by that name: a dataset, a run
and an evaluation that name it use the same weights or none.
"""

from __future__ import annotations

from pathlib import Path

import torch

from marl_flow import envs
from marl_flow.datasets import catalog
from marl_flow.envs.mpe.prey import NATIVE, FleeingPrey, NetworkPrey
from marl_flow.envs.mpe.scenarios import find_scenario
from marl_flow.files import atomic_file
from marl_flow.interfaces import Policy, TaskSpec, UserError, VectorEnv

PUBLISHED_FILE = "pretrained_adv_model.pt"
"""How OMAR named the file that holds its prey."""


def environment(
    spec: TaskSpec, num_envs: int, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> VectorEnv:
    """The task's environment with the opponent that `spec` names; a UserError where that opponent is not available."""
    return envs.make(spec.task_id, num_envs, device, dtype, opponent(spec.task_id, spec.opponent, device))


def opponent(task_id: str, name: str | None, device: torch.device | str = "cpu") -> Policy | None:
    """The opponent of that name in a task; None for tasks without one, and where the environment brings its own."""
    if name is None or name == NATIVE or task_id not in envs.TASKS:
        return None
    if name == FleeingPrey.name:
        scenario = find_scenario(task_id)
        landmarks = scenario.num_entities - scenario.num_agents
        return FleeingPrey(num_obstacles=len(scenario.indices("obstacle")), num_landmarks=landmarks, device=device)
    path = file_of(task_id, name)
    if not path.is_file():
        raise UserError(
            f"expected the prey {name} of {task_id} in {path.parent}, found none of that name; available: "
            f"{', '.join(names(task_id))}; add the {PUBLISHED_FILE} it was published in with "
            f"`marl-flow data prey {task_id} FILE`"
        )
    prey = NetworkPrey.from_omar(path, device=device)
    if prey.name != name:
        raise UserError(f"{path}: expected the weights of {name}, found those of {prey.name}; add the original again")
    return prey


def names(task_id: str) -> list[str]:
    """Names of the opponents that are available for a task on this machine."""
    published = sorted(path.stem for path in file_of(task_id, "none").parent.glob("omar-*.pt"))
    return [NATIVE, FleeingPrey.name, *published]


def file_of(task_id: str, name: str) -> Path:
    return catalog.data_root() / "opponents" / task_id / f"{name}.pt"


def add(task_id: str, source: Path) -> NetworkPrey:
    """Stores the prey of a published `pretrained_adv_model.pt` for a task, its own weights alone, and returns it."""
    if task_id not in envs.TASKS or envs.spec(task_id).opponent is None:
        raise UserError(f"{task_id} has no prey; expected mpe/simple_tag or mpe/simple_world")
    prey = NetworkPrey.from_omar(source)
    env = envs.make(task_id, 1, opponent=prey)
    env.reset([0])
    env.step(torch.zeros(1, env.spec.num_agents, env.spec.action.size))  # raises for weights of another task
    path = file_of(task_id, prey.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        torch.save({"agent_params": [{"policy": prey.weights}]}, file)
    return prey
