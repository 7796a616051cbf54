"""A run small enough for tests: 20 random episodes, a few hundred weights. Also a program, to be killed and continued:

python tiny_run.py FOLDER UPDATES
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from marl_flow import baselines
from marl_flow.datasets.store import EpisodeStore
from marl_flow.datasets.windows import WindowSampler, return_percentiles
from marl_flow.interfaces import ActionSpec, TaskSpec
from marl_flow.normalize import Normalizers
from marl_flow.training import TrainConfig, TrainingData, TrainResult, train

EPISODES, STEPS, AGENTS, SIZE = 20, 6, 2, 3


def spec(**changes: Any) -> TaskSpec:
    action = ActionSpec(kind="continuous", size=2, low=(-1.0, -2.0), high=(1.0, 2.0))
    plain = {
        "task_id": "test/tiny",
        "agents": tuple(f"agent_{i}" for i in range(AGENTS)),
        "observation_size": SIZE,
        "action": action,
        "max_steps": STEPS,
        "team_reward": "mean",
    }
    return TaskSpec(**{**plain, **changes})


def data(**changes: Any) -> TrainingData:
    draw = np.random.default_rng(0)
    store = EpisodeStore(
        spec=spec(),
        dataset_id="test/tiny/random-v1",
        observations=draw.normal(size=(EPISODES * (STEPS + 1), AGENTS, SIZE)).astype(np.float32),
        actions=draw.uniform(-1, 1, (EPISODES * STEPS, AGENTS, 2)).astype(np.float32),
        rewards=draw.normal(size=(EPISODES * STEPS, AGENTS)).astype(np.float32),
        offsets=np.arange(0, EPISODES * STEPS + 1, STEPS),
        terminated=np.arange(EPISODES) % 2 == 0,
    )
    plain = {
        "dataset_id": store.dataset_id,
        "digest": "0" * 64,
        "spec": store.spec,
        "fit_normalizers": lambda kind, discount: Normalizers.fit(kind, store, discount=discount),
        "return_percentiles": lambda discount: return_percentiles(store, discount),
        "make_sampler": lambda window, device: WindowSampler(store, window, device),
    }
    return TrainingData(**{**plain, **changes})


def config(**changes: Any) -> Any:
    kind = type(baselines.get("ma_td3_bc").presets["default"])
    return kind(**{"hidden": (8,), "updates": 12, "batch_size": 16, **changes})


def training(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"seed": 3, "log_every": 3, "checkpoint_every": 4, "tensorboard": False, **changes})


def run(folder: Path, **changes: Any) -> TrainResult:
    """Trains in the folder; `changes` are of `train`'s arguments."""
    plain = {
        "algorithm": baselines.get("ma_td3_bc"),
        "config": config(),
        "training": training(),
        "data": data(),
        "preset": "default",
    }
    return train(folder, **{**plain, **changes})
