"""The shipped recipes of the nine MA-MuJoCo datasets, rolled out on the engine, and what trained them.

MAMUJOCO_TEST_EPISODES=all builds whole datasets (250,000 transitions each, minutes) and holds their means to the
tolerance; otherwise some episodes of each, and what so few may be off by chance is allowed for.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from marl_flow import envs
from marl_flow.benchmarks import suite
from marl_flow.benchmarks.behaviour import mamujoco
from marl_flow.benchmarks.behaviour.mamujoco import RobotConfig, RobotLearner
from marl_flow.benchmarks.behaviour.mappo import generalized_advantages
from marl_flow.benchmarks.studies import native_vs_published
from marl_flow.commands import data
from marl_flow.datasets import behaviour, catalog, native
from marl_flow.datasets.replay.check import replay
from marl_flow.envs.mamujoco.env import RobotState
from marl_flow.envs.mamujoco.tasks import PARTITIONS, find_partition
from marl_flow.interfaces import ActionSpec

DATASETS = tuple(f"{task}/{quality}" for task in PARTITIONS for quality in ("good", "medium", "poor"))
EPISODES = os.environ.get("MAMUJOCO_TEST_EPISODES", "24")
SMALL = RobotConfig(num_envs=8, steps=64, iterations=4, snapshot_every=2, measure_episodes=2, epochs=2, minibatch=128)


@pytest.mark.parametrize(
    "dataset",
    [pytest.param(name, marks=() if name == "mamujoco/2halfcheetah/good" else pytest.mark.slow) for name in DATASETS],
)
def test_mean_return_is_the_published_one(dataset: str, tmp_path: Path) -> None:
    """Catches a policy file or engine that drifted from what the recipe was calibrated with."""
    episodes = None if EPISODES == "all" else int(EPISODES)
    store = native.build(dataset, tmp_path / "data", envs.make, episodes=episodes)
    returns, target = store.team_returns(), suite.dataset_means()[dataset]
    chance = 0.0 if episodes is None else 3.5 * returns.std() / np.sqrt(len(returns))
    assert abs(returns.mean() - target) < native_vs_published.MAMUJOCO_TOLERANCE * target + chance


@pytest.mark.slow
def test_two_folders_hold_the_same_bytes(tmp_path: Path) -> None:
    """Catches a time, a path, global randomness or a number of threads in a dataset."""
    digests, threads = [], torch.get_num_threads()
    for name, count in (("a", 1), ("b", 3)):
        torch.set_num_threads(count)
        digests.append(native.build("mamujoco/2ant/medium", tmp_path / name, envs.make, episodes=4).digest)
        torch.set_num_threads(threads)
    assert digests[0] == digests[1]
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


@pytest.mark.slow
def test_stored_cheetahs_fit_their_task(tmp_path: Path) -> None:
    """Catches stored rewards or observations that do not follow from the stored states and actions."""
    store = native.build("mamujoco/2halfcheetah/medium", tmp_path / "data", envs.make, episodes=4)
    outcome = replay(store, lambda num_envs: data.replayed_in(store.spec, num_envs), transitions=None)
    assert outcome.fits, outcome.message
    other = replace(store, actions=np.roll(store.actions, 1, axis=0))
    assert not replay(other, lambda num_envs: data.replayed_in(store.spec, num_envs), transitions=None).fits


@pytest.mark.parametrize("task_id", ["mamujoco/2ant", "mamujoco/4ant", "mamujoco/2halfcheetah"])
def test_actors_do_not_see_how_far_they_have_come(task_id: str) -> None:
    """Catches a shipped policy that acts by the absolute position, which no other episode has alike."""
    spec = envs.spec(task_id)
    column = find_partition(task_id).fields[0].index("q0")
    for quality in ("good", "medium", "poor"):
        stack = behaviour.read_stack(behaviour.behaviour_file(task_id), quality)
        size = (stack.size, spec.num_agents, spec.observation_size)
        here = torch.randn(size, generator=torch.Generator().manual_seed(0))
        far = here.clone()
        far[..., column] += 30.0
        snapshots = torch.arange(stack.size)
        assert (stack.outputs(here, snapshots) - stack.outputs(far, snapshots)).abs().max() < 1e-3
        near = here.clone()
        near[..., column - 1] += 1.0
        moved = (stack.outputs(here, snapshots) - stack.outputs(near, snapshots)).abs()
        assert (moved.amax((1, 2)) > 1e-2).all()


def test_a_behaviour_plays_what_was_measured(tmp_path: Path) -> None:
    """Catches an actor that datasets play otherwise than its training measured it."""
    learner = RobotLearner("mamujoco/2ant", SMALL)
    batch, _ = learner.collect(0)
    learner.update(batch, 0)
    weights = learner.export()
    exported = mamujoco.ExportedActor(weights, SMALL.noise)
    file = tmp_path / "policies.safetensors"
    file.write_bytes(save(mamujoco.pack("good", [weights, weights], [0.25, 0.75], SMALL.noise)))
    stack = behaviour.read_stack(file, "good")
    assert stack.log_std is not None and torch.allclose(stack.log_std.exp(), torch.tensor(SMALL.noise))
    step = learner.env.reset(range(8))
    policy = stack.policy(torch.arange(8) % 2, ActionSpec(kind="continuous", size=4, low=(-9.0,) * 4, high=(9.0,) * 4))
    policy.reset(8, torch.Generator().manual_seed(0))
    noise = SMALL.noise * torch.randn(8, 2, 4, generator=torch.Generator().manual_seed(0))
    played = policy.act(step.observations, None, step.rewards)
    assert torch.allclose(played, exported.mean(step.observations) + noise, atol=1e-6)
    trained = learner.actor(learner.observation_stats(step.observations))
    assert (exported.mean(step.observations) - trained).abs().max() < 2e-3  # float16 weights
    assert trained.abs().max() > 1e-2


@pytest.mark.slow
def test_training_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Catches a continued training that differs: statistics, robots on their way or a generator left behind."""
    RobotLearner("mamujoco/2ant", SMALL).train(tmp_path / "whole")
    RobotLearner("mamujoco/2ant", replace(SMALL, iterations=2)).train(tmp_path / "parts")
    RobotLearner("mamujoco/2ant", SMALL).train(tmp_path / "parts")
    for name in ("actor_00004.safetensors", "checkpoint.safetensors", "record.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_training_improves_a_robot(tmp_path: Path) -> None:
    """Catches a loss with the wrong sign and advantages of the wrong step."""
    config = RobotConfig(num_envs=16, steps=128, iterations=20, snapshot_every=20, measure_episodes=8, minibatch=128)
    RobotLearner("mamujoco/2halfcheetah", config).train(tmp_path / "run")
    first, last = (row["return"] for row in json.loads((tmp_path / "run/record.json").read_text())["snapshots"])
    assert last > first + 200.0


def test_advantages_stop_at_an_episodes_end() -> None:
    """Catches value that flows back from behind an end, and a time limit that is taken for a fall: worked out by hand,
    a row that reaches its limit and one that falls."""
    config = RobotConfig(discount=0.5, gae_lambda=0.5)
    rewards = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 4.0]])
    values, next_values = torch.ones(3, 2), torch.tensor([[1.0, 1.0], [6.0, 0.0], [1.0, 1.0]])
    over = torch.tensor([[False, False], [True, True], [False, False]])
    found = generalized_advantages(config, rewards, values, next_values, over)
    limit, fall = 2.0 + 0.5 * 6.0 - 1.0, 1.0 + 0.0 - 1.0
    assert found[1].tolist() == [limit, fall]
    assert found[0].tolist() == [0.0 + 0.5 - 1.0 + 0.25 * limit, 1.0 + 0.5 - 1.0 + 0.25 * fall]


