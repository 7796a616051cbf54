"""Pictures of battles show the state the right way up, in known colours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from marl_flow.envs.smac.env import BattleState, SmacEnv
from marl_flow.envs.smac.maps import MAPS, walkable
from marl_flow.envs.smac.render import ALLY, ALLY_SHOT, ENEMY, FLOOR, HEAL, HEALTH, SHIELD, SPENT, WALL, fit_camera
from marl_flow.interfaces import UserError

SIZE = 800  # large enough for bars of several pixels


def restored(name: str, positions: dict[int, tuple[float, float]], **values: dict[int, float]) -> SmacEnv:
    """A map's first battle (row 1 of two) with the named units at places and everybody else dead, far away."""
    env = SmacEnv(f"smac/{name}", 2)
    env.reset([0, 1])
    state = env.battle_state
    for unit in range(env.army.num_units):
        x, y = positions.get(unit, (1000.0 + unit, 1000.0))
        state.battle.x[unit, 1], state.battle.y[unit, 1] = x, y
        state.battle.health[unit, 1] *= unit in positions
    for column, entries in values.items():
        for unit, value in entries.items():
            getattr(state.battle, column)[unit, 1] = value
    env.set_state(BattleState(battle=state.battle, steps=state.steps, last_actions=state.last_actions))
    return env


def colour_at(picture: np.ndarray, name: str, x: float, y: float) -> np.ndarray:
    right, down = fit_camera(walkable(MAPS[name].terrain), SIZE)(x, y)
    return picture[int(down), int(right)].astype(int)


def is_near(colour: np.ndarray, expected: tuple[int, int, int]) -> bool:
    return bool(np.abs(colour - expected).max() < 30)


def test_the_camera_holds_the_ground() -> None:
    """Catches a stretched picture, north at the bottom, and ground that is cut off: the strip spans 28 by 16 cells."""
    grid = walkable("strip")
    camera = fit_camera(grid, SIZE)
    (left, low), (right, high) = camera(2.0, 8.0), camera(30.0, 24.0)
    assert 0 < left < right < SIZE and 0 < high < low < SIZE
    assert (right - left) / 28 == pytest.approx((low - high) / 16) == pytest.approx(camera.scale)
    assert right - left > 0.9 * SIZE  # as large as it fits


@pytest.mark.parametrize("name", ["3m", "corridor"])
def test_walls_are_dark_where_they_are(name: str) -> None:
    """Catches a grid read as [y, x] and walls painted over the ground."""
    picture = restored(name, {0: (20.5, 20.5), MAPS[name].num_agents: (21.5, 20.5)}).render(1, SIZE)
    grid = walkable(MAPS[name].terrain)
    for x, y in ((4, 5), (4, 20), (14, 12), (25, 12), (28, 26), (28, 5), (3, 12)):
        colour = colour_at(picture, name, x + 0.5, y + 0.5)
        assert is_near(colour, WALL) != bool(grid[x, y]), f"cell {x}, {y}"


def test_units_are_where_they_are() -> None:
    """Catches a flipped axis, another row's picture, sides in each other's colours, other radii, and dead units."""
    positions = {0: (10.0, 12.0), 2: (15.0, 20.0), 3: (24.0, 19.0)}
    picture = restored("3m", positions, x={4: 20.0}, y={4: 10.0}).render(1, SIZE)
    assert is_near(colour_at(picture, "3m", 19.75, 9.9), FLOOR)  # where somebody died
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    for unit, (x, y) in positions.items():
        for off_x, off_y in ((-0.27, -0.12), (0.27, -0.12)):  # beside the number, below the bars
            assert is_near(colour_at(picture, "3m", x + off_x, y + off_y), ALLY if unit < 3 else ENEMY), unit
        for off_x, off_y in ((-0.5, 0.0), (0.0, -0.5)):
            beyond = colour_at(picture, "3m", x + off_x, y + off_y)
            assert not is_near(beyond, ALLY) and not is_near(beyond, ENEMY)
    blue = np.abs(picture.astype(int) - ALLY).max(-1) < 30
    assert 250 < blue.sum() < 2 * 3.15 * (0.375 * fit_camera(walkable("strip"), SIZE).scale) ** 2


