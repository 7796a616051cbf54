"""SMAC's maps: where armies stand, what the enemy is ordered to do, which ground can be walked on.

Source: the map archives `oxwhirl/smac: smac/env/starcraft2/maps/SMAC_Maps/*.SC2Map` (points, orders, terrain layers).
Who fights is in `marl_flow.tasks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType

import numpy as np

from marl_flow import tasks
from marl_flow.config import nearest
from marl_flow.envs.smac.units import UNITS, Unit
from marl_flow.interfaces import UserError

MAP_SIZE = 32
PLAYABLE = (2.0, 30.0)
"""Unit centres stay in this range on both axes: 28 by 28 cells, which SMAC divides by."""
LATTICE = 0.918
"""Spacing of newly created units over their diameter: 2820/4096 against 0.75 in a real 3m episode."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Group:
    """`count` units of one type created around one point."""

    unit: str
    count: int
    point: Point


@dataclass(frozen=True, kw_only=True)
class BattleMap:
    """One scenario: who fights, and where. Groups in the order in which the map creates them.

    order: where the enemy attack-moves to; two points mean a point drawn between them, none that it has no order.
    ally_bits, enemy_bits: unit types in the order of their one-hot bits; empty where a side has one type.
    """

    name: str
    battle: tasks.Battle
    allies: tuple[Group, ...]
    enemies: tuple[Group, ...]
    order: tuple[Point, ...]
    terrain: str
    ally_bits: tuple[str, ...] = ()
    enemy_bits: tuple[str, ...] = ()

    @cached_property
    def agents(self) -> tuple[tuple[Unit, Point], ...]:
        """Allies by agent number: sorted by type, then x, then y, as SMAC numbers them."""
        return tuple(sorted(place_units(self.allies, self.terrain), key=lambda entry: (entry[0].name, entry[1])))

    @cached_property
    def opponents(self) -> tuple[tuple[Unit, Point], ...]:
        """Enemies by number: in the order of their creation (SMAC does not sort them)."""
        return tuple(place_units(self.enemies, self.terrain))

    @property
    def num_agents(self) -> int:
        return self.battle.num_agents

    @property
    def num_enemies(self) -> int:
        return self.battle.num_enemies

    @property
    def ally_shield(self) -> bool:
        """Whether allies' shields are part of observations and states."""
        return self.battle.races[0] == "protoss"

    @property
    def enemy_shield(self) -> bool:
        return self.battle.races[1] == "protoss"

    @property
    def has_medivacs(self) -> bool:
        """SMAC's MMM rules: medivacs heal instead of attacking, and a side of medivacs alone has lost."""
        return any(group.unit == "medivac" for group in self.allies)


def find_map(name: str) -> BattleMap:
    if name not in MAPS:
        raise UserError(f"unknown SMAC map {name!r}; {nearest(name, MAPS)}")
    return MAPS[name]


# Where units stand


def place_units(groups: tuple[Group, ...], terrain: str) -> Iterator[tuple[Unit, Point]]:
    """Units and positions, in order of creation: each on the free point of its type's lattice nearest to its group's
    point that can be walked on, the east first, then clockwise.

    A real 3m episode shows the point itself, one step east and one step south of it; for more than three units and for
    mixed groups this is a guess (no recording was found).
    """
    placed: list[tuple[Unit, Point]] = []
    grid = walkable(terrain)
    for group in groups:
        unit = UNITS[group.unit]
        step = LATTICE * 2 * unit.separation
        points = lattice(group.point, step)
        for _ in range(group.count):
            x, y = next(p for p in points if grid[int(p[0]), int(p[1])] and _is_free(unit, p, placed))
            placed.append((unit, (x, y)))
            yield unit, (x, y)


def lattice(centre: Point, step: float) -> Iterator[Point]:
    """Points of a square lattice around its centre, nearest first, then clockwise from the east."""
    steps = range(-20, 21)

    def order(cell: tuple[int, int]) -> tuple[int, float]:
        return cell[0] ** 2 + cell[1] ** 2, -math.atan2(cell[1], cell[0]) % (2 * math.pi)

    for i, j in sorted(((i, j) for i in steps for j in steps), key=order):
        yield centre[0] + i * step, centre[1] + j * step


def _is_free(unit: Unit, point: Point, placed: list[tuple[Unit, Point]]) -> bool:
    return all(
        unit.air != other.air
        or unit.walks_over != other.walks_over
        or math.dist(point, position) > LATTICE * (unit.separation + other.separation) - 1e-6
        for other, position in placed
    )


# What can be walked on: rows of cells (first y, last y, first x, last x), all inclusive