def test_a_robots_last_step_is_valued_by_where_it_led(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a next state that is already the new episode's, and limits and falls that are mixed up: what follows a
    fall is worth nothing, even where the engine's row is broken, and what follows the time limit is."""
    learner = RobotLearner("mamujoco/2ant", replace(SMALL, steps=1, num_envs=3))
    learner.state.steps[0] = 999
    learner.state.positions[1, 2] = 1.5  # higher than an ant may be
    given = {}

    def advantages(config, rewards, values, next_values, ends):  # type: ignore[no-untyped-def]
        given.update(next_values=next_values, ends=ends)
        return torch.zeros_like(values)

    led_to = []
    monkeypatch.setattr(mamujoco, "generalized_advantages", advantages)
    step = learner.env.step
    monkeypatch.setattr(learner.env, "step", lambda actions: (step(actions), led_to.append(learner.env.state))[0])

    def state_vector(state: RobotState) -> torch.Tensor:
        vector = whole(state)
        if led_to:
            vector[1] = torch.nan
        return vector

    whole = mamujoco.state_vector
    monkeypatch.setattr(mamujoco, "state_vector", state_vector)
    learner.collect(0)
    monkeypatch.undo()
    assert given["ends"][0].tolist() == [True, True, False]
    with torch.no_grad():
        expected = learner.critic(mamujoco.state_vector(led_to[0]) * (torch.arange(29) > 0))[:, 0]  # x is hidden
    expected[1] = 0.0
    assert torch.allclose(given["next_values"][0], expected, atol=1e-5)
    assert not torch.allclose(mamujoco.state_vector(learner.state)[:2], mamujoco.state_vector(led_to[0])[:2])


def test_every_dataset_has_a_recipe_and_an_entry() -> None:
    """Catches a dataset that is in the table and cannot be built."""
    assert {f"native/{name}-v1" for name in DATASETS} == {name for name in native.RECIPES if "mamujoco" in name}
    assert all(f"native/{name}-v1" in catalog.CATALOG for name in DATASETS)
