"""Roll a policy through a vector environment into an episode store. Knows the two protocols, no environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import Policy, TaskSpec, TimeStep, VectorEnv
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
        kept = min(env.num_envs, num_episodes - first)
        yield collect_batch(env, policy_for(episodes), seeds, generator, dataset_id=dataset_id).select(slice(kept))


def collect_batch(
    env: VectorEnv, policy: Policy, seeds: Sequence[int], generator: torch.Generator, *, dataset_id: str
) -> EpisodeStore:
    """One whole episode per seed, actions as the policy gave them."""
    recording = Recording(env.spec)
    policy.reset(len(seeds), generator)
    rollout(env, policy, seeds, recording.observe)
    return recording.store(dataset_id)


class Recording:
    """Frames and actions of one batch of episodes, as `rollout` shows them to an observer."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.frames: list[TimeStep] = []
        self.actions: list[Tensor] = []

    def observe(self, step: TimeStep, actions: Tensor | None) -> None:
        self.frames.append(step)
        if actions is not None:
            self.actions.append(actions)

    def store(self, dataset_id: str) -> EpisodeStore:
        """The episodes in memory; what a row shows after its end is cut off."""
        last, discrete = self.frames[-1], self.spec.action.is_discrete
        counts = torch.stack([~frame.finished for frame in self.frames]).sum(0).cpu().numpy()
        mask, state = last.action_mask is not None, last.state is not None
        return EpisodeStore(
            spec=self.spec,
            dataset_id=dataset_id,
            observations=_packed([frame.observations.float() for frame in self.frames], counts + 1),
            actions=_packed([a.long() if discrete else a.float() for a in self.actions], counts),
            rewards=_packed([frame.rewards.float() for frame in self.frames[1:]], counts),
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            terminated=last.terminated.cpu().numpy(),
            action_mask=_packed([_present(f, "action_mask") for f in self.frames], counts + 1) if mask else None,
            state=_packed([_present(f, "state").float() for f in self.frames], counts + 1) if state else None,
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
