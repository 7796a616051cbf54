"""Pictures show the state the right way up, in known colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from marl_flow import envs
from marl_flow.envs.mpe.physics import ParticleState
from marl_flow.envs.mpe.render import COLOURS, SHADES, VIEW
from marl_flow.interfaces import UserError


def pixel(picture: np.ndarray, x: float, y: float, view: float = VIEW) -> list[int]:
    """Colour at a place of the world."""
    size, band = picture.shape[0], 0.07 * picture.shape[0]
    scale = (size - band) / (2.0 * view)
    return picture[round(band + (size - band) / 2 - scale * y), round(size / 2 + scale * x)].tolist()


def restored(task_id: str, places: list[list[float]]):
    env = envs.make(task_id, 2)
    env.reset([0, 1])
    positions = torch.stack([env.state.positions[0], torch.tensor(places)])
    env.set_state(
        ParticleState(
            positions=positions, velocities=torch.zeros_like(env.state.velocities), steps=torch.tensor([0, 7])
        )
    )
    return env


def test_entities_are_where_they_are() -> None:
    """Catches a flipped axis, a picture of another row, and kinds in each other's colours."""
    places = [
        [-0.5, 0.7],
        [0.0, 0.9],
        [0.7, 0.9],
        [0.5, 0.0],
        [0.6, -0.6],
        [-0.9, -0.9],
        [-0.9, 0.0],
        [-0.5, -0.4],
        [0, 0.4],
    ]
    picture = restored("mpe/simple_world", places).render(1)
    assert picture.shape == (400, 400, 3) and picture.dtype == np.uint8
    entities = ["agent"] * 3 + ["prey", "obstacle", "food", "food", "forest", "forest"]
    for index, (entity, (x, y)) in enumerate(zip(entities, places, strict=True)):
        colour = SHADES[index] if entity == "agent" else COLOURS[entity]
        off = 0.02 if entity == "food" else 0.03  # beside the velocity tick
        assert np.abs(np.array(pixel(picture, x - off, y)) - colour).max() < 40, entity


def test_the_view_widens_for_runaways() -> None:
    """Catches agents that leave the picture: nothing holds them in the arena."""
    places = [[2.0, -2.0], [0.0, 0.0], [0.5, 0.5], [0.9, 0.9], [-0.9, 0.9], [0.9, -0.9]]
    picture = restored("mpe/simple_spread", places).render(1)
    assert np.abs(np.array(pixel(picture, 2.05, -2.0, VIEW * 1.35**3)) - SHADES[0]).max() < 40


def test_caption_and_size() -> None:
    """Catches a caption that stands still, and sizes that cannot be read."""
    env = envs.make("mpe/simple_spread", 1)
    env.reset([0])
    captions = [env.render(size=200)]
    env.step(torch.zeros(1, 3, 2))
    captions.append(env.render(size=200))
    env.set_state(env.state)  # the same step, no return
    captions.append(env.render(size=200))
    assert captions[0].shape == (200, 200, 3)
    assert len({picture[:14].tobytes() for picture in captions}) == 3
    with pytest.raises(UserError, match="row from 0 to 0, got 1"):
        env.render(1)
    with pytest.raises(UserError, match="at least 64 pixels, got 10"):
        env.render(size=10)
