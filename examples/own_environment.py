"""A task of your own, written as a PettingZoo environment: checked, played into a dataset, learned from, evaluated.

python examples/own_environment.py
marl-flow data list --origin user

A recording that is there already is used again; to make another, remove its folder below ~/.cache/marl_flow/datasets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from pettingzoo import ParallelEnv
from torch import Tensor

import marl_flow
from marl_flow import datasets, envs
from marl_flow.datasets import catalog
from marl_flow.envs.checks import check_vector_env

TASK = "own_environment:Rendezvous"  # module:factory
DATASET = "user/mygame/rendezvous/noisy-v1"


# task: begin
class Rendezvous(ParallelEnv[str, np.ndarray, np.ndarray]):
    """Two agents on a line meet. Each sees its own place and the way to the other; the reward is minus the distance."""

    metadata: dict[str, Any] = {"name": "mygame/rendezvous", "max_steps": 20}  # noqa: RUF012
    possible_agents = ["left", "right"]  # noqa: RUF012

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.agents = list(self.possible_agents)
        self.places, self.steps = np.random.default_rng(seed).uniform([-2, 0], [0, 2]), 0
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict, dict, dict, dict, dict]:
        self.places = self.places + 0.2 * np.array([np.clip(actions[a][0], -1, 1) for a in self.possible_agents])
        self.steps += 1
        acted, distance = self.agents, float(abs(self.places[0] - self.places[1]))
        met, late = distance < 0.1, self.steps == self.metadata["max_steps"]
        self.agents = [] if met or late else acted
        return (
            self._observe(),
            dict.fromkeys(acted, -distance),
            dict.fromkeys(acted, met),
            dict.fromkeys(acted, late and not met),
            {agent: {} for agent in acted},
        )

    def _observe(self) -> dict[str, np.ndarray]:
        left, right = self.places
        return {"left": np.float32([left, right - left]), "right": np.float32([right, left - right])}


# task: end


def main(
    updates: int = 500, data_episodes: int = 500, episodes: int = 100, out: Path = Path("runs/rendezvous")
) -> None:
    """Checks the task, records a noisy policy, trains BC on the recording and evaluates it.

    Args:
        updates: Gradient steps.
        data_episodes: Episodes to record, where the dataset is not there yet.
        episodes: Evaluation episodes.
        out: Run folder.
    """
    check_vector_env(lambda rows: envs.make(TASK, rows))
    if not catalog.folder_of(DATASET).exists():  # otherwise the recording of the last time is used again
        env = datasets.Recorder(envs.make(TASK, num_envs=data_episodes))
        noise = torch.Generator().manual_seed(0)
        step = env.reset(range(data_episodes))
        while not step.finished.all():
            step = env.step(noisy_policy(step.observations, noise))
        env.save(DATASET)
    data = datasets.load(DATASET).team_returns()
    run = marl_flow.train(DATASET, "bc", task=TASK, out=out, updates=updates)
    for row in marl_flow.evaluate(run, task=TASK, episodes=episodes):
        print(f"BC: return {row.team_return_mean:.2f}, the data: {data.mean():.2f}")


def noisy_policy(observations: Tensor, generator: torch.Generator) -> Tensor:
    """Actions [E, N, 1]: towards the other, with noise."""
    towards = observations[..., 1:].sign()
    return (towards + 0.5 * torch.randn(towards.shape, generator=generator)).clamp(-1, 1)


if __name__ == "__main__":
    tyro.cli(main)
