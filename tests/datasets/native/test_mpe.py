"""The shipped recipes of the twelve particle datasets, rolled out in the real environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from marl_flow import envs
from marl_flow.benchmarks import suite
from marl_flow.datasets import native

QUALITIES = ("expert", "medium", "medium-replay", "random")
TASKS = [task_id for task_id in envs.TASKS if task_id.startswith("mpe/")]
DATASETS = [f"{task_id}/{quality}" for task_id in TASKS for quality in QUALITIES]


@pytest.mark.parametrize(
    "dataset", [pytest.param(name, marks=() if name.endswith("/expert") else pytest.mark.slow) for name in DATASETS]
)
def test_mean_return_is_the_published_one(dataset: str, tmp_path: Path) -> None:
    """Catches a policy file, prey, noise level or environment that drifted from what the recipe was calibrated with."""
    store = native.build(dataset, tmp_path / "data", envs.make)
    reference = suite.references()[store.spec.task_id]
    tolerance = 0.05 * (reference.expert - reference.random)
    assert abs(store.team_returns().mean() - suite.dataset_means()[dataset]) < tolerance


@pytest.mark.parametrize("dataset", DATASETS)
def test_two_folders_hold_the_same_bytes(dataset: str, tmp_path: Path) -> None:
    """Catches a time, a path or global randomness in a dataset."""
    first, second = (native.build(dataset, tmp_path / name, envs.make, episodes=200) for name in ("a", "b"))
    assert first.digest == second.digest
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("task_id", "rise"), [("mpe/simple_spread", 30), ("mpe/simple_tag", 20), ("mpe/simple_world", 20)]
)
def test_replay_is_ordered_by_training_time(task_id: str, rise: float, tmp_path: Path) -> None:
    """Catches a mixture dressed up as a replay: later episodes come from later, better actors."""
    store = native.build(f"{task_id}/medium-replay", tmp_path / "data", envs.make, episodes=1900)
    early, *_, late = np.array_split(store.team_returns(), 5)
    assert late.mean() > early.mean() + rise


def test_seeds_are_other_episodes_of_the_same_behaviour(tmp_path: Path) -> None:
    """Catches a second seed that repeats the first, or that changes it."""
    name = "mpe/simple_tag/random"
    both = native.build(name, tmp_path / "both", envs.make, episodes=50, seeds=2)
    first = native.build(name, tmp_path / "first", envs.make, episodes=50)
    assert both.provenance["strata"] == [{"seed": 0, "episodes": 50}, {"seed": 1, "episodes": 50}]
    for array, values in first.arrays():
        np.testing.assert_array_equal(dict(both.select(slice(50)).arrays())[array], values)
    later = both.select(slice(50, 100))
    assert not np.isin(later.observations[:, 0, 2], first.observations[:, 0, 2]).any()
    assert np.isin(later.actions, first.actions).mean() < 0.01  # float32 draws meet by chance
