"""Plays a trained run in a PettingZoo loop: nothing of the suite but the policy is needed there.

marl-flow train mpe/simple_spread/expert bc
python examples/play_policy.py runs/native_mpe_simple_spread_expert-v1/bc-default-seed0
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tyro

import marl_flow
from marl_flow.envs.pettingzoo import to_parallel_env


def main(run: tyro.conf.Positional[Path], task: str = "mpe/simple_spread", episodes: int = 5) -> None:
    """Plays episodes one after the other and prints their returns.

    Args:
        run: Run folder or checkpoint file.
        task: The task to play, with the sizes of the one trained on.
        episodes: How many.
    """
    policy = marl_flow.load_policy(run)
    game = to_parallel_env(task)
    for episode in range(episodes):
        observations, _ = game.reset(seed=episode)
        policy.reset()
        rewards = dict.fromkeys(game.agents, 0.0)
        total = 0.0
        while game.agents:
            seen = np.stack([observations[agent] for agent in game.agents])  # [N, O]
            actions = policy.act(seen, rewards=np.array(list(rewards.values())))  # [N, A]
            observations, rewards, *_ = game.step(dict(zip(game.agents, actions, strict=True)))
            total += sum(rewards.values()) / len(rewards)
        print(f"episode {episode}: return {total:.1f}")


if __name__ == "__main__":
    tyro.cli(main)
