"""The shipped recipes of the twelve SMAC datasets, rolled out in the embedded simulator, and what trained them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from marl_flow import envs, seeding
from marl_flow.benchmarks import suite
from marl_flow.benchmarks.behaviour import smac
from marl_flow.benchmarks.studies import native_vs_published
from marl_flow.commands import data
from marl_flow.datasets import behaviour, native
from marl_flow.datasets.replay.check import replay
from marl_flow.datasets.store import EpisodeStore
from marl_flow.envs.smac.env import SmacEnv

DATASETS = tuple(native_vs_published.names("smac"))


@pytest.mark.parametrize(
    "dataset",
    [pytest.param(name, marks=() if name == "smac/3m/medium" else pytest.mark.slow) for name in DATASETS],
)
def test_mean_return_is_the_published_one(dataset: str, tmp_path: Path) -> None:
    """Catches a policy file or simulator that drifted from what the recipe was calibrated with."""
    store = native.build(dataset, tmp_path / "data", envs.make)
    assert abs(store.team_returns().mean() - suite.dataset_means()[dataset]) < 0.5
    published = float(native_vs_published.cards()[dataset]["won_percent"].lstrip("<"))
    assert abs(100 * native_vs_published.won(store).mean() - published) < 10


@pytest.mark.slow
def test_two_folders_hold_the_same_bytes(tmp_path: Path) -> None:
    """Catches a time, a path or global randomness in a dataset."""
    first, second = (native.build("smac/2s3z/poor", tmp_path / name, envs.make, episodes=60) for name in ("a", "b"))
    assert first.digest == second.digest
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


@pytest.fixture(scope="module")
def battles(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return native.build("smac/2s3z/medium", tmp_path_factory.mktemp("data") / "data", envs.make, episodes=60)


def found(store: EpisodeStore) -> str | None:
    """What replaying says against a store; None where it fits."""
    outcome = replay(store, lambda num_envs: data.replayed_in(store.spec, num_envs), transitions=None)
    return None if outcome.fits else outcome.message


def test_stored_battles_fit_their_task(battles: EpisodeStore) -> None:
    """Catches a state that is read back wrongly: features, legal actions and rewards follow from stored states."""
    assert found(battles) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param("observations", "views", marks=pytest.mark.slow),  # is diagnosed at length
        ("rewards", "rewards differ"),
        ("action_mask", "legal actions differ"),
        ("actions", "the states that follow differ"),
        ("order", "the states that follow differ"),
        ("terminated", "the ends of episodes differ"),
    ],
)
def test_changed_battles_are_refused(battles: EpisodeStore, change: str, said: str) -> None:
    """Catches data of another layout, scale or game that pass for the simulator's: one array is changed at a time."""
    arrays = {name: values.copy() for name, values in battles.arrays()}
    if change == "observations":
        arrays["observations"][..., [5, 6]] = arrays["observations"][..., [6, 5]]
    elif change == "rewards":
        arrays["rewards"] *= 0.5
    elif change == "action_mask":
        arrays["action_mask"][..., 6:] = True
    elif change == "actions":
        arrays["actions"] = np.roll(arrays["actions"], 1, axis=0)
    elif change == "order":  # two frames of every episode exchanged
        firsts = battles.first_frames
        for name in ("observations", "state", "action_mask"):
            arrays[name][firsts + 20], arrays[name][firsts + 30] = arrays[name][firsts + 30], arrays[name][firsts + 20]
    else:
        arrays["terminated"][:] = False
    message = found(replace(battles, **arrays))
    assert message is not None and said in message


def test_a_behaviour_plays_what_was_measured(battles: EpisodeStore) -> None:
    """Catches a mixture that is drawn otherwise in the datasets than in training: the chances of choices, counted."""
    stack = behaviour.read_stack(behaviour.behaviour_file("smac/3m"), "medium")
    env = SmacEnv("smac/3m", 1)
    step = env.reset([0])
    rows = 20_000
    snapshots = torch.zeros(rows, dtype=torch.int64)
    policy = stack.policy(snapshots, env.spec.action)
    policy.reset(rows, torch.Generator().manual_seed(0))
    assert step.action_mask is not None
    seen, legal = (value.expand(rows, -1, -1) for value in (step.observations, step.action_mask))
    chosen = policy.act(seen, legal, torch.zeros(rows, 3))
    counted = torch.stack([(chosen == action).float().mean(0) for action in range(9)], dim=-1)  # [N, A]
    actor = smac.Actor(env.spec, 64)
    names = [name for name, _ in actor.named_parameters()]
    weights = {name: dict(_layers(stack))[name] for name in names}
    actor.load_state_dict(weights)
    assert stack.epsilon is not None and stack.temperature is not None
    logits = actor(step.observations[0]) / stack.temperature[0]
    expected = smac.log_probabilities(logits, step.action_mask[0], float(stack.epsilon[0])).exp()
    assert (counted - expected).abs().max() < 0.015
    assert (counted > 0).sum() == step.action_mask.sum()  # what is legal happens, what is not does not
    assert (expected.max(-1).values > 0.5).all()  # at temperature 1 no choice of this snapshot is as likely


def _layers(stack: behaviour.Stack) -> list[tuple[str, torch.Tensor]]:
    """The first snapshot's weights by the names of the actor that was trained."""
    return [
        (f"layers.{i}.{part}", values[0])
        for i, layer in enumerate(stack.layers)
        for part, values in zip(("weight", "bias"), layer, strict=True)
    ]


@pytest.mark.slow
def test_training_improves_a_team_and_resumes(tmp_path: Path) -> None:
    """Catches a loss with the wrong sign, advantages of the wrong step, and a continued training that differs."""
    config = smac.BattleConfig(iterations=8, episodes=128, measure_episodes=128, snapshot_every=4)
    smac.BattleLearner("smac/3m", config).train(tmp_path / "whole")
    record = (tmp_path / "whole/record.json").read_text()
    returns = [row["return"] for row in json.loads(record)["snapshots"]]
    assert returns[-1] > returns[0] + 1.0
    smac.BattleLearner("smac/3m", replace(config, iterations=4)).train(tmp_path / "parts")
    smac.BattleLearner("smac/3m", config).train(tmp_path / "parts")
    name = "actor_00008.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_advantages_stop_at_an_episodes_end() -> None:
    """Catches value that flows back from behind an end: two episodes of 1 and 3 steps, worked out by hand."""
    config = smac.BattleConfig(discount=0.5, gae_lambda=0.5)
    unit = smac.REWARD_UNIT
    valid = torch.tensor([[True, True], [False, True], [False, True]])
    episodes = smac.Episodes(
        observations=torch.zeros(0),
        states=torch.zeros(0),
        masks=torch.zeros(0),
        actions=torch.zeros(0),
        rewards=torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 4.0]]) * unit,
        valid=valid,
        returns=torch.zeros(2),
        won=torch.zeros(2, dtype=torch.bool),
    )
    values = torch.tensor([[2.0, 1.0], [9.0, 1.0], [9.0, 1.0]])
    advantage, target = smac.advantages(config, episodes, values)
    last = 4.0 - 1.0
    middle = 0.5 * 1.0 - 1.0 + 0.25 * last
    assert advantage[0].tolist() == [1.0 - 2.0, pytest.approx(0.5 * 1.0 - 1.0 + 0.25 * middle)]
    assert target[2, 1] == 4.0 and advantage[1:, 0].tolist() == [0.0, 0.0]
    assert seeding.environment_seeds("behaviour", 0, 1) != seeding.environment_seeds("evaluate", 0, 1)
