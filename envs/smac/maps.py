"""SMAC's maps: armies, where they stand, what the enemy is ordered, what ground can be walked on.

Sources: `oxwhirl/smac: smac/env/starcraft2/maps/smac_maps.py` (armies, limits, unit-type bits) and the map archives
`smac/env/starcraft2/maps/SMAC_Maps/*.SC2Map` (points, orders, terrain layers). `2c_vs_64zg` is left out: colossi
walking up cliffs are not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType

import numpy as np

from marl_flow.config import nearest
from marl_flow.envs.smac.units import UNITS, Unit
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

MAP_SIZE = 32
PLAYABLE = (2.0, 30.0)
"""Unit centres stay in this range on both axes: 28 by 28 cells, which SMAC divides by."""
NUM_BASIC_ACTIONS = 6
"""No-op, stop, north, south, east, west; then one attack (or heal) per target."""
LATTICE = 0.918
"""Spacing of freshly created units over their diameter: 2820/4096 against 0.75 in a real 3m episode."""

Point = tuple[float, float]
Army = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """`count` units of one type created around one point."""

    unit: str
    count: int
    point: Point


@dataclass(frozen=True, kw_only=True)
class BattleMap:
    """One scenario. Groups in the order in which the map creates them.

    order: where the enemy attack-moves to; two points mean a place drawn between them, none that it has no order.
    ally_bits, enemy_bits: unit types in the order of their one-hot bits; empty where a side has one type.
    """

    name: str
    allies: tuple[Group, ...]
    enemies: tuple[Group, ...]
    order: tuple[Point, ...]
    terrain: str
    limit: int
    ally_bits: tuple[str, ...] = ()
    enemy_bits: tuple[str, ...] = ()

    @cached_property
    def agents(self) -> tuple[tuple[Unit, Point], ...]:
        """Allies by agent number: sorted by type, then x, then y, as SMAC numbers them."""
        return tuple(sorted(place(self.allies, self.terrain), key=lambda entry: (entry[0].name, entry[1])))

    @cached_property
    def opponents(self) -> tuple[tuple[Unit, Point], ...]:
        """Enemies by number: in the order of their creation (SMAC leaves them unsorted)."""
        return tuple(place(self.enemies, self.terrain))

    @property
    def num_agents(self) -> int:
        return sum(group.count for group in self.allies)

    @property
    def num_enemies(self) -> int:
        return sum(group.count for group in self.enemies)

    @property
    def ally_shield(self) -> bool:
        """Whether allies' shields are part of observations and states."""
        return UNITS[self.allies[0].unit].race == "protoss"

    @property
    def enemy_shield(self) -> bool:
        return UNITS[self.enemies[0].unit].race == "protoss"

    @property
    def has_medivacs(self) -> bool:
        """SMAC's MMM rules: medivacs heal instead of attacking and cannot hold the field alone."""
        return any(group.unit == "medivac" for group in self.allies)


def task_spec(battle: BattleMap, task_id: str, extra_observation: int = 0) -> TaskSpec:
    """The `TaskSpec` of a scenario; observations without agent ids, as SMAC gives them by default."""
    agents, enemies = battle.num_agents, battle.num_enemies
    ally = int(battle.ally_shield) + len(battle.ally_bits)
    enemy = int(battle.enemy_shield) + len(battle.enemy_bits)
    actions = NUM_BASIC_ACTIONS + enemies
    own = 1 + ally + extra_observation
    return TaskSpec(
        task_id=task_id,
        agents=tuple(f"agent_{index}" for index in range(agents)),
        observation_size=4 + enemies * (5 + enemy) + (agents - 1) * (5 + ally) + own,
        action=ActionSpec(kind="discrete", size=actions),
        max_steps=battle.limit,
        team_reward="shared",
        state_size=agents * (4 + ally) + enemies * (3 + enemy) + agents * actions,
    )


def find_map(name: str) -> BattleMap:
    if name not in MAPS:
        raise UserError(f"unknown SMAC map {name!r}; {nearest(name, MAPS)}")
    return MAPS[name]


# Where units stand


def place(groups: tuple[Group, ...], terrain: str) -> Iterator[tuple[Unit, Point]]:
    """Units and places, in order of creation: each on the free point of its type's lattice nearest to its group's
    point that can be walked on, the east first, then clockwise.

    A real 3m episode shows the point itself, one step east and one step south of it; beyond three units and for mixed
    groups this is a guess (no recording was found).
    """
    placed: list[tuple[Unit, Point]] = []
    grid = walkable(terrain)
    for group in groups:
        unit = UNITS[group.unit]
        step = LATTICE * 2 * unit.separation
        places = lattice(group.point, step)
        for _ in range(group.count):
            x, y = next(p for p in places if grid[int(p[0]), int(p[1])] and _is_free(unit, p, placed))
            placed.append((unit, (x, y)))
            yield unit, (x, y)


def lattice(centre: Point, step: float) -> Iterator[Point]:
    """Points of a square lattice around its centre, nearest first, then clockwise from the east."""
    reach = range(-20, 21)

    def order(cell: tuple[int, int]) -> tuple[int, float]:
        return cell[0] ** 2 + cell[1] ** 2, -math.atan2(cell[1], cell[0]) % (2 * math.pi)

    for i, j in sorted(((i, j) for i in reach for j in reach), key=order):
        yield centre[0] + i * step, centre[1] + j * step


