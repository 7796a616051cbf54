"""The particle tasks `mpe/simple_spread`, `mpe/simple_tag` and `mpe/simple_world` behind the `VectorEnv` protocol."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.envs.mpe.physics import ParticleState, advance, build_bodies, contact_forces, separations
from marl_flow.envs.mpe.prey import NATIVE, NetworkPrey
from marl_flow.envs.mpe.restore import opponent_entries, state_of
from marl_flow.envs.mpe.scenarios import (
    MAX_STEPS,
    NUM_CONTROLLED,
    Scenario,
    observation_fields,
    observation_rows,
    scenario,
    task_spec,
)
from marl_flow.interfaces import Policy, TaskSpec, TimeStep, UserError

if TYPE_CHECKING:
    import numpy as np


class ParticleEnv:
    """E episodes of an MPE task. Actions [E, 3, 2] are used as given: the simulator has no bounds of its own.

    opponent: who moves the prey of tag and world, seeing [E, 1, O] and the prey's own rewards [E, 1]; it acts on
    the observation of the step before and moves together with the predators. None takes the task's own, the prey that
    this package trained (`NetworkPrey.native`); its name, else its class's, is the spec's `opponent`. A policy that
    draws random numbers ties the episodes of a batch together, so a fixed opponent should not.

    Where actions require a gradient, rewards and observations carry it, through all steps back to the last reset.
    """

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
        kind = scenario(task_id)
        if num_envs < 1:
            raise UserError(f"{task_id}: expected at least one environment, got num_envs={num_envs}")
        if dtype not in (torch.float32, torch.float64):
            raise UserError(f"{task_id}: expected dtype float32 or float64, got {dtype}")
        if opponent is not None and not kind.has_prey:
            raise UserError(f"{task_id} has no opponent: leave `opponent` out")
        self._spec = task_spec(task_id)
        self._scenario = kind
        self._num_envs = num_envs
        self._device = torch.empty(0, device=device).device
        self._dtype = dtype
        if kind.has_prey and opponent is None:
            opponent = NetworkPrey.native(task_id, device=self._device)
        self._opponent = opponent
        if opponent is not None:
            name = getattr(opponent, "name", type(opponent).__name__)
            self._spec = dataclasses.replace(self._spec, opponent=name)
        self._bodies = build_bodies(
            radii=kind.radii,
            drives=kind.drives,
            speed_limits=kind.speed_limits,
            num_solid=kind.num_solid,
            device=self._device,
            dtype=dtype,
        )
        fields = [pair for observer in range(kind.num_agents) for pair in observation_fields(kind, observer)]
        self._field_rows, self._origin_rows = torch.tensor(fields, device=self._device).t().contiguous()
        self._steps: Tensor | None = None

    @property
    def spec(self) -> TaskSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def scenario(self) -> Scenario:
        return self._scenario

    @property
    def state(self) -> ParticleState:
        """A copy of the state, which `set_state` takes back."""
        steps = self._started()
        return ParticleState(
            positions=_swapped(self._positions),
            velocities=_swapped(self._velocities),
            steps=steps.clone(),
        )

    @property
    def returns(self) -> Tensor:
        """Undiscounted reward so far [E, A] of every agent, the prey included, since `reset` or `set_state`."""
        self._started()
        return self._returns.t().clone(memory_format=torch.contiguous_format)

    @property
    def opponent_observations(self) -> Tensor:
        """What the prey sees now, [E, 1, O]."""
        self._started()
        if self._opponent is None:
            raise UserError(f"{self.spec.task_id} has no opponent")
        return self._prey_observations

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        """First step of E new episodes: everybody at rest, all coordinates uniform, overlaps allowed."""
        seeds = [int(seed) for seed in seeds]
        if len(seeds) != self._num_envs:
            raise UserError(f"{self.spec.task_id}: expected {self._num_envs} seeds, got {len(seeds)}")
        if min(seeds) < 0 or max(seeds) >= 2**63:
            raise UserError(f"{self.spec.task_id}: seeds must be in [0, 2**63), got {min(seeds)} to {max(seeds)}")
        agents, entities = self._scenario.num_agents, self._scenario.num_entities
        draws = seeding.row_uniform(seeds, 0, 2 * entities, device=self._device)
        positions = (2.0 * draws - 1.0).to(self._dtype).t().reshape(entities, 2, -1).transpose(0, 1).contiguous()
        positions[:, agents:] *= self._scenario.landmark_span
        self._reset_opponent(seeds[0])
        steps = torch.zeros(self._num_envs, dtype=torch.int64, device=self._device)
        return self._begin(positions, positions.new_zeros(2, agents, self._num_envs), steps)

    def set_state(self, state: ParticleState) -> TimeStep:
        """Continues from a state as after a reset: no rewards yet; a row restored at the step limit is finished."""
        expected = {
            "positions": (self._num_envs, self._scenario.num_entities, 2),
            "velocities": (self._num_envs, self._scenario.num_agents, 2),
            "steps": (self._num_envs,),
        }
        for name, shape in expected.items():
            value = getattr(state, name)
            if tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"{self.spec.task_id}: expected finite state.{name} of shape {shape}, got {_describe(value)}"
                )
        if state.steps.is_floating_point() or int(state.steps.min()) < 0:
            raise UserError(f"{self.spec.task_id}: state.steps must be integers from 0, got {_describe(state.steps)}")
        self._reset_opponent(0)
        return self._begin(
            _swapped(state.positions.to(device=self._device, dtype=self._dtype)),
            _swapped(state.velocities.to(device=self._device, dtype=self._dtype)),
            state.steps.to(device=self._device, dtype=torch.int64, copy=True),
        )

    @property
    def opponent_entries(self) -> Tensor | None:
        """Which entries of the observations tell of the prey, [N, O] bool; None where there is none."""
        return opponent_entries(self._scenario) if self._scenario.has_prey else None

    def restore(self, observations: Tensor, state: Tensor | None, steps: Tensor) -> TimeStep:
        """Continues from the state that the team sees as observations [E, N, O], after steps [E] of each episode."""
        shape = (self._num_envs, self.spec.num_agents, self.spec.observation_size)
        if tuple(observations.shape) != shape or state is not None:
            raise UserError(
                f"{self.spec.task_id}: expected observations of shape {shape} and no state to restore, "
                f"got {_describe(observations)}{'' if state is None else f' and a state, {_describe(state)}'}"
            )
        return self.set_state(state_of(self._scenario, observations, steps))

    def step(self, actions: Tensor) -> TimeStep:
        """One step under actions [E, 3, 2]; finished rows do not move and are paid nothing."""
        steps = self._started()
        agents = self._scenario.num_agents
        drives = self._joint_actions(actions)
        forces = contact_forces(self._bodies, self._offsets, self._distances)
        before = self._positions[:, :agents]
        moved, velocities = advance(self._bodies, before, self._velocities, drives, forces)
        frozen = steps >= MAX_STEPS
        moved = torch.where(frozen, before, moved)
        self._velocities = torch.where(frozen, self._velocities, velocities)
        self._positions = torch.cat([moved, self._positions[:, agents:]], dim=1)
        self._steps = steps + ~frozen
        touching = self._measure()
        rewards = self._scenario.rewards(self._positions, self._distances, touching).masked_fill_(frozen, 0.0)
        self._returns += rewards.detach()
        return self._time_step(rewards, touching)

    def render(self, row: int = 0, size: int = 400) -> np.ndarray:
        """RGB picture uint8 [size, size, 3] of one episode."""
        from marl_flow.envs.mpe.render import draw_frame

        if not 0 <= row < self._num_envs:
            raise UserError(f"{self.spec.task_id}: expected a row from 0 to {self._num_envs - 1}, got {row}")
        if size < 64:
            raise UserError(f"{self.spec.task_id}: expected a picture of at least 64 pixels, got {size}")
        steps = self._started()
        return draw_frame(
            kinds=self._scenario.kinds,
            radii=self._scenario.radii,
            positions=self._positions[:, :, row].t().tolist(),
            velocities=self._velocities[:, :, row].t().tolist(),
            caption=f"{self.spec.task_id}   step {int(steps[row])}   return {self._team_return(row):.1f}",
            size=size,
        )

    def _team_return(self, row: int) -> float:
        return float(self.spec.team_return(self._returns[:NUM_CONTROLLED, row]))

    def _started(self) -> Tensor:
        """The step counters [E], which exist once an episode has begun."""
        if self._steps is None:
            raise UserError(f"{self.spec.task_id}: no episode has begun; call reset(seeds) first")
        return self._steps

    def _reset_opponent(self, seed: int) -> None:
        if self._opponent is not None:
            generator = seeding.generator(seed, "opponent", device=self._device)
            self._opponent.reset(self._num_envs, generator)

    def _begin(self, positions: Tensor, velocities: Tensor, steps: Tensor) -> TimeStep:
        self._positions, self._velocities, self._steps = positions, velocities, steps
        touching = self._measure()
        rewards = positions.new_zeros(self._scenario.num_agents, self._num_envs)
        self._returns = rewards.clone()
        return self._time_step(rewards, touching)

    def _measure(self) -> Tensor:
        """Measures the new positions for rewards and the next contacts; returns who touches whom, [A, M, E] bool."""
        self._offsets, self._distances = separations(self._positions, self._scenario.num_agents)
        return self._distances < self._bodies.reach

    def _time_step(self, rewards: Tensor, touching: Tensor) -> TimeStep:
        """What the controlled agents are told; what the prey is told is kept for its next decision."""
        rows = observation_rows(self._scenario, self._positions, self._velocities, touching)
        seen = rows.index_select(0, self._field_rows).sub_(rows.index_select(0, self._origin_rows))
        split = NUM_CONTROLLED * self.spec.observation_size
        if self._opponent is not None:
            self._prey_observations = seen[split:].t().contiguous()[:, None]
            self._prey_rewards = rewards[NUM_CONTROLLED:].t()
        truncated = self._started() >= MAX_STEPS
        return TimeStep(
            observations=seen[:split].t().contiguous().view(self._num_envs, NUM_CONTROLLED, -1),
            rewards=rewards[:NUM_CONTROLLED].t().contiguous(),
            terminated=torch.zeros_like(truncated),
            truncated=truncated,
        )

    def _joint_actions(self, actions: Tensor) -> Tensor:
        """Actions [2, A, E] of everybody, the prey's included."""
        drives = self._checked(actions, (self._num_envs, NUM_CONTROLLED, 2), "actions")
        if self._opponent is not None:
            chosen = self._opponent.act(self._prey_observations, None, self._prey_rewards)
            drives = torch.cat([drives, self._checked(chosen, (self._num_envs, 1, 2), "the opponent's actions")], dim=1)
        return _swapped(drives)

    def _checked(self, actions: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
        if tuple(actions.shape) != shape or not actions.is_floating_point() or actions.device != self._device:
            raise UserError(
                f"{self.spec.task_id}: expected {name} as floats of shape {shape} on {self._device}, "
                f"got {_describe(actions)}"
            )
        if not math.isfinite(float(actions.detach().abs().amax())):
            raise UserError(f"{self.spec.task_id}: expected finite {name}, got {_describe(actions)}; check the policy")
        return actions.to(self._dtype)


def make(
    task_id: str, num_envs: int, device: torch.device | str, dtype: torch.dtype | None, opponent: Policy | None
) -> ParticleEnv:
    """The environment of a task; arguments as in `marl_flow.envs.make`."""
    return ParticleEnv(task_id, num_envs, device=device, dtype=dtype or torch.float32, opponent=opponent)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task with its own opponent, without building it."""
    return dataclasses.replace(task_spec(task_id), opponent=NATIVE if scenario(task_id).has_prey else None)


def _swapped(value: Tensor) -> Tensor:
    """A copy [Z, Y, X] of values [X, Y, Z]: between episodes first and episodes last."""
    return value.permute(2, 1, 0).clone(memory_format=torch.contiguous_format)


def _describe(value: Tensor) -> str:
    """Shape, type, place and, if any, the number of non-finite entries."""
    broken = int((~torch.isfinite(value)).sum())
    text = f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
    return f"{text} with {broken} non-finite entries" if broken else text
