"""Collecting episodes: alignment of frames, actions and rewards, variable lengths, seeds."""

from __future__ import annotations

import numpy as np
import torch

from marl_flow import seeding
from marl_flow.datasets.collect import collect, collect_batch


class Scripted:
    """Action t of every agent in row e is (t + 1) / 8 in the first number and e / 8 in the second."""

    network_passes = 0

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.steps, self.rows, self.rewards = 0, torch.arange(num_envs), []

    def act(self, observations, action_mask, rewards):
        self.steps += 1
        self.rewards.append(rewards)
        both = torch.stack([torch.full_like(self.rows, self.steps), self.rows], dim=-1) / 8
        return both[:, None].expand(-1, 2, -1)


def test_episodes_end_where_the_environment_says(counting_env) -> None:
    """Catches frozen rows stored as steps, a lost final frame, and time limits stored as termination."""
    store = collect_batch(counting_env(4), Scripted(), [3, 4, 5, 7], torch.Generator(), dataset_id="x")
    assert store.lengths.tolist() == [2, 3, 4, 3]
    assert store.terminated.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(store.observations[:, 0, 0], [3] * 3 + [4] * 4 + [5] * 5 + [7] * 4)
    np.testing.assert_array_equal(store.observations[:, 0, 1], [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3])


def test_actions_meet_their_rewards(counting_env) -> None:
    """Catches rewards or actions shifted by a step, and rows of one episode under another."""
    policy = Scripted()
    store = collect_batch(counting_env(3), policy, [3, 4, 5], torch.Generator(), dataset_id="x")
    np.testing.assert_array_equal(store.actions[:, 1, 0] * 8, [1, 2, 1, 2, 3, 1, 2, 3, 4])
    np.testing.assert_array_equal(store.actions[:, 1, 1] * 8, [0, 0, 1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(store.rewards[:, 1], store.actions[:, 1, 0])
    assert [float(r[2, 0]) * 8 for r in policy.rewards] == [0, 1, 2, 3]  # the policy sees the previous step's reward


def test_batches_add_up_and_use_collection_seeds(counting_env) -> None:
    """Catches repeated seeds between batches, a surplus of episodes, and seeds shared with evaluation."""
    env, asked = counting_env(4), []

    def policy_for(episodes: range) -> Scripted:
        asked.append(list(episodes))
        return Scripted()

    pieces = list(
        collect(env, policy_for, num_episodes=10, seed=5, generator=torch.Generator(), dataset_id="native/a/b/c-v1")
    )
    assert [piece.num_episodes for piece in pieces] == [4, 4, 2]
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert sum(env.seen_seeds, ()) == seeding.environment_seeds("collect", 5, 12)
    assert pieces[2].observations[0, 0, 0] == seeding.environment_seeds("collect", 5, 9)[8] % 1000
