"""What the particle tasks spread, tag and world are: entities, observations and rewards, as data and pure functions.

Source of every number: OMAR's copy (`ling-pan/OMAR: multiagent-particle-envs/multiagent/scenarios`), on which the
published datasets were collected; PettingZoo's tasks of the same names have other rewards and dynamics.
Shapes are those of `marl_flow.envs.mpe.physics`: M entities, A agents, episodes last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from marl_flow.config import nearest
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

MAX_STEPS = 25
NUM_CONTROLLED = 3
Kind = Literal["agent", "prey", "landmark", "obstacle", "food", "forest"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What makes one task: entities in order (agents first), their bodies, and who is paid what.

    kinds, radii per entity; drives and speed_limits per agent; the first num_solid entities collide. Landmarks start
    in [-landmark_span, landmark_span]^2, agents in [-1, 1]^2. `rewards` maps (positions [2, M, E], distances
    [A, M, E], touching [A, M, E] bool) to rewards [A, E].
    """

    kinds: tuple[Kind, ...]
    radii: tuple[float, ...]
    drives: tuple[float, ...]
    speed_limits: tuple[float, ...] | None
    num_solid: int
    landmark_span: float
    team_reward: Literal["shared", "mean"]
    rewards: Callable[[Tensor, Tensor, Tensor], Tensor]

    @property
    def num_agents(self) -> int:
        return len(self.drives)

    @property
    def num_entities(self) -> int:
        return len(self.kinds)

    @property
    def has_prey(self) -> bool:
        return "prey" in self.kinds

    def indices(self, kind: Kind) -> list[int]:
        return [index for index, name in enumerate(self.kinds) if name == kind]


def spread_rewards(positions: Tensor, distances: Tensor, touching: Tensor) -> Tensor:
    """Rewards [3, E]: min(1 / d, 10) summed over landmarks, d of the closest agent, less 5 for each agent touched."""
    coverage = distances[:, 3:].amin(0).reciprocal().clamp(max=10.0).sum(0)
    return coverage - 5.0 * touching[:, :3].sum(1, dtype=distances.dtype)


def _hunt(distances: Tensor, touching: Tensor, bonus: float) -> Tensor:
    """What every predator is paid, [E]: minus a tenth of all distances to the prey, plus a bonus per contact."""
    return bonus * touching[:3, 3].sum(0, dtype=distances.dtype) - 0.1 * distances[:3, 3].sum(0)


def _border_penalty(positions: Tensor) -> Tensor:
    """Price [E] of the prey's place, per axis: 0 below 0.9, 10 (|x| - 0.9) below 1, then min(exp(2 |x| - 2), 10)."""
    x = positions[:, 3].abs()
    outside = (2.0 * x - 2.0).exp().clamp(max=10.0)
    return torch.where(x < 1.0, (10.0 * (x - 0.9)).clamp(min=0.0), outside).sum(0)


def tag_rewards(positions: Tensor, distances: Tensor, touching: Tensor) -> Tensor:
    """Rewards [4, E]: the three predators alike, then the prey, who pays what they earn and for leaving the arena."""
    hunt = _hunt(distances, touching, 10.0)
    return torch.stack([hunt, hunt, hunt, -hunt - _border_penalty(positions)])


def world_rewards(positions: Tensor, distances: Tensor, touching: Tensor) -> Tensor:
    """Rewards [4, E]: as in tag with a bonus of 5 and twice the border; the prey gets 2 per food touched and a
    twentieth of the distance to the nearest (with a plus sign, as published)."""
    hunt = _hunt(distances, touching, 5.0)
    food = 2.0 * touching[3, 5:7].sum(0, dtype=distances.dtype) + 0.05 * distances[3, 5:7].amin(0)
    return torch.stack([hunt, hunt, hunt, food - hunt - 2.0 * _border_penalty(positions)])


