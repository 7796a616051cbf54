"""The particle tasks spread, tag and world: entities, observations and rewards, as data and pure functions.

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

from marl_flow import tasks
from marl_flow.config import nearest
from marl_flow.interfaces import TaskSpec, UserError

NUM_CONTROLLED = 3
EntityType = Literal["agent", "prey", "landmark", "obstacle", "food", "forest"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One task: its entities in order (agents first), their bodies, and the reward function.

    entities, radii: type and radius of each entity; force_scales, speed_limits: of each agent; the first num_solid
    entities collide. Landmarks start in [-landmark_span, landmark_span]^2, agents in [-1, 1]^2. `rewards` maps
    (positions [2, M, E], distances [A, M, E], touching [A, M, E] bool) to rewards [A, E].
    """

    entities: tuple[EntityType, ...]
    radii: tuple[float, ...]
    force_scales: tuple[float, ...]
    speed_limits: tuple[float, ...] | None
    num_solid: int
    landmark_span: float
    rewards: Callable[[Tensor, Tensor, Tensor], Tensor]

    @property
    def num_agents(self) -> int:
        return len(self.force_scales)

    @property
    def num_entities(self) -> int:
        return len(self.entities)

    @property
    def has_prey(self) -> bool:
        return "prey" in self.entities

    def indices(self, entity_type: EntityType) -> list[int]:
        return [index for index, name in enumerate(self.entities) if name == entity_type]


def spread_rewards(positions: Tensor, distances: Tensor, touching: Tensor) -> Tensor:
    """Rewards [3, E]: min(1 / d, 10) summed over landmarks, d of the closest agent, minus 5 for each agent touched."""
    coverage = distances[:, 3:].amin(0).reciprocal().clamp(max=10.0).sum(0)
    return coverage - 5.0 * touching[:, :3].sum(1, dtype=distances.dtype)


def _predator_reward(distances: Tensor, touching: Tensor, bonus: float) -> Tensor:
    """Reward [E] of every predator: minus a tenth of all distances to the prey, plus a bonus per contact."""
    return bonus * touching[:3, 3].sum(0, dtype=distances.dtype) - 0.1 * distances[:3, 3].sum(0)


def _border_penalty(positions: Tensor) -> Tensor:
    """Penalty [E] for the prey's position, summed over axes: 0 below 0.9, 10 (|x| - 0.9) below 1, then
    min(exp(2 |x| - 2), 10)."""
    x = positions[:, 3].abs()
    outside = (2.0 * x - 2.0).exp().clamp(max=10.0)
    return torch.where(x < 1.0, (10.0 * (x - 0.9)).clamp(min=0.0), outside).sum(0)


def tag_rewards(positions: Tensor, distances: Tensor, touching: Tensor) -> Tensor:
    """Rewards [4, E]: the three predators' (equal), then the prey's: minus theirs, minus a penalty near the border."""
    predator = _predator_reward(distances, touching, 10.0)
    return torch.stack([predator, predator, predator, -predator - _border_penalty(positions)])


def world_rewards(positions: Tensor, distances: Tensor, touching: Tensor) -> Tensor:
    """Rewards [4, E]: as in tag with a bonus of 5 and twice the border penalty; the prey gets 2 per food touched and
    a twentieth of the distance to the nearest food (with a plus sign, as published)."""
    predator = _predator_reward(distances, touching, 5.0)
    food = 2.0 * touching[3, 5:7].sum(0, dtype=distances.dtype) + 0.05 * distances[3, 5:7].amin(0)
    return torch.stack([predator, predator, predator, food - predator - 2.0 * _border_penalty(positions)])


SCENARIOS: dict[str, Scenario] = {
    "mpe/simple_spread": Scenario(
        entities=("agent",) * 3 + ("landmark",) * 3,
        radii=(0.15,) * 3 + (0.05,) * 3,
        force_scales=(5.0,) * 3,
        speed_limits=None,
        num_solid=3,
        landmark_span=1.0,
        rewards=spread_rewards,
    ),
    "mpe/simple_tag": Scenario(
        entities=("agent",) * 3 + ("prey",) + ("obstacle",) * 2,
        radii=(0.075,) * 3 + (0.05,) + (0.2,) * 2,
        force_scales=(9.0,) * 3 + (16.0,),
        speed_limits=(1.0,) * 3 + (1.3,),
        num_solid=6,
        landmark_span=0.9,
        rewards=tag_rewards,
    ),
    "mpe/simple_world": Scenario(
        entities=("agent", "agent", "agent", "prey", "obstacle", "food", "food", "forest", "forest"),
        radii=(0.075,) * 3 + (0.045, 0.2) + (0.03,) * 2 + (0.3,) * 2,
        force_scales=(9.0,) * 3 + (16.0,),
        speed_limits=(1.0,) * 3 + (1.3,),
        num_solid=5,
        landmark_span=0.9,
        rewards=world_rewards,
    ),
}


def find_scenario(task_id: str) -> Scenario:
    """The scenario of a task id, or a UserError listing the nearest known ones."""
    if task_id not in SCENARIOS:
        raise UserError(f"unknown MPE task {task_id!r}; {nearest(task_id, SCENARIOS)}")
    return SCENARIOS[task_id]


def task_spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task without its opponent. Actions are forces along x and y in [-1, 1]."""
    find_scenario(task_id)
    return tasks.find_card(task_id).spec


def observation_fields(scenario: Scenario, observer: int) -> list[tuple[int, int]]:
    """What agent `observer` observes: each number as a pair of rows of `observation_rows`, the first minus the second.

    Own velocity and position; landmarks and other agents relative to self, in order; then in spread four zeros (the
    silent communication), in tag and world the prey's velocity (predators only), in world two in-forest flags.
    """
    agents, entities = scenario.num_agents, scenario.num_entities
    sizes = (2 * agents, 2 * entities, 1)
    _, first_position, zero, first_flag = accumulate((0, *sizes))

    def velocity(agent: int) -> list[tuple[int, int]]:
        return [(agent, zero), (agents + agent, zero)]

    def position(entity: int) -> tuple[int, int]:
        return first_position + entity, first_position + entities + entity

    def relative(entity: int) -> list[tuple[int, int]]:
        return list(zip(position(entity), position(observer), strict=True))

    fields = velocity(observer) + [(row, zero) for row in position(observer)]
    others = [agent for agent in range(agents) if agent != observer]
    for entity in [*range(agents, entities), *others]:
        fields += relative(entity)
    if not scenario.has_prey:
        fields += [(zero, zero)] * (2 * len(others))
    elif scenario.entities[observer] != "prey":
        fields += velocity(scenario.entities.index("prey"))
    forests = len(scenario.indices("forest"))
    return fields + [(first_flag + observer * forests + index, zero) for index in range(forests)]


def observation_rows(scenario: Scenario, positions: Tensor, velocities: Tensor, touching: Tensor) -> Tensor:
    """Everything that can be observed, one row per number [R, E]: velocities, positions, a zero, and an in-forest flag
    (1 inside, -1 outside) per agent and forest."""
    episodes = positions.shape[-1]
    rows = [velocities.reshape(-1, episodes), positions.reshape(-1, episodes), positions.new_zeros(1, episodes)]
    if forests := scenario.indices("forest"):
        inside = touching[:, forests[0] : forests[-1] + 1].reshape(-1, episodes)
        rows.append(inside.to(positions.dtype).mul_(2.0).sub_(1.0))
    return torch.cat(rows)