_ROWS: Mapping[str, tuple[tuple[int, int, int, int], ...]] = MappingProxyType(
    {
        "strip": ((8, 23, 0, 31),),
        "open": ((0, 31, 0, 31),),
        "octagon": ((6, 7, 10, 21), (8, 9, 8, 23), (10, 21, 6, 25), (22, 23, 8, 23), (24, 25, 10, 21)),
        "pentagon": ((8, 19, 8, 19), (20, 21, 10, 17), (22, 23, 12, 15)),
        "arena": ((8, 9, 10, 19), (10, 17, 8, 21), (18, 19, 10, 19)),
        "corridor": (
            (2, 11, 2, 11),
            (12, 13, 12, 13),
            (14, 15, 14, 25),
            (16, 17, 14, 27),
            (18, 21, 12, 29),
            (22, 23, 14, 29),
            (24, 25, 16, 29),
            (26, 27, 18, 29),
            (28, 29, 20, 29),
        ),
        "ravine": (
            (2, 3, 2, 7),
            (4, 7, 2, 11),
            (8, 11, 4, 15),
            (12, 15, 8, 19),
            (16, 17, 10, 19),
            (18, 21, 14, 25),
            (22, 23, 16, 29),
            (24, 27, 20, 29),
            (28, 29, 22, 29),
        ),
    }
)
_NECK = (11, 13, 10, 15)
"""The corridor's neck on the finer cliff layer: the coarse layer alone would leave its rooms unconnected."""


@cache
def walkable(terrain: str) -> np.ndarray:
    """Which cells can be walked on, bool [x, y]; also what SMAC's move legality reads.

    The coarser of the two published layers, inside the playable square. The game's own pathing grid was not available.
    """
    grid = np.zeros((MAP_SIZE, MAP_SIZE), dtype=bool)
    rows = _ROWS[terrain] + ((_NECK,) if terrain == "corridor" else ())
    for low_y, high_y, low_x, high_x in rows:
        grid[low_x : high_x + 1, low_y : high_y + 1] = True
    low, high = int(PLAYABLE[0]), int(PLAYABLE[1])
    inside = np.zeros_like(grid)
    inside[low:high, low:high] = True
    grid &= inside
    grid.setflags(write=False)
    return grid


# The maps


@dataclass(frozen=True, kw_only=True)
class _Ground:
    """Where a map's armies are created, and its terrain.

    allies, enemies: one point for the whole army, else one for each of its unit types, else one for each unit.
    order: None means that the enemy attack-moves to where the allies were created.
    """

    allies: tuple[Point, ...] = ((9.0, 16.0),)
    enemies: tuple[Point, ...] = ((23.0, 16.0),)
    terrain: str = "strip"
    order: tuple[Point, ...] | None = None


_FAR_CORNER = (27.91, 28.24)
_OPEN = _Ground(terrain="open")
_GROUNDS: Mapping[str, _Ground] = MappingProxyType(
    {
        "3s_vs_3z": _OPEN,
        "3s_vs_4z": _OPEN,
        "3s_vs_5z": _OPEN,
        "2m_vs_1z": _Ground(
            allies=((13.0, 12.0), (19.0, 12.0)),
            enemies=((16.0, 19.0),),
            order=((13.0, 12.0), (19.0, 12.0)),
            terrain="octagon",
        ),
        "2s_vs_1sc": _Ground(
            allies=((11.12, 10.34), (16.98, 10.37)), enemies=((13.92, 20.04),), order=(), terrain="pentagon"
        ),
        "so_many_baneling": _Ground(allies=((11.47, 12.02),), enemies=(_FAR_CORNER,), terrain="ravine"),
        "6h_vs_8z": _Ground(allies=((14.60, 9.49),), enemies=((14.41, 16.76),), terrain="arena"),
        "corridor": _Ground(allies=((19.04, 19.12),), enemies=(_FAR_CORNER,), terrain="corridor"),
        "bane_vs_bane": _Ground(
            allies=((16.0, 11.0), (16.0, 8.0)),
            enemies=((16.0, 21.0), (16.0, 24.0)),
            order=((16.0, 8.0),),
            terrain="octagon",
        ),
    }
)
"""Maps that differ from two armies facing each other on a strip."""


def _groups(army: tasks.Army, points: tuple[Point, ...]) -> tuple[Group, ...]:
    if len(points) == 1:
        points *= len(army)
    elif len(points) != len(army):  # a point for each unit
        army = tuple((unit, 1) for unit, count in army for _ in range(count))
    return tuple(Group(unit=unit, count=count, point=at) for (unit, count), at in zip(army, points, strict=True))


def _bits(army: tasks.Army) -> tuple[str, ...]:
    return tuple(sorted(unit for unit, _ in army)) if len(army) > 1 else ()


def _build_map(name: str, smac_map: tasks.SmacMap) -> BattleMap:
    ground = _GROUNDS.get(name, _Ground())
    enemy_bits = _bits(smac_map.enemies)
    if enemy_bits == ("stalker", "zealot"):
        enemy_bits = ("zealot", "stalker")  # as in SMAC, for enemies only
    return BattleMap(
        name=name,
        battle=smac_map.battle,
        allies=_groups(smac_map.allies, ground.allies),
        enemies=_groups(smac_map.enemies, ground.enemies),
        order=ground.allies if ground.order is None else ground.order,
        terrain=ground.terrain,
        ally_bits=_bits(smac_map.allies),
        enemy_bits=enemy_bits,
    )


MAPS: Mapping[str, BattleMap] = MappingProxyType(
    {name: _build_map(name, smac_map) for name, smac_map in tasks.SMAC_MAPS.items() if name not in tasks.NOT_EMBEDDED}
)
