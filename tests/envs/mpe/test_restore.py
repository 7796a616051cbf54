"""Restoring: a state comes back from what the team sees of it, and goes on as the one it was read from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from marl_flow import envs
from marl_flow.envs.mpe.env import ParticleEnv
from marl_flow.envs.mpe.physics import ParticleState
from marl_flow.envs.mpe.prey import FleeingPrey
from marl_flow.envs.mpe.restore import observation_matrix, opponent_entries, state_from_observations
from marl_flow.envs.mpe.scenarios import SCENARIOS
from marl_flow.interfaces import Restorable, UserError

TASKS = ("mpe/simple_spread", "mpe/simple_tag", "mpe/simple_world")
HUNTS = TASKS[1:]


def make(task_id: str, num_envs: int, dtype: torch.dtype = torch.float64) -> ParticleEnv:
    scenario = SCENARIOS[task_id]
    landmarks = scenario.num_entities - scenario.num_agents
    prey = FleeingPrey(num_obstacles=len(scenario.indices("obstacle")), num_landmarks=landmarks, dtype=dtype)
    return envs.make(task_id, num_envs, dtype=dtype, opponent=prey if scenario.has_prey else None)


def drawn(task_id: str, count: int, span: float) -> ParticleState:
    """Random states, everybody within a box of that half width."""
    scenario, source = SCENARIOS[task_id], torch.Generator().manual_seed(3)

    def box(*shape: int) -> Tensor:
        return span * (2.0 * torch.rand(*shape, generator=source, dtype=torch.float64) - 1.0)

    return ParticleState(
        positions=box(count, scenario.num_entities, 2),
        velocities=box(count, scenario.num_agents, 2),
        steps=torch.arange(count) % 25,
    )


@pytest.mark.parametrize("span", [0.05, 1.0, 6.0])
@pytest.mark.parametrize("task_id", TASKS)
def test_a_state_comes_back_from_its_observations(task_id: str, span: float) -> None:
    """Catches an offset read from the wrong entry, a prey or landmark nobody placed, and steps that are lost: crowded,
    usual and far-flung states. Through float32, as data are stored, only its rounding may be lost."""
    state, env = drawn(task_id, 50, span), make(task_id, 50)
    observed = env.set_state(state).observations
    for observations, room in ((observed, 1e-13), (observed.float(), 1.5e-7)):
        found = state_from_observations(SCENARIOS[task_id], observations, state.steps)
        assert found.positions.dtype == torch.float64 and torch.equal(found.steps, state.steps)
        torch.testing.assert_close(found.positions, state.positions, rtol=0.0, atol=room * max(1.0, span))
        torch.testing.assert_close(found.velocities, state.velocities, rtol=0.0, atol=room * max(1.0, span))


@pytest.mark.parametrize("task_id", TASKS)
def test_a_restored_episode_goes_on_as_the_original(task_id: str) -> None:
    """Catches a restored prey without its own view, a counter that starts anew, and rewards carried over."""
    original, restored = make(task_id, 6), make(task_id, 6)
    step = original.set_state(drawn(task_id, 6, 0.6))
    again = restored.restore(step.observations, None, original.state.steps)
    assert isinstance(restored, Restorable)
    source = torch.Generator().manual_seed(5)
    for _ in range(25):
        torch.testing.assert_close(again.observations, step.observations, rtol=0.0, atol=1e-8)
        torch.testing.assert_close(again.rewards, step.rewards, rtol=0.0, atol=1e-6)
        assert torch.equal(again.truncated, step.truncated)
        actions = 2.0 * torch.rand(6, 3, 2, generator=source, dtype=torch.float64) - 1.0
        step, again = original.step(actions), restored.step(actions)
    assert step.truncated.all()


@pytest.mark.parametrize("task_id", TASKS)
def test_contradicting_views_are_not_reproduced(task_id: str) -> None:
    """Catches a state read from one agent alone, which hides that another saw something else: whichever entry that
    others know too is moved, the restored moment looks otherwise there than what was given."""
    env = make(task_id, 1)
    observed = env.set_state(drawn(task_id, 1, 0.6)).observations
    views = observation_matrix(SCENARIOS[task_id])
    known_alone = (torch.eye(len(views), dtype=torch.float64) - views @ torch.linalg.pinv(views)).diagonal() < 1e-9
    assert known_alone.view(3, -1)[:, 2:].any().item() is False  # all but own velocities, which nobody else sees
    for entry in (~known_alone).nonzero()[:, 0].tolist():
        moved = observed.clone().view(1, -1)
        moved[0, entry] += 0.1
        given = moved.view_as(observed)
        difference = env.restore(given, None, torch.zeros(1, dtype=torch.int64)).observations - given
        assert difference.flatten()[entry].abs() > 0.02 or difference.abs().max() > 1.0  # a flag is 0 or 2 off


def test_the_recorded_episodes_come_back(golden_folder: Path) -> None:
    """Catches a layout that our environment and our reading of it share, but the original has not."""
    with np.load(golden_folder / "mpe_trajectories.npz") as file:
        for task_id in TASKS:
            for index in range(3):
                name = f"{task_id.partition('/')[2]}/{index}"
                observed = torch.from_numpy(file[f"{name}/observations"])
                found = state_from_observations(SCENARIOS[task_id], observed, torch.arange(len(observed)))
                np.testing.assert_allclose(found.positions, file[f"{name}/positions"], rtol=0.0, atol=1e-12)
                np.testing.assert_allclose(found.velocities, file[f"{name}/velocities"], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("task_id", TASKS)
def test_what_tells_of_the_opponent(task_id: str) -> None:
    """Catches entries of the prey left out, or others taken for the prey's: those that move when it alone is moved."""
    env, scenario = make(task_id, 2), SCENARIOS[task_id]
    if not scenario.has_prey:
        assert env.opponent_entries is None and not opponent_entries(scenario).any()
        return
    state = drawn(task_id, 2, 0.3)
    state.positions[1], state.velocities[1] = state.positions[0], state.velocities[0]
    state.positions[1, 3] += 5.0
    state.velocities[1, 3] += 5.0
    observed = env.set_state(state).observations
    entries = env.opponent_entries
    assert entries is not None and torch.equal(entries, observed[0] != observed[1])


def test_what_cannot_be_restored_is_refused() -> None:
    """Catches a shape error of torch's, and a state that is silently ignored."""
    env = make("mpe/simple_spread", 2)
    zeros = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match=r"expected observations of shape \(2, 3, 18\).* got .*\(2, 3, 16\)"):
        env.restore(torch.zeros(2, 3, 16), None, zeros)
    with pytest.raises(UserError, match=r"no state to restore, got .* and a state, .*\(2, 4\)"):
        env.restore(torch.zeros(2, 3, 18), torch.zeros(2, 4), zeros)
    with pytest.raises(UserError, match="finite"):
        env.restore(torch.full((2, 3, 18), torch.nan), None, zeros)
