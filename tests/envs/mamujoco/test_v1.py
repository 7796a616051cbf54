"""The scenarios of gymnasium-robotics behind our contract."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from marl_flow import envs
from marl_flow.envs.checks import check_vector_env
from marl_flow.envs.mamujoco import engine
from marl_flow.interfaces import UserError

ANT = "mamujoco/v1/Ant/2x4"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Every test runs in an empty folder and leaves it so: the engine would write its log there."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task_id", [ANT, "mamujoco/v1/Reacher/2x1"])
def test_contract(task_id: str) -> None:
    """Catches unfrozen rows and rows that share the library's objects; Reacher has a time limit of its own."""
    check_vector_env(lambda num_envs: envs.make(task_id, num_envs))


@pytest.mark.parametrize(
    ("task_id", "observation_size", "widths"),
    [(ANT, 63, (4, 4)), ("mamujoco/v1/HalfCheetah/6x1", 9, (1,) * 6), ("mamujoco/v1/Humanoid/9|8", 242, (9, 8))],
)
def test_rows_are_the_librarys_episodes(task_id: str, observation_size: int, widths: tuple[int, ...]) -> None:
    """Catches agents exchanged, cut or moved by the filling up, other seeds, and an id read as another scenario."""
    from gymnasium_robotics.envs.multiagent_mujoco import MultiAgentMujocoEnv

    scenario, partition = task_id.split("/")[2:]
    env = envs.make(task_id, 2, dtype=torch.float64)
    assert (env.spec.observation_size, env.spec.action.size) == (observation_size, max(widths))
    assert env.spec == envs.spec(task_id) and env.spec.max_steps == 1000 and env.spec.team_reward == "shared"
    with engine.quiet():
        theirs = MultiAgentMujocoEnv(scenario, partition)
    step, (observed, _) = env.reset([3, 8]), theirs.reset(seed=8)
    source = np.random.default_rng(0)
    for _ in range(12):
        for index, name in enumerate(theirs.possible_agents):
            size = len(observed[name])
            assert np.array_equal(step.observations[1, index, :size].numpy(), observed[name])
            assert not step.observations[1, index, size:].any()
        actions = source.uniform(-0.4, 0.4, (2, len(widths), max(widths))).astype(np.float32)
        given = {name: actions[1, i, : widths[i]] for i, name in enumerate(theirs.possible_agents)}
        observed, rewards, _, _, _ = theirs.step(given)
        step = env.step(torch.from_numpy(actions))
        assert step.rewards[1].tolist() == [rewards[name] for name in theirs.possible_agents]


def test_a_breakdown_ends_the_episode_with_its_reason(caplog) -> None:
    """Catches an episode that silently goes on from the engine's own reset."""
    env = envs.make(ANT, 2)
    before, actions = env.reset([1, 2]), torch.zeros(2, 2, 4)
    env._scenarios[1].robot.data.qvel[3] = 1e12
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            step = env.step(actions)
    assert step.terminated.tolist() == [False, True] and not step.rewards[1].any()
    assert torch.equal(step.observations[1], before.observations[1])
    assert env.failures == (None, "a velocity is not a number or huge") and len(caplog.messages) == 1
    env.reset([1, 2])
    assert env.failures == (None, None)


def test_unknown_scenarios_are_refused() -> None:
    """Catches a library's bare exception where a name was mistyped."""
    for task_id in ("mamujoco/v1/Aunt/2x4", "mamujoco/v1/Ant/7x7"):
        with pytest.raises(UserError, match=rf"{task_id}: expected a scenario and a partition .*such as {ANT}"):
            envs.make(task_id, 1)
    with pytest.raises(UserError, match="at least one environment, got num_envs=0"):
        envs.make(ANT, 0)
