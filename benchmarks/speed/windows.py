"""Speed of the data layer: opening and verifying a dataset of a million transitions, and drawing windows from it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from marl_flow import seeding
from marl_flow.benchmarks.speed.timing import Row, best_seconds
from marl_flow.datasets.store import EpisodeStore, open_store
from marl_flow.datasets.windows import WindowSampler
from marl_flow.datasets.writer import write_store
from marl_flow.interfaces import ActionSpec, TaskSpec, WindowSpec

SHAPES = ((0, 23, 64), (0, 4, 256), (18, 9, 256), (0, 1, 1024))
"""History, horizon and batch size: MPE as published, `compact`, MA-MuJoCo as published, temporal differences."""
DRAWS = 50
"""Batches drawn per timing."""


def rows() -> Iterator[Row]:
    """Seconds to open and verify; frames per second drawn, per shape."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "million"
        write_store(folder, million_transitions())
        yield Row("open and verify, 1 M transitions", best_seconds(lambda: open_store(folder)), "s", 1.0)
        store = open_store(folder, verify=False)
        for history, horizon, batch in SHAPES:
            window = WindowSpec(history=history, horizon=horizon, discount=0.99)
            sampler = WindowSampler(store, window, torch.device("cpu"))
            seconds = best_seconds(partial(draw_batches, sampler, batch, seeding.generator(0, "bench")))
            frames = DRAWS * batch * (history + horizon + 1) / seconds
            yield Row(f"windows drawn, C {history}, H {horizon}, batch {batch}", frames, "frames/s", 1e6)


def draw_batches(sampler: WindowSampler, batch: int, generator: torch.Generator) -> None:
    for _ in range(DRAWS):
        sampler.draw(batch, generator)


def million_transitions() -> EpisodeStore:
    """Uniform noise in the shape of spread: 40,000 episodes of 25 steps, 3 agents, 18 observed numbers."""
    spec = TaskSpec(
        task_id="mpe/simple_spread",
        agents=("agent_0", "agent_1", "agent_2"),
        observation_size=18,
        action=ActionSpec(kind="continuous", size=2, low=(-1.0, -1.0), high=(1.0, 1.0)),
        max_steps=25,
        team_reward="mean",
    )
    episodes, rng = 40_000, np.random.default_rng(0)
    steps = episodes * spec.max_steps
    return EpisodeStore(
        spec=spec,
        dataset_id="native/mpe/simple_spread/random-v1",
        observations=rng.random((steps + episodes, 3, 18), dtype=np.float32),
        actions=rng.random((steps, 3, 2), dtype=np.float32),
        rewards=rng.random((steps, 3), dtype=np.float32),
        offsets=np.arange(episodes + 1) * spec.max_steps,
        terminated=np.zeros(episodes, dtype=bool),
    )