SCENARIOS: dict[str, Scenario] = {
    "mpe/simple_spread": Scenario(
        kinds=("agent",) * 3 + ("landmark",) * 3,
        radii=(0.15,) * 3 + (0.05,) * 3,
        drives=(5.0,) * 3,
        speed_limits=None,
        num_solid=3,
        landmark_span=1.0,
        team_reward="mean",
        rewards=spread_rewards,
    ),
    "mpe/simple_tag": Scenario(
        kinds=("agent",) * 3 + ("prey",) + ("obstacle",) * 2,
        radii=(0.075,) * 3 + (0.05,) + (0.2,) * 2,
        drives=(9.0,) * 3 + (16.0,),
        speed_limits=(1.0,) * 3 + (1.3,),
        num_solid=6,
        landmark_span=0.9,
        team_reward="shared",
        rewards=tag_rewards,
    ),
    "mpe/simple_world": Scenario(
        kinds=("agent",) * 3 + ("prey", "obstacle") + ("food",) * 2 + ("forest",) * 2,
        radii=(0.075,) * 3 + (0.045, 0.2) + (0.03,) * 2 + (0.3,) * 2,
        drives=(9.0,) * 3 + (16.0,),
        speed_limits=(1.0,) * 3 + (1.3,),
        num_solid=5,
        landmark_span=0.9,
        team_reward="shared",
        rewards=world_rewards,
    ),
}


def scenario(task_id: str) -> Scenario:
    """The scenario of a task id, or a UserError listing the nearest known ones."""
    if task_id not in SCENARIOS:
        raise UserError(f"unknown MPE task {task_id!r}; {nearest(task_id, SCENARIOS)}")
    return SCENARIOS[task_id]


def task_spec(task_id: str) -> TaskSpec:
    """What agents of the task see and may do, whoever plays the prey. Actions are drives along x and y in [-1, 1]."""
    kind = scenario(task_id)
    return TaskSpec(
        task_id=task_id,
        agents=tuple(f"agent_{index}" for index in range(NUM_CONTROLLED)),
        observation_size=len(observation_fields(kind, 0)),
        action=ActionSpec(kind="continuous", size=2, low=(-1.0, -1.0), high=(1.0, 1.0)),
        max_steps=MAX_STEPS,
        team_reward=kind.team_reward,
    )


def observation_fields(kind: Scenario, observer: int) -> list[tuple[int, int]]:
    """What agent `observer` sees: each number as a pair of rows of `observation_rows`, the first less the second.

    Own velocity and position; landmarks and other agents relative to self, in order; then in spread four zeros (the
    silent communication), in tag and world the prey's velocity (predators only), in world two in-forest flags.
    """
    agents, entities = kind.num_agents, kind.num_entities
    sizes = (2 * agents, 2 * entities, 1)
    _, first_position, nothing, first_flag = accumulate((0, *sizes))

    def velocity(agent: int) -> list[tuple[int, int]]:
        return [(agent, nothing), (agents + agent, nothing)]

    def position(entity: int) -> tuple[int, int]:
        return first_position + entity, first_position + entities + entity

    def relative(entity: int) -> list[tuple[int, int]]:
        return list(zip(position(entity), position(observer), strict=True))

    fields = velocity(observer) + [(row, nothing) for row in position(observer)]
    others = [agent for agent in range(agents) if agent != observer]
    for entity in [*range(agents, entities), *others]:
        fields += relative(entity)
    if not kind.has_prey:
        fields += [(nothing, nothing)] * (2 * len(others))
    elif kind.kinds[observer] != "prey":
        fields += velocity(kind.kinds.index("prey"))
    forests = len(kind.indices("forest"))
    return fields + [(first_flag + observer * forests + index, nothing) for index in range(forests)]


def observation_rows(kind: Scenario, positions: Tensor, velocities: Tensor, touching: Tensor) -> Tensor:
    """Everything visible, one row per number [R, E]: velocities, positions, a zero, and an in-forest flag (1 inside,
    -1 outside) per agent and forest."""
    episodes = positions.shape[-1]
    rows = [velocities.reshape(-1, episodes), positions.reshape(-1, episodes), positions.new_zeros(1, episodes)]
    if forests := kind.indices("forest"):
        inside = touching[:, forests[0] : forests[-1] + 1].reshape(-1, episodes)
        rows.append(inside.to(positions.dtype).mul_(2.0).sub_(1.0))
    return torch.cat(rows)
