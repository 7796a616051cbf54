"""A small task, stores made by hand, and an environment whose every number can be said in advance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import ActionSpec, TaskSpec, TimeStep

DATASET_ID = "native/mpe/simple_spread/expert-v1"


def task(
    *, discrete: bool = False, state: bool = False, agents: int = 2, max_steps: int = 6, bound: float = 1.0
) -> TaskSpec:
    action = (
        ActionSpec(kind="discrete", size=5)
        if discrete
        else ActionSpec(kind="continuous", size=2, low=(-bound, -bound / 2), high=(bound, bound / 2))
    )
    return TaskSpec(
        task_id="mpe/simple_spread",
        agents=tuple(f"agent_{i}" for i in range(agents)),
        observation_size=3,
        action=action,
        max_steps=max_steps,
        team_reward="mean",
        state_size=4 if state else None,
    )


def numbered_store(
    lengths: Sequence[int], *, discrete: bool = False, final: bool = True, terminated: Sequence[bool] | None = None
) -> EpisodeStore:
    """Entries that name themselves: frame t of episode k holds 100 k + t, agent i adds 0.25 i; so do actions and
    rewards, which are also negative. Discrete tasks have state and masks.
    """
    spec = task(discrete=discrete, state=discrete, bound=1e5)
    frames = np.concatenate([100 * k + np.arange(t + 1) for k, t in enumerate(lengths)]).astype(np.float32)
    if not final:
        frames[np.cumsum(np.asarray(lengths) + 1) - 1] -= 1
    steps = np.concatenate([100 * k + np.arange(t) for k, t in enumerate(lengths)]).astype(np.float32)
    agent = 0.25 * np.arange(spec.num_agents, dtype=np.float32)
    optional = {}
    if discrete:
        optional["state"] = np.repeat(frames[:, None], 4, axis=1)
        optional["action_mask"] = (frames[:, None, None] + np.zeros((1, 2, 1))) % 5 <= np.arange(5)
    return EpisodeStore(
        spec=spec,
        dataset_id=DATASET_ID,
        observations=np.repeat((frames[:, None] + agent)[..., None], 3, axis=-1),
        actions=(steps[:, None] + np.zeros((1, 2))).astype(np.int16) % 5
        if discrete
        else -np.repeat((steps[:, None] + agent)[..., None], 2, axis=-1),
        rewards=-(steps[:, None] + agent),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        terminated=np.zeros(len(lengths), bool) if terminated is None else np.array(terminated),
        has_final_observation=final,
        provenance={"made_by": "hand"},
        **optional,
    )


class CountingEnv:
    """Episode with seed s lasts 2 + s % 3 steps (of at most 4); odd seeds end in termination, even in the time limit.

    Observations are (seed, steps done, sum of the agent's actions so far); the reward is the agent's first action.
    """

    def __init__(self, num_envs: int) -> None:
        self.spec, self.num_envs, self.device = task(max_steps=4), num_envs, torch.device("cpu")
        self.seen_seeds: list[tuple[int, ...]] = []

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        assert len(seeds) == self.num_envs
        self.seen_seeds.append(tuple(seeds))
        self.seed = torch.tensor([seed % 1000 for seed in seeds])
        self.done = torch.zeros(self.num_envs, dtype=torch.int64)
        self.total = torch.zeros(self.num_envs, 2)
        return self._step(torch.zeros(self.num_envs, 2))

    def step(self, actions: Tensor) -> TimeStep:
        live = self.done < 2 + self.seed % 3
        self.done += live
        self.total += actions.sum(-1) * live[:, None]
        return self._step(actions[..., 0] * live[:, None])

    def _step(self, rewards: Tensor) -> TimeStep:
        finished, odd = self.done >= 2 + self.seed % 3, self.seed % 2 == 1
        seen = torch.stack(torch.broadcast_tensors(self.seed[:, None], self.done[:, None], self.total), dim=-1)
        return TimeStep(
            observations=seen.float(), rewards=rewards, terminated=finished & odd, truncated=finished & ~odd
        )


@pytest.fixture
def make_store() -> Callable[..., EpisodeStore]:
    return numbered_store


@pytest.fixture
def make_task() -> Callable[..., TaskSpec]:
    return task


@pytest.fixture
def counting_env() -> type[CountingEnv]:
    return CountingEnv
