"""The particle tasks `mpe/simple_spread`, `mpe/simple_tag` and `mpe/simple_world` behind the `VectorEnv` protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.envs.base import BaseEnv, refuse_opponent
from marl_flow.envs.mpe.physics import ParticleState, advance, build_bodies, contact_forces, separations
from marl_flow.envs.mpe.prey import NATIVE, NetworkPrey
from marl_flow.envs.mpe.restore import opponent_entries, state_from_observations
from marl_flow.envs.mpe.scenarios import (
    NUM_CONTROLLED,
    Scenario,
    find_scenario,
    observation_fields,
    observation_rows,
    task_spec,
)
from marl_flow.interfaces import Policy, TaskSpec, TimeStep

if TYPE_CHECKING:
    import numpy as np


class ParticleEnv(BaseEnv):
    """E episodes of an MPE task. Actions [E, 3, 2] are used as given: the simulator has no bounds of its own.

    opponent: the policy that moves the prey of tag and world. It gets the prey's observations [E, 1, O] and rewards
    [E, 1] of the step before, and moves at the same time as the predators. None means the prey that this package
    trained (`NetworkPrey.native`). The spec's `opponent` is the policy's `name`, or its class's. A policy that draws
    random numbers makes an episode depend on the others in its batch, so a fixed opponent should draw none.

    Where actions require a gradient, rewards and observations carry it, through all steps back to the last reset.
    """

    _steps: Tensor  # [E] steps made in each episode
    _positions: Tensor  # [2, M, E], and so on: episodes last, as in `marl_flow.envs.mpe.physics`
    _velocities: Tensor
    _offsets: Tensor
    _distances: Tensor
    _returns: Tensor
    _prey_observations: Tensor
    _prey_rewards: Tensor

    def __init__(
        self,
        task_id: str,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        opponent: Policy | None = None,
    ) -> None:
        scenario = find_scenario(task_id)
        super().__init__(task_spec(task_id), num_envs, device=device, dtype=dtype)
        if not scenario.has_prey:
            refuse_opponent(task_id, opponent)
        elif opponent is None:
            opponent = NetworkPrey.native(task_id, device=self._device)
        self._scenario, self._opponent = scenario, opponent
        if opponent is not None:
            name = getattr(opponent, "name", type(opponent).__name__)
            self._spec = dataclasses.replace(self._spec, opponent=name)
        self._bodies = build_bodies(
            radii=scenario.radii,
            force_scales=scenario.force_scales,
            speed_limits=scenario.speed_limits,
            num_solid=scenario.num_solid,
            device=self._device,
            dtype=dtype,
        )
        fields = [pair for observer in range(scenario.num_agents) for pair in observation_fields(scenario, observer)]
        self._field_rows, self._origin_rows = torch.tensor(fields, device=self._device).t().contiguous()

    @property
    def scenario(self) -> Scenario:
        return self._scenario

    @property
    def state(self) -> ParticleState:
        """A copy of the state, which `set_state` continues from."""
        self._require_started()
        return ParticleState(
            positions=_transposed(self._positions),
            velocities=_transposed(self._velocities),
            steps=self._steps.clone(),
        )

    @property
    def returns(self) -> Tensor:
        """Undiscounted return so far [E, A] of every agent, the prey included, since `reset` or `set_state`."""
        self._require_started()
        return self._returns.t().clone(memory_format=torch.contiguous_format)

    @property
    def opponent_observations(self) -> Tensor:
        """What the prey observes now, [E, 1, O]."""
        self._require_started()
        if self._opponent is None:
            raise self._error("has no opponent")
        return self._prey_observations

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        """First step of E new episodes: all agents at rest, all coordinates uniform, overlaps allowed."""
        seeds = self._check_seeds(seeds)
        agents, entities = self._scenario.num_agents, self._scenario.num_entities
        draws = seeding.row_uniform(seeds, 0, 2 * entities, device=self._device)
        positions = (2.0 * draws - 1.0).to(self._dtype).t().reshape(entities, 2, -1).transpose(0, 1).contiguous()
        positions[:, agents:] *= self._scenario.landmark_span
        self._reset_opponent(seeds[0])
        steps = torch.zeros(self._num_envs, dtype=torch.int64, device=self._device)
        return self._begin(positions, positions.new_zeros(2, agents, self._num_envs), steps)

    def set_state(self, state: ParticleState) -> TimeStep:
        """Continues from a state as after a reset: no rewards yet; a row restored at the step limit is finished."""
        shapes = {
            "positions": (self._num_envs, self._scenario.num_entities, 2),
            "velocities": (self._num_envs, self._scenario.num_agents, 2),
        }
        self._check_state(state, shapes)
        self._reset_opponent(0)
        return self._begin(
            _transposed(state.positions.to(device=self._device, dtype=self._dtype)),
            _transposed(state.velocities.to(device=self._device, dtype=self._dtype)),
            state.steps.to(device=self._device, dtype=torch.int64, copy=True),
        )

    @property
    def opponent_entries(self) -> Tensor | None:
        """Which entries of the observations depend on the prey, [N, O] bool; None where there is none."""
        return opponent_entries(self._scenario) if self._scenario.has_prey else None

    def restore(self, observations: Tensor, state: Tensor | None, steps: Tensor) -> TimeStep:
        """Continues from the state that the team observes as [E, N, O], after steps [E] of each episode."""
        self._check_restored(observations, state)
        return self.set_state(state_from_observations(self._scenario, observations, steps))

    def step(self, actions: Tensor) -> TimeStep:
        """One step under actions [E, 3, 2]; finished rows do not move and receive zero reward."""
        self._require_started()
        agents = self._scenario.num_agents
        joint_actions = self._joint_actions(actions)
        forces = contact_forces(self._bodies, self._offsets, self._distances)
        before = self._positions[:, :agents]
        moved, velocities = advance(self._bodies, before, self._velocities, joint_actions, forces)
        frozen = self._steps >= self._spec.max_steps
        moved = torch.where(frozen, before, moved)
        self._velocities = torch.where(frozen, self._velocities, velocities)
        self._positions = torch.cat([moved, self._positions[:, agents:]], dim=1)
        self._steps = self._steps + ~frozen
        touching = self._measure()
        rewards = self._scenario.rewards(self._positions, self._distances, touching).masked_fill_(frozen, 0.0)
        self._returns += rewards.detach()
        return self._time_step(rewards, touching)

    def render(self, row: int = 0, size: int = 400) -> np.ndarray:
        """RGB picture uint8 [size, size, 3] of one episode."""
        from marl_flow.envs.mpe.render import draw_frame

        self._check_picture(row, size)
        return draw_frame(
            entities=self._scenario.entities,
            radii=self._scenario.radii,
            positions=self._positions[:, :, row].t().tolist(),
            velocities=self._velocities[:, :, row].t().tolist(),
            caption=f"{self.spec.task_id}   step {int(self._steps[row])}   return {self._team_return(row):.1f}",
            size=size,
        )

    def _team_return(self, row: int) -> float:
        return float(self.spec.team_return(self._returns[:NUM_CONTROLLED, row]))

    def _reset_opponent(self, seed: int) -> None:
        if self._opponent is not None:
            generator = seeding.generator(seed, "opponent", device=self._device)
            self._opponent.reset(self._num_envs, generator)

    def _begin(self, positions: Tensor, velocities: Tensor, steps: Tensor) -> TimeStep:
        self._positions, self._velocities, self._steps = positions, velocities, steps
        self._has_begun = True
        touching = self._measure()
        rewards = positions.new_zeros(self._scenario.num_agents, self._num_envs)
        self._returns = rewards.clone()
        return self._time_step(rewards, touching)

    def _measure(self) -> Tensor:
        """Updates offsets and distances for the new positions; returns which pairs touch, [A, M, E] bool."""
        self._offsets, self._distances = separations(self._positions, self._scenario.num_agents)
        return self._distances < self._bodies.contact_distance

    def _time_step(self, rewards: Tensor, touching: Tensor) -> TimeStep:
        """The controlled agents' time step; the prey's observations and rewards are kept for its next decision."""
        rows = observation_rows(self._scenario, self._positions, self._velocities, touching)
        observed = rows.index_select(0, self._field_rows).sub_(rows.index_select(0, self._origin_rows))
        split = NUM_CONTROLLED * self.spec.observation_size
        if self._opponent is not None:
            self._prey_observations = observed[split:].t().contiguous()[:, None]
            self._prey_rewards = rewards[NUM_CONTROLLED:].t()
        truncated = self._steps >= self._spec.max_steps
        return TimeStep(
            observations=observed[:split].t().contiguous().view(self._num_envs, NUM_CONTROLLED, -1),
            rewards=rewards[:NUM_CONTROLLED].t().contiguous(),
            terminated=torch.zeros_like(truncated),
            truncated=truncated,
        )

    def _joint_actions(self, actions: Tensor) -> Tensor:
        """Actions [2, A, E] of all agents, the prey included."""
        joint = self._check_continuous(actions).to(self._dtype)
        if self._opponent is not None:
            chosen = self._opponent.act(self._prey_observations, None, self._prey_rewards)
            chosen = self._check_continuous(chosen, "the opponent's actions", num_agents=1)
            joint = torch.cat([joint, chosen.to(self._dtype)], dim=1)
        return _transposed(joint)


def make(
    task_id: str, num_envs: int, device: torch.device | str, dtype: torch.dtype | None, opponent: Policy | None
) -> ParticleEnv:
    """The environment of a task; arguments as in `marl_flow.envs.make`."""
    return ParticleEnv(task_id, num_envs, device=device, dtype=dtype or torch.float32, opponent=opponent)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task with its own opponent, without building it."""
    return dataclasses.replace(task_spec(task_id), opponent=NATIVE if find_scenario(task_id).has_prey else None)


def _transposed(value: Tensor) -> Tensor:
    """A copy [Z, Y, X] of values [X, Y, Z]: from episodes first to episodes last, or back."""
    return value.permute(2, 1, 0).clone(memory_format=torch.contiguous_format)