def test_bars_shrink() -> None:
    """Catches bars that stand still, that shrink from the wrong end, and shields shown as health."""
    x, y, radius = 10.0, 12.0, 0.625
    for health, shield in ((1.0, 1.0), (0.5, 0.25), (0.25, 0.75)):
        env = restored("2s3z", {0: (x, y), 5: (25.0, 12.0)}, health={0: 80 * health}, shield={0: 80 * shield})
        picture = env.render(1, SIZE)
        for height, fraction, colour in ((y + radius, health, HEALTH), (y + radius + 0.15, shield, SHIELD)):
            for part in (0.1, 0.4, 0.6, 0.9):
                observed = colour_at(picture, "2s3z", x - radius + 2 * radius * part, height)
                assert is_near(observed, colour if part < fraction else SPENT), (health, shield, part)


@pytest.mark.parametrize(
    ("column", "value", "shown"), [("cooldown", 12.0, True), ("windup", 0.5, True), ("cooldown", 2.0, False)]
)
def test_shots_are_lines(column: str, value: float, shown: bool) -> None:
    """Catches shots that are not shown, drawn to somebody else, or shown long after they were taken."""
    positions = {0: (10.0, 12.0), 3: (14.0, 20.0), 4: (15.0, 12.0)}
    env = restored("3m", positions, **{"target": {0: 4}, column: {0: value}})
    picture = env.render(1, SIZE)
    for fraction in (0.3, 0.5, 0.7):
        assert is_near(colour_at(picture, "3m", 10.0 + 5 * fraction, 12.0), ALLY_SHOT) == shown
        assert not is_near(colour_at(picture, "3m", 10.0 + 4 * fraction, 12.0 + 8 * fraction), ALLY_SHOT)


def test_heals_are_lines_of_their_own() -> None:
    """Catches heals shown as shots, and those shown from out of reach."""
    for gap, shown in ((4.0, True), (6.0, False)):
        env = restored("MMM", {9: (10.0, 12.0), 2: (10.0 + gap, 12.0), 10: (28.0, 20.0)}, target={9: 2})
        assert is_near(colour_at(env.render(1, SIZE), "MMM", 12.0, 12.0), HEAL) == shown


def test_reach_is_shaded() -> None:
    """Catches a shade that hides the ground or does not end where the weapon reaches (5.75 between marines)."""
    picture = restored("3m", {0: (10.0, 16.0), 3: (28.0, 16.0)}).render(1, SIZE)
    inside, outside = (colour_at(picture, "3m", 10.0 + gap, 16.0) for gap in (5.65, 5.85))
    assert is_near(outside, FLOOR) and outside.tolist() == list(FLOOR)
    assert inside.tolist() != outside.tolist() and is_near(inside, FLOOR)


@pytest.mark.parametrize("name", ["3m", "MMM", "so_many_baneling"])
def test_caption_and_size(name: str) -> None:
    """Catches a caption that stands still, pictures that differ from call to call, sizes and rows that are none."""
    env = SmacEnv(f"smac/{name}", 1)
    env.reset([0])
    first = env.render(size=96)
    assert first.shape == (96, 96, 3) and np.array_equal(first, env.render(size=96))
    state = env.battle_state
    env.set_state(dataclasses.replace(state, steps=torch.tensor([7])))
    later = env.render(size=96)
    assert not np.array_equal(later[:6], first[:6]) and np.array_equal(later[12:], first[12:])
    with pytest.raises(UserError, match="row from 0 to 0, got 1"):
        env.render(1)
    with pytest.raises(UserError, match="at least 64 pixels, got 10"):
        env.render(size=10)
