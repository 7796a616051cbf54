"""The shipped spread recipes, rolled out in the real environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from marl_flow import envs
from marl_flow.benchmarks import suite
from marl_flow.datasets import native

QUALITIES = ("expert", "medium", "medium-replay", "random")


@pytest.mark.parametrize("quality", QUALITIES)
def test_mean_return_is_the_published_one(quality: str, tmp_path: Path) -> None:
    """Catches a policy file, noise level or environment that drifted from what the recipe was calibrated with."""
    store = native.build(f"mpe/simple_spread/{quality}", tmp_path / "data", envs.make)
    published = {row: suite.dataset_means()[f"mpe/simple_spread/{row}"] for row in QUALITIES}
    tolerance = 0.05 * (published["expert"] - published["random"])
    assert abs(store.team_returns().mean() - published[quality]) < tolerance


@pytest.mark.parametrize("quality", QUALITIES)
def test_two_folders_hold_the_same_bytes(quality: str, tmp_path: Path) -> None:
    """Catches a time, a path or global randomness in a dataset."""
    first, second = (
        native.build(f"mpe/simple_spread/{quality}", tmp_path / name, envs.make, episodes=200) for name in ("a", "b")
    )
    assert first.digest == second.digest
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_replay_is_ordered_by_training_time(tmp_path: Path) -> None:
    """Catches a mixture dressed up as a replay: later episodes come from later, better actors."""
    store = native.build("mpe/simple_spread/medium-replay", tmp_path / "data", envs.make, episodes=1900)
    early, *_, late = np.array_split(store.team_returns(), 5)
    assert late.mean() > early.mean() + 30
