"""Pictures of SMAC battles, drawn with Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from marl_flow.envs.smac.battle import NEVER, TYPES, Army, Battle

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from torch import Tensor

WALL, FLOOR, INK, PAPER = (58, 60, 66), (236, 234, 226), (40, 40, 40), (250, 250, 247)
ALLY, ENEMY = (52, 108, 190), (196, 62, 52)
ALLY_SHOT, ENEMY_SHOT, HEAL = (40, 150, 255), (255, 120, 40), (40, 170, 80)
HEALTH, SHIELD, SPENT = (60, 180, 75), (70, 190, 240), (120, 120, 120)
REACH = (221, 227, 233)
LETTERS = {name: name[0].upper() for name in TYPES} | {"marauder": "R", "medivac": "+", "zergling": "z"}
MARGIN = 0.5  # of wall around the ground, in cells
BAND = 0.07  # of the caption on top and of the legend below
SMOOTHING = 3  # drawn this much larger, then reduced
FIRED_LOOPS = 8.0  # a shot is shown until one step after it was begun


@dataclass(frozen=True, kw_only=True)
class Camera:
    """How map coordinates become pixels: pixels per cell, and which map point `middle` is at which pixel `centre`."""

    scale: float
    middle: tuple[float, float]
    centre: tuple[float, float]

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        return (
            self.centre[0] + self.scale * (x - self.middle[0]),
            self.centre[1] - self.scale * (y - self.middle[1]),
        )

    def box(self, x: float, y: float, across: float, up: float) -> list[tuple[float, float]]:
        """Corners of a rectangle around a point, from half its width and height in cells."""
        return [self(x - across, y + up), self(x + across, y - up)]


def fit_camera(grid: np.ndarray, size: int) -> Camera:
    """The whole of the ground `grid` [x, y], as large as it fits between caption and legend, undistorted."""
    spans = [(float(cells[0]), float(cells[-1] + 1)) for cells in (np.flatnonzero(grid.any(axis)) for axis in (1, 0))]
    (low_x, high_x), (low_y, high_y) = spans
    band = round(BAND * size)
    scale = min(
        size / (high_x - low_x + 2.0 * MARGIN),
        (size - 2 * band) / (high_y - low_y + 2.0 * MARGIN),
    )
    return Camera(
        scale=scale,
        middle=((low_x + high_x) / 2.0, (low_y + high_y) / 2.0),
        centre=(size / 2.0, size / 2.0),
    )


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """One living unit of the picture, in plain numbers; target: the unit it is shooting or healing, or None."""

    index: int
    is_ally: bool
    name: str
    x: float
    y: float
    radius: float
    reach: float
    health: float
    shield: float | None
    target: int | None
    heals: bool


def draw_battle(battle: Battle, army: Army, grid: np.ndarray, caption: str, size: int) -> np.ndarray:
    """RGB uint8 [size, size, 3] of one battle: its columns [U, 1], its army's tables [U, 1], the cells that can be
    walked on bool [x, y]. Up is north.

    Allies are blue with their agent number, enemies red with their type's letter (the legend names both), discs as
    large as the units; dead units are not drawn. Bars: shield above health. Lines: shots begun or taken in the last
    step, and heals. Shade: where allies' weapons reach units of their own size.
    """
    from PIL import Image, ImageFont
    from PIL.ImageDraw import Draw

    pixels = size * SMOOTHING
    camera = fit_camera(grid, pixels)
    units = _units(battle, army)
    image = Image.new("RGB", (pixels, pixels), FLOOR)
    pen = Draw(image)
    hair, line = max(pixels // 600, 1), max(pixels // 300, 1)
    for unit in units:
        if unit.is_ally and not unit.heals and unit.reach > 1.0:
            around = unit.reach + 2.0 * unit.radius
            pen.ellipse(camera.box(unit.x, unit.y, around, around), fill=REACH)
    _draw_walls(pen, camera, grid)
    for unit in sorted(units, key=lambda entry: -entry.radius):
        body = camera.box(unit.x, unit.y, unit.radius, unit.radius)
        pen.ellipse(body, fill=ALLY if unit.is_ally else ENEMY, outline=INK, width=hair)
    by_index = {unit.index: unit for unit in units}
    for unit in units:
        if unit.target in by_index:
            other = by_index[unit.target]
            colour = HEAL if unit.heals else ALLY_SHOT if unit.is_ally else ENEMY_SHOT
            pen.line([camera(unit.x, unit.y), camera(other.x, other.y)], fill=colour, width=line)
    for unit in units:
        font = ImageFont.load_default(size=max(1.5 * unit.radius * camera.scale, 9.0 * SMOOTHING))
        text = str(unit.index) if unit.is_ally else LETTERS[unit.name]
        pen.text(camera(unit.x, unit.y - 0.15 * unit.radius), text, fill="white", font=font, anchor="mm")
    for unit in units:
        thick, half = max(0.14, 2.0 * SMOOTHING / camera.scale) / 2.0, max(unit.radius, 0.375)
        bars = [(unit.health, HEALTH)] + ([] if unit.shield is None else [(unit.shield, SHIELD)])
        for row, (fraction, colour) in enumerate(bars):
            height = unit.y + unit.radius + 2.0 * thick * row
            left, right = unit.x - half, unit.x + half
            pen.rectangle([camera(left, height + thick), camera(right, height - thick)], fill=SPENT)
            end = left + fraction * (right - left)
            pen.rectangle([camera(left, height + thick), camera(end, height - thick)], fill=colour)
    band = round(BAND * pixels)
    for top, text in ((0, caption), (pixels - band, _legend(army))):
        pen.rectangle([(0, top), (pixels, top + band)], fill=PAPER)
        font = ImageFont.load_default(size=0.6 * band)
        shrunk = min(1.0, (pixels - band) / max(font.getlength(text), 1.0))
        font = ImageFont.load_default(size=0.6 * band * shrunk)
        pen.text((band // 2, top + band // 2), text, fill=INK, font=font, anchor="lm")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)


def _draw_walls(pen: ImageDraw, camera: Camera, grid: np.ndarray) -> None:
    """Everything that is not ground, up to the picture's border."""
    margin = 16  # cells on every side, more than a picture shows
    for x, column in enumerate(np.pad(~grid, margin, constant_values=True), -margin):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], column, [False]])))
        for low, high in edges.reshape(-1, 2) - margin:
            pen.rectangle([camera(x, high), camera(x + 1, low)], fill=WALL)


