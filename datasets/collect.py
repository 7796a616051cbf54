"""Roll a policy through a vector environment into an episode store. Knows the two protocols, no environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import Policy, TimeStep, VectorEnv


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
        kept = min(env.num_envs, num_episodes - first)
        yield rollout(env, policy_for(episodes), seeds, generator, dataset_id=dataset_id).select(slice(kept))


@torch.no_grad()
def rollout(
    env: VectorEnv, policy: Policy, seeds: Sequence[int], generator: torch.Generator, *, dataset_id: str
) -> EpisodeStore:
    """One whole episode per seed, actions as the policy gave them; what a row shows after its end is cut off."""
    step = env.reset(seeds)
    policy.reset(len(seeds), generator)
    frames = [step]
    actions: list[Tensor] = []
    rewards: list[Tensor] = []
    lengths = torch.zeros(len(seeds), dtype=torch.int64, device=env.device)
    while not step.finished.all():
        assert len(actions) < env.spec.max_steps, f"{env.spec.task_id} went on after its limit of {env.spec.max_steps}"
        lengths += ~step.finished
        chosen = policy.act(step.observations, step.action_mask, step.rewards)
        step = env.step(chosen)
        frames.append(step)
        actions.append(chosen)
        rewards.append(step.rewards)
    counts = lengths.cpu().numpy()
    mask, state = step.action_mask is not None, step.state is not None
    return EpisodeStore(
        spec=env.spec,
        dataset_id=dataset_id,
        observations=_packed([frame.observations.float() for frame in frames], counts + 1),
        actions=_packed([a.long() if env.spec.action.is_discrete else a.float() for a in actions], counts),
        rewards=_packed([reward.float() for reward in rewards], counts),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        terminated=step.terminated.cpu().numpy(),
        action_mask=_packed([_present(frame, "action_mask") for frame in frames], counts + 1) if mask else None,
        state=_packed([_present(frame, "state").float() for frame in frames], counts + 1) if state else None,
    )


def _present(frame: TimeStep, name: str) -> Tensor:
    value = getattr(frame, name)
    assert value is not None, f"the environment gave `{name}` in some frames only"
    return value


def _packed(rows: list[Tensor], counts: np.ndarray) -> np.ndarray:
    """T tensors [E, ...] as one array [sum counts, ...]: the first counts[e] entries of each row e, end to end."""
    stacked = torch.stack(rows, dim=1)  # [E, T, ...]
    real = torch.arange(len(rows)) < torch.from_numpy(counts)[:, None]
    return stacked[real.to(stacked.device)].cpu().numpy()
