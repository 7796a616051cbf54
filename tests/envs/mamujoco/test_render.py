"""Pictures of robots: the right row, the right way up, and a clear word where nothing can draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from marl_flow import envs
from marl_flow.envs.mamujoco import render
from marl_flow.envs.mamujoco.env import RobotEnv
from marl_flow.interfaces import UserError


@pytest.fixture(scope="module")
def drawing() -> None:
    env = envs.make("mamujoco/2ant", 1)
    env.reset([0])
    try:
        env.render(size=64)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("task_id", ["mamujoco/2ant", "mamujoco/2halfcheetah", "mamujoco/v1/Ant/2x4"])
def test_pictures_show_a_row(task_id: str) -> None:
    """Catches another row's picture, one upside down, a robot that stands still, and drawing that changes the step."""
    env, undrawn = envs.make(task_id, 2), envs.make(task_id, 2)
    for each in (env, undrawn):
        each.reset([1, 2])
    first = [env.render(row, 200) for row in (0, 1)]
    assert all(picture.shape == (200, 200, 3) and picture.dtype == np.uint8 for picture in first)
    assert not np.array_equal(*first) and np.array_equal(first[0], env.render(0, 200))
    sky, floor = first[0][:20].astype(float), first[0][-20:].astype(float)
    assert sky.std() < 20 < floor.std()  # an even sky above, a chequered floor below
    actions = torch.full((2, env.spec.num_agents, env.spec.action.size), 0.5)
    for _ in range(5):
        expected, step = undrawn.step(actions), env.step(actions)
        assert not np.array_equal(first[0], env.render(0, 200))
        assert torch.equal(step.observations, expected.observations) and torch.equal(step.rewards, expected.rewards)


@pytest.mark.usefixtures("drawing")
def test_the_floor_does_not_end() -> None:
    """Catches robots that run off the models' 80 m of drawn floor, where no picture shows that they move."""
    env = envs.make("mamujoco/2halfcheetah", 1)
    env.reset([0])
    assert isinstance(env, RobotEnv)
    state, pictures = env.state, []
    for x in (0.0, 300.0, 300.5):
        state.positions[0, 0] = x
        env.set_state(state)
        pictures.append(env.render(size=200))
    assert all(picture[-20:].astype(float).std() > 20 for picture in pictures)
    assert np.abs(pictures[1].astype(float) - pictures[2])[-40:].mean() > 10


@pytest.mark.usefixtures("drawing")
def test_sizes() -> None:
    """Catches a picture larger than the model's canvas refused, and sizes that cannot be read."""
    env = envs.make("mamujoco/4ant", 1)
    with pytest.raises(UserError, match="reset"):
        env.render()
    env.reset([0])
    large, small = env.render(size=704), env.render(size=64)
    assert large.shape == (704, 704, 3) and small.shape == (64, 64, 3)
    reduced = large.reshape(64, 11, 64, 11, 3).mean((1, 3))
    assert np.abs(reduced - small).mean() < 8 and np.abs(reduced[:, -8:] - small[:, -8:]).mean() < 16
    with pytest.raises(UserError, match="row from 0 to 0, got 1"):
        env.render(1)
    with pytest.raises(UserError, match="at least 64 pixels, got 10"):
        env.render(size=10)


def test_a_machine_that_cannot_draw_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback from deep inside OpenGL; everything but pictures still works."""

    def missing(name: str) -> None:
        raise ImportError(f"{name} has no library")

    monkeypatch.setattr(render, "import_module", missing)
    env = envs.make("mamujoco/2ant", 1)
    env.reset([0])
    with pytest.raises(
        UserError,
        match=r"cannot draw without a screen \(egl: mujoco\.egl has .*; osmesa: .*install libegl1.*MUJOCO_GL=egl",
    ):
        env.render()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(UserError, match=r"cannot draw without a screen \(osmesa: mujoco\.osmesa has no library\)"):
        env.render()
    env.step(torch.zeros(1, 2, 4))
