"""Data of your own: arrays that you already have become a dataset that verifies, trains and reports.

python examples/own_data.py

A dataset that is there already is used again; to write another, remove its folder below ~/.cache/marl_flow/datasets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

import marl_flow
from marl_flow import datasets, envs
from marl_flow.datasets import catalog
from marl_flow.envs.pettingzoo import to_parallel_env

TASK = "mpe/simple_spread"
DATASET = "user/mpe/simple_spread/wandering-v1"


def my_episodes(count: int) -> Iterator[dict[str, np.ndarray]]:
    """Stands for what you have: for each episode of T steps observations [T + 1, N, O], actions [T, N, A] and rewards
    [T, N], and whether a rule ended the episode. Here agents wander with a random walk of their actions."""
    draw, game = np.random.default_rng(0), to_parallel_env(TASK)
    for number in range(count):
        seen, _ = game.reset(seed=number)
        observations, actions, rewards = [np.stack(list(seen.values()))], [], []
        action = np.zeros((len(game.agents), 2))
        while game.agents:
            action = np.clip(action + draw.normal(scale=0.3, size=action.shape), -1, 1)
            seen, reward, *_ = game.step(dict(zip(game.agents, action.astype(np.float32), strict=True)))
            observations.append(np.stack(list(seen.values())))
            actions.append(action)
            rewards.append(list(reward.values()))
        yield {
            "observations": np.array(observations),
            "actions": np.array(actions),
            "rewards": np.array(rewards),
            "terminated": False,  # ended by the time limit, not by a rule
        }


def main(updates: int = 500, data_episodes: int = 500, episodes: int = 100, out: Path = Path("runs/own_data")) -> None:
    """Writes the dataset, trains BC on it and evaluates it.

    Args:
        updates: Gradient steps.
        data_episodes: Episodes to write, where the dataset is not there yet.
        episodes: Evaluation episodes.
        out: Run folder.
    """
    if not catalog.folder_of(DATASET).exists():  # otherwise the data of the last time are used again
        datasets.write(DATASET, my_episodes(data_episodes), envs.spec(TASK))
    print(datasets.load(DATASET))
    # training plays some of the stored steps again first, and refuses data that do not fit the task
    run = marl_flow.train(DATASET, "bc", out=out, updates=updates)
    for row in marl_flow.evaluate(run, episodes=episodes):
        print(f"BC: return {row.team_return_mean:.1f}")


if __name__ == "__main__":
    tyro.cli(main)
