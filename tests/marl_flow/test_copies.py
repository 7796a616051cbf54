"""Pickles, deep copies and spawned workers: what travels to another process is what was sent."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marl_flow import baselines, checkpoint, datasets, envs
from marl_flow.commands import data, train
from marl_flow.datasets.store import EpisodeStore
from marl_flow.datasets.windows import WindowSampler
from marl_flow.interfaces import ActingConfig, UserError, WindowSpec
from marl_flow.normalize import KINDS, Normalizers
from marl_flow.policies import UniformPolicy

DATASET = "mpe/simple_spread/random"
COPIES = pytest.mark.parametrize(
    "copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "copy"]
)
Copy = Callable[[Any], Any]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EpisodeStore:
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    return data.build_dataset(DATASET, episodes=6)


def assert_same(found: EpisodeStore, expected: EpisodeStore) -> None:
    assert found.spec == expected.spec and found.dataset_id == expected.dataset_id
    assert found.digest == expected.digest and dict(found.provenance) == dict(expected.provenance)
    assert found.has_final_observation == expected.has_final_observation
    for (name, ours), (_, theirs) in zip(found.arrays(), expected.arrays(), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
        assert not ours.flags.writeable and not np.shares_memory(ours, theirs), name


@COPIES
def test_stores(copied: Copy, store: EpisodeStore) -> None:
    """Catches a store that cannot travel, one that takes its whole data along instead of its place, a selection that
    comes back as the whole dataset, and a place that holds other data by now."""
    assert_same(copied(store), store)
    assert len(pickle.dumps(store)) < 1000
    chosen = store.select(slice(1, 4))
    assert_same(copied(chosen), chosen)
    assert copied(chosen).num_episodes == 3
    data.build_dataset(DATASET, episodes=5, force=True)
    with pytest.raises(UserError, match=r"as it was when its store was pickled .* built again meanwhile"):
        copied(store)


@COPIES
def test_samplers_and_normalizers(copied: Copy, store: EpisodeStore) -> None:
    """Catches a copied sampler that draws other windows, and a copied normaliser that computes something else."""
    sampler = WindowSampler(store, WindowSpec(history=2, horizon=3, discount=0.9), "cpu")
    batches = [each.draw(16, torch.Generator().manual_seed(3)) for each in (sampler, copied(sampler))]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*map(tensors, batches), strict=True))
    values = torch.from_numpy(store.observations[:20].copy())
    for kind in KINDS:
        fitted = Normalizers.fit(kind, store, discount=0.99)
        assert torch.equal(copied(fitted).observations.apply(values), fitted.observations.apply(values))


def tensors(batch: Any) -> list[torch.Tensor]:
    return [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]


@COPIES
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bc", ["hidden=8"]),
        ("ma_td3_bc", ["hidden=8"]),
        ("random", []),
        ("coflow", ["width=16", "token_blocks=1", "inverse_hidden=8", "history=2"]),
    ],
)
def test_algorithms_and_policies(copied: Copy, name: str, settings: list[str], store: EpisodeStore, tmp_path) -> None:
    """Catches a copied method that acts otherwise, and a policy copied in the middle of an episode that has forgotten
    its history, or shares its noise or memory with the original."""
    small = [] if name == "random" else ["updates=2", "batch_size=8"]
    run = train.make_run(DATASET, name, folder=tmp_path / "run", settings=[*small, "tensorboard=false", *settings])
    train.train(run)
    algorithm, _ = checkpoint.load_algorithm(
        checkpoint.latest(tmp_path / "run"), baselines.get, device=torch.device("cpu")
    )
    acting = ActingConfig(
        execution=algorithm.executions[0],
        num_sampling_steps=1 if algorithm.samples_in_steps else None,
        target_return=100.0 if algorithm.return_conditioned else None,
    )
    frames = torch.from_numpy(store.observations[:6, None].copy())
    policies = [algorithm.policy(acting), copied(algorithm).policy(acting)]
    for policy in policies:
        policy.reset(1, torch.Generator().manual_seed(5))
    rewards = torch.zeros(1, store.spec.num_agents)
    for step in range(3):
        assert torch.equal(*(policy.act(frames[step], None, rewards) for policy in policies))
    later = copied(policies[0])
    for step in range(3, 6):  # each plays alone: shared noise would make the second differ
        expected = policies[1].act(frames[step], None, rewards)
        assert torch.equal(policies[0].act(frames[step], None, rewards), expected)
        assert torch.equal(later.act(frames[step], None, rewards), expected)


class Frames(torch.utils.data.Dataset):
    def __init__(self, store: EpisodeStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return self.store.num_steps

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.store.rewards[index])


def test_spawned_workers_read_a_store(store: EpisodeStore) -> None:
    """Catches a store that only a forked worker can read."""
    loader = torch.utils.data.DataLoader(Frames(store), batch_size=9, num_workers=1, multiprocessing_context="spawn")
    found = torch.cat(list(loader))
    assert torch.equal(found, torch.from_numpy(datasets.load(DATASET).rewards.copy()))


@COPIES
@pytest.mark.parametrize("task_id", ["mpe/simple_spread", "smac/3m", "mamujoco/2ant", "mamujoco/v1/Ant/2x4"])
def test_environments(copied: Copy, task_id: str) -> None:
    """Catches an environment that cannot be sent to a worker, and a copy in the middle of an episode that silently
    plays another one: it must go on as the original does, or be refused."""
    env = envs.make(task_id, 2)
    both = [env, copied(env)]
    uniform = UniformPolicy(env.spec.action)

    def play(steps: int) -> None:
        uniform.reset(2, torch.Generator().manual_seed(steps))
        for _ in range(steps):
            mask = both[0].action_mask
            actions = uniform.act(both[0].observations, mask, both[0].rewards)
            both[:] = [each.step(actions) for each in rows]
            assert torch.equal(both[0].observations, both[1].observations)
            assert torch.equal(both[0].rewards, both[1].rewards)

    rows = list(both)
    both = [each.reset([5, 6]) for each in rows]
    play(4)
    if task_id.startswith("mamujoco/"):
        with pytest.raises(UserError, match=rf"{task_id}: expected to copy .* the engine's state"):
            copied(env)
        return
    rows[1] = copied(env)
    play(5)
