"""Rolls a policy through a vector environment into episode stores. Knows the two protocols, no environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from marl_flow import seeding
from marl_flow.datasets.recorder import Recorder
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import Policy, VectorEnv
from marl_flow.rollout import rollout


def collect(
    env: VectorEnv,
    policy_for: Callable[[range], Policy],
    *,
    num_episodes: int,
    seed: int,
    generator: torch.Generator,
    dataset_id: str,
) -> Iterator[EpisodeStore]:
    """Stores of `env.num_envs` episodes each (the last one fewer), `num_episodes` in all.

    `policy_for` names the policy that plays a batch, given its episode numbers. Every batch steps all rows of the
    environment, surplus ones included, so that the numbers of an episode do not depend on how many follow it.
    """
    for first in range(0, num_episodes, env.num_envs):
        episodes = range(first, first + env.num_envs)
        seeds = seeding.environment_seeds("collect", seed, env.num_envs, start=first)
        batch = collect_batch(env, policy_for(episodes), seeds, generator, dataset_id=dataset_id)
        yield batch.select(slice(min(env.num_envs, num_episodes - first)))


def collect_batch(
    env: VectorEnv, policy: Policy, seeds: Sequence[int], generator: torch.Generator, *, dataset_id: str
) -> EpisodeStore:
    """One whole episode per seed, actions as the policy gave them."""
    recorder = Recorder(env)
    policy.reset(len(seeds), generator)
    rollout(recorder, policy, seeds)
    return recorder.take(dataset_id)
