"""Speed of training: how much of its time is spent outside networks and optimisers, and updates per second."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from marl_flow import baselines, envs, training
from marl_flow.benchmarks.speed.timing import Row
from marl_flow.commands.data import training_data
from marl_flow.datasets import native

TRAINED = (("coflow", "compact", 60), ("bc", "default", 1000), ("ma_td3_bc", "default", 1000))
"""Method, preset and updates."""
OUTSIDE_TARGET = 5
"""Per cent of the time that drawing batches, logging and checkpoints may take."""


def rows() -> Iterator[Row]:
    """Two rows per method."""
    with tempfile.TemporaryDirectory() as folder:
        store = native.build("mpe/simple_spread/random", Path(folder) / "data", envs.make, episodes=2000)
        for name, preset, updates in TRAINED:
            method = baselines.get(name)
            config = training.TrainConfig(updates=updates, tensorboard=True)
            run = Path(folder) / name
            result = training.train(run, method, method.presets[preset], config, training_data(store), preset=preset)
            seconds = result.header.seconds
            outside = 100.0 * (1.0 - seconds["update"] / seconds["total"])
            yield Row(f"{name} ({preset}), time outside updates", outside, "%", OUTSIDE_TARGET)
            yield Row(f"{name} ({preset}), speed", updates / seconds["total"], "updates/s")