def _units(battle: Battle, army: Army) -> list[_Unit]:
    """The living units."""

    def column(table: Tensor) -> list:
        return table[:, 0].tolist()

    names = [TYPES[unit_type] for unit_type in column(army.types)]
    x, y, health, shield = column(battle.x), column(battle.y), column(battle.health), column(battle.shield)
    radius, reach = column(army.radius), column(army.reach)
    max_health, max_shield = column(army.max_health), column(army.max_shield)
    heals, fired = (
        column(army.heals),
        column((battle.cooldown > army.period - FIRED_LOOPS) | (battle.windup < NEVER / 2)),
    )
    target, energy = column(battle.target), column(battle.energy)
    flying, flight_target = column(battle.flight < NEVER / 2), column(battle.flight_target)
    units = []
    for index, name in enumerate(names):
        if health[index] <= 0:
            continue
        aimed_at = flight_target[index] if flying[index] else target[index] if fired[index] or heals[index] else -1
        if heals[index] and aimed_at >= 0:
            gap = np.hypot(x[index] - x[aimed_at], y[index] - y[aimed_at])
            working = energy[index] > 0 and gap <= reach[index] + radius[index] + radius[aimed_at]
            aimed_at = aimed_at if working else -1
        units.append(
            _Unit(
                index=index,
                is_ally=index < army.num_allies,
                name=name,
                x=x[index],
                y=y[index],
                radius=radius[index],
                reach=reach[index],
                health=health[index] / max_health[index],
                shield=shield[index] / max_shield[index] if max_shield[index] else None,
                target=aimed_at if aimed_at >= 0 else None,
                heals=heals[index],
            )
        )
    return units


def _legend(army: Army) -> str:
    """Which numbers and letters are which units."""
    names = [TYPES[unit_type] for unit_type in army.types[:, 0].tolist()]
    allies, enemies = names[: army.num_allies], names[army.num_allies :]
    numbers = {name: [index for index, other in enumerate(allies) if other == name] for name in allies}
    left = ", ".join(f"{_spans(members)} {name}" for name, members in numbers.items())
    right = ", ".join(f"{LETTERS[name]} {name}" for name in sorted(set(enemies)))
    return f"{left}   against   {right}".replace("_", " ")


def _spans(numbers: list[int]) -> str:
    """Ascending numbers, runs of them abbreviated: 0-2 5."""
    runs = [[number] for number in numbers]
    for index in range(len(runs) - 1, 0, -1):
        if runs[index][0] == runs[index - 1][-1] + 1:
            runs[index - 1] += runs.pop(index)
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