def _is_free(unit: Unit, point: Point, placed: list[tuple[Unit, Point]]) -> bool:
    return all(
        unit.air != other.air
        or unit.walks_over != other.walks_over
        or math.dist(point, place) > LATTICE * (unit.separation + other.separation) - 1e-6
        for other, place in placed
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

_WEST, _EAST = (9.0, 16.0), (23.0, 16.0)


def _groups(army: Army, point: Point) -> tuple[Group, ...]:
    return tuple(Group(unit=unit, count=count, point=point) for unit, count in army)


def _facing(
    name: str,
    allies: Army,
    enemies: Army,
    limit: int,
    bits: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
    terrain: str = "strip",
    points: tuple[Point, Point] = (_WEST, _EAST),
) -> BattleMap:
    """Two armies at two points; the enemy attack-moves to where the allies began."""
    return BattleMap(
        name=name,
        allies=_groups(allies, points[0]),
        enemies=_groups(enemies, points[1]),
        order=(points[0],),
        terrain=terrain,
        limit=limit,
        ally_bits=bits[0],
        enemy_bits=bits[1],
    )


_SZ = (("stalker", "zealot"), ("zealot", "stalker"))  # reversed for enemies, as in SMAC
_CSZ = (("colossus", "stalker", "zealot"),) * 2
_MMM = (("marauder", "marine", "medivac"),) * 2
_2S3Z: Army = (("stalker", 2), ("zealot", 3))
_3S5Z: Army = (("stalker", 3), ("zealot", 5))
_1C3S5Z: Army = (("colossus", 1), *_3S5Z)
_7M2M1M: Army = (("marine", 7), ("marauder", 2), ("medivac", 1))
_FAR_CORNER, _NEAR_CORNER = (27.91, 28.24), (4.47, 4.33)

MAPS: Mapping[str, BattleMap] = MappingProxyType(
    {
        battle.name: battle
        for battle in (
            _facing("3m", (("marine", 3),), (("marine", 3),), 60),
            _facing("8m", (("marine", 8),), (("marine", 8),), 120),
            _facing("25m", (("marine", 25),), (("marine", 25),), 150),
            _facing("5m_vs_6m", (("marine", 5),), (("marine", 6),), 70),
            _facing("8m_vs_9m", (("marine", 8),), (("marine", 9),), 120),
            _facing("10m_vs_11m", (("marine", 10),), (("marine", 11),), 150),
            _facing("27m_vs_30m", (("marine", 27),), (("marine", 30),), 180),
            _facing("2s3z", _2S3Z, _2S3Z, 120, bits=_SZ),
            _facing("3s5z", _3S5Z, _3S5Z, 150, bits=_SZ),
            _facing("3s5z_vs_3s6z", _3S5Z, (("stalker", 3), ("zealot", 6)), 170, bits=_SZ),
            _facing("3s_vs_3z", (("stalker", 3),), (("zealot", 3),), 150, terrain="open"),
            _facing("3s_vs_4z", (("stalker", 3),), (("zealot", 4),), 200, terrain="open"),
            _facing("3s_vs_5z", (("stalker", 3),), (("zealot", 5),), 250, terrain="open"),
            BattleMap(
                name="2m_vs_1z",
                allies=(
                    Group(unit="marine", count=1, point=(13.0, 12.0)),
                    Group(unit="marine", count=1, point=(19.0, 12.0)),
                ),
                enemies=(Group(unit="zealot", count=1, point=(16.0, 19.0)),),
                order=((13.0, 12.0), (19.0, 12.0)),
                terrain="octagon",
                limit=150,
            ),
            BattleMap(
                name="2s_vs_1sc",
                allies=(
                    Group(unit="stalker", count=1, point=(11.12, 10.34)),
                    Group(unit="stalker", count=1, point=(16.98, 10.37)),
                ),
                enemies=(Group(unit="spine_crawler", count=1, point=(13.92, 20.04)),),
                order=(),
                terrain="pentagon",
                limit=300,
            ),
            _facing(
                "so_many_baneling",
                (("zealot", 7),),
                (("baneling", 32),),
                100,
                terrain="ravine",
                points=((11.47, 12.02), _FAR_CORNER),
            ),
            _facing("MMM", _7M2M1M, _7M2M1M, 150, bits=_MMM),
            _facing("MMM2", _7M2M1M, (("marine", 8), ("marauder", 3), ("medivac", 1)), 180, bits=_MMM),
            _facing("1c3s5z", _1C3S5Z, _1C3S5Z, 180, bits=_CSZ),
            _facing(
                "6h_vs_8z",
                (("hydralisk", 6),),
                (("zealot", 8),),
                150,
                terrain="arena",
                points=((14.60, 9.49), (14.41, 16.76)),
            ),
            _facing(
                "corridor",
                (("zealot", 6),),
                (("zergling", 24),),
                400,
                terrain="corridor",
                points=((19.04, 19.12), _FAR_CORNER),
            ),
            BattleMap(
                name="bane_vs_bane",
                allies=(
                    Group(unit="zergling", count=20, point=(16.0, 11.0)),
                    Group(unit="baneling", count=4, point=(16.0, 8.0)),
                ),
                enemies=(
                    Group(unit="zergling", count=20, point=(16.0, 21.0)),
                    Group(unit="baneling", count=4, point=(16.0, 24.0)),
                ),
                order=((16.0, 8.0),),
                terrain="octagon",
                limit=200,
                ally_bits=("baneling", "zergling"),
                enemy_bits=("baneling", "zergling"),
            ),
        )
    }
)
