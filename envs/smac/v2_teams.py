"""What SMACv2 draws for an episode: who fights, and where everybody starts. Row e depends on seeds[e] only.

Source: `oxwhirl/smacv2: smacv2/env/starcraft2/distributions.py` (WeightedTeamsDistribution, ReflectPosition...,
SurroundedPosition..., SurroundedAndReflectPositionDistribution) and `smacv2/examples/configs/sc2_gen_*.yaml`, 577ab5a.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.envs.smac.battle import TYPES
from marl_flow.envs.smac.maps import LATTICE, MAP_SIZE, lattice
from marl_flow.envs.smac.units import UNITS

RACES: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "terran": ("marine", "marauder", "medivac"),
        "protoss": ("stalker", "zealot", "colossus"),
        "zerg": ("zergling", "hydralisk", "baneling"),
    }
)
"""The unit types of a race in the order of their one-hot bits, the rare one last."""
WEIGHTS = (0.45, 0.45, 0.1)
NEVER_ALONE = ("medivac", "baneling")
"""A team of these alone is drawn again."""
REFLECT_SHARE = 0.5
"""Of the episodes: mirrored sides; in the others the allies are surrounded."""
BUFFER = 1.0
"""Mirrored allies start at least this far from the middle line."""
OFFSET = 2.0
"""Enemies that surround start at least this far from the centre, on both axes."""
_PLACES, _TEAM, _MORE = -1, -2, -3  # streams; those of battles are not negative
_CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0))


def draw_teams(seeds: Tensor, race: str, agents: int, enemies: int) -> Tensor:
    """Unit types [N + M, E], indices of TYPES: the enemies are as the allies, then the further ones."""
    ours = _team(seeds, race, agents, _TEAM)
    if enemies == agents:
        return torch.cat([ours, ours])
    return torch.cat([ours, ours, _team(seeds, race, enemies - agents, _MORE)])


def _team(seeds: Tensor, race: str, size: int, stream: int) -> Tensor:
    """Unit types [size, E], independent but for the teams that are drawn again."""
    types = torch.tensor([TYPES.index(name) for name in RACES[race]], device=seeds.device)
    bounds = torch.tensor(WEIGHTS, dtype=torch.float64, device=seeds.device).cumsum(0)[:-1]
    team = torch.full((size, len(seeds)), -1, device=seeds.device)
    missing = torch.ones_like(seeds, dtype=torch.bool)
    while bool(missing.any()):
        draws = seeding.row_uniform(seeds, stream, size, device=seeds.device).t().contiguous()
        team = torch.where(missing, types[torch.bucketize(draws, bounds, right=True)], team)
        missing = (team == types[-1]).all(0) & (RACES[race][-1] in NEVER_ALONE)
        stream -= 2
    return team


def draw_places(seeds: Tensor, agents: int, enemies: int) -> tuple[Tensor, Tensor]:
    """Places x, y [N + M, E], float64, on the whole map, several units on one point where they start as a group.

    Reflect: allies anywhere in the left half, enemies mirrored in the middle line, further ones anywhere in the right
    half. Surrounded: allies in the centre, enemies in one to four groups on as many diagonals, each somewhere between
    its corner and `OFFSET` from the centre.
    """
    more, half = enemies - agents, MAP_SIZE / 2
    parts = [1, 1, 4, 4, enemies, agents, agents, more, more]
    draws = seeding.row_uniform(seeds, _PLACES, sum(parts), device=seeds.device).t()
    kind, share, along, shuffle, members, ours_x, ours_y, more_x, more_y = draws.split(parts)

    left, height = ours_x * (half - BUFFER), ours_y * MAP_SIZE
    reflect_x = torch.cat([left, MAP_SIZE - left, half + more_x * half])
    reflect_y = torch.cat([height, height, more_y * MAP_SIZE])

    groups = 1.0 + (4.0 * share).floor()
    group = (members * groups).long().sort(0).values  # [M, E]: who is in one follow each other
    diagonal, where = shuffle.argsort(0).gather(0, group), along.gather(0, group)
    corners = torch.tensor(_CORNERS, dtype=torch.float64, device=seeds.device)[diagonal]  # [M, E, 2]
    near = half + OFFSET * (2.0 * corners - 1.0)
    place = near * where[..., None] + MAP_SIZE * corners * (1.0 - where[..., None])
    centre = torch.full_like(ours_x, half)

    reflects = kind <= REFLECT_SHARE
    x = torch.where(reflects, reflect_x, torch.cat([centre, place[..., 0]]))
    return x, torch.where(reflects, reflect_y, torch.cat([centre, place[..., 1]]))


def settle(
    kinds: Tensor, x: Tensor, y: Tensor, num_allies: int, box: tuple[float, float, float, float]
) -> tuple[Tensor, Tensor]:
    """Free places x, y [U, E], float64: every unit on the free point nearest to its own, as `maps.place` has it.

    One after the other, allies first; points of the unit's lattice around its place (which comes first), enemies'
    mirrored in x. box: low x, high x, low y, high y that nobody leaves; who starts outside begins at its edge.
    """
    units = [UNITS[name] for name in TYPES]
    separation = torch.tensor([unit.separation for unit in units], dtype=torch.float64, device=x.device)[kinds]
    layer = torch.tensor([2 * unit.air + unit.walks_over for unit in units], device=x.device)[kinds]
    points = list(lattice((0.0, 0.0), 2.0 * LATTICE))  # in separations
    x, y = x.clamp(box[0], box[1]), y.clamp(box[2], box[3])
    for unit in range(1, len(x)):
        side = 1.0 if unit < num_allies else -1.0
        rows = torch.arange(x.shape[1], device=x.device)  # where the unit has no place yet
        for right, up in points:
            here_x = x[unit, rows] + side * right * separation[unit, rows]
            here_y = y[unit, rows] + up * separation[unit, rows]
            gap = (x[:unit, rows] - here_x).hypot(y[:unit, rows] - here_y)
            needed = LATTICE * (separation[:unit, rows] + separation[unit, rows]) - 1e-6
            free = ((gap > needed) | (layer[:unit, rows] != layer[unit, rows])).all(0)
            free &= (here_x >= box[0]) & (here_x <= box[1]) & (here_y >= box[2]) & (here_y <= box[3])
            x[unit, rows[free]], y[unit, rows[free]] = here_x[free], here_y[free]
            rows = rows[~free]
            if not len(rows):
                break
    return x, y


def number(kinds: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Order [N, E] in which the package numbers allies [N, E]: by the name of the type, then x, then y."""
    names = sorted(TYPES)
    rank = torch.tensor([names.index(name) for name in TYPES], device=kinds.device)[kinds]
    order = y.argsort(0)
    for key in (x, rank):
        order = order.gather(0, key.gather(0, order).argsort(dim=0, stable=True))
    return order
