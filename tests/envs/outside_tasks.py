"""A package as somebody else would write it: environments of both protocols and action types, and faulty ones."""

from typing import ClassVar

import gymnasium
import numpy as np
import torch
from pettingzoo import ParallelEnv

from marl_flow.interfaces import ActionSpec, TaskSpec, TimeStep, UserError
from marl_flow.seeding import row_uniform

NOT_CALLABLE = 3


class Glide:
    """A `VectorEnv`: two agents push points on a line, both are rewarded for staying near 0. Continuous actions."""

    task_id = "mygame/glide"

    def __init__(self, num_envs: int) -> None:
        self.spec = TaskSpec(
            task_id=self.task_id,
            agents=("left", "right"),
            observation_size=1,
            action=ActionSpec(kind="continuous", size=1, low=(-1.0,), high=(1.0,)),
            max_steps=4,
            team_reward="shared",
        )
        self.num_envs, self.device = num_envs, torch.device("cpu")

    def reset(self, seeds) -> TimeStep:
        if len(seeds) != self.num_envs:
            raise UserError(f"expected {self.num_envs} seeds, got {len(seeds)}")
        self.position = row_uniform(list(seeds), 0, 2).float()
        self.steps = 0
        return self.time_step(torch.zeros(self.num_envs, 2))

    def step(self, actions) -> TimeStep:
        if tuple(actions.shape) != (self.num_envs, 2, 1) or not torch.isfinite(actions).all():
            raise UserError(f"expected finite actions [{self.num_envs}, 2, 1], got {tuple(actions.shape)}")
        running = self.steps < self.spec.max_steps
        self.position = self.position + 0.1 * actions[..., 0] * running
        self.steps += running
        return self.time_step(-self.position.abs().mean(1, keepdim=True).expand(-1, 2) * running)

    def time_step(self, rewards) -> TimeStep:
        ended = torch.full((self.num_envs,), self.steps >= self.spec.max_steps)
        return TimeStep(
            observations=self.position[..., None].clone(),
            rewards=rewards.clone(),
            terminated=torch.zeros_like(ended),
            truncated=ended,
        )


class GlideWithOptions(Glide):
    """Takes all that `envs.make` may pass on."""

    task_id = "mygame/glide-options"

    def __init__(self, num_envs: int, device="cpu", dtype=torch.float32, opponent=None) -> None:
        super().__init__(num_envs)
        self.given = (device, dtype, opponent)


class Duel(ParallelEnv):
    """A `ParallelEnv` with discrete actions: choice 1 is rewarded with 1."""

    metadata: ClassVar = {"name": "duel", "max_steps": 5, "team_reward": "sum"}
    possible_agents: ClassVar = ["a", "b"]

    def observation_space(self, agent):
        return gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(3)

    def observations(self):
        return {agent: self.draw.copy() for agent in self.agents}

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        self.draw = np.random.default_rng(seed).random(2).astype(np.float32)
        return self.observations(), {agent: {} for agent in self.agents}

    def step(self, actions):
        rewards = {agent: self.reward(action) for agent, action in actions.items()}
        flags = dict.fromkeys(self.agents, False)
        return self.observations(), rewards, flags, flags, {agent: {} for agent in self.agents}

    def reward(self, action):
        return float(action == 1)


class Steer(Duel):
    """A `ParallelEnv` with continuous actions."""

    metadata: ClassVar = {"name": "mygame/steer", "max_steps": 5}

    def action_space(self, agent):
        return gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reward(self, action):
        return float(action[0])


class Endless(Duel):
    metadata: ClassVar = {"name": "endless"}


class Unpaid(Duel):
    metadata: ClassVar = {"name": "unpaid", "max_steps": 5, "team_reward": "best"}


class Narrow(Duel):
    def observations(self):
        return dict.fromkeys(self.agents, self.draw[:1])


class Silent(Duel):
    def observations(self):
        return {"a": self.draw}


class Misshapen(Glide):
    def time_step(self, rewards):
        return TimeStep(**{**vars(super().time_step(rewards)), "observations": self.position})


class Unnamed(Glide):
    task_id = "glide"


class Foreign(Glide):
    task_id = "mpe/glide"


def one_too_many(num_envs):
    return Glide(num_envs + 1)


def needs_a_size(size):
    return Glide(size)


def forgets_num_envs():
    return Glide(1)


def returns_text(num_envs):
    return "an environment"


def returns_gymnasium():
    return gymnasium.Env()


def parallel_although_batched(num_envs):
    return Duel()
