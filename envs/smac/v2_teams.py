"""What SMACv2 draws for an episode: unit types and starting positions. Row e depends on seeds[e] only.

Source: `oxwhirl/smacv2: smacv2/env/starcraft2/distributions.py` (WeightedTeamsDistribution, ReflectPosition...,
SurroundedPosition..., SurroundedAndReflectPositionDistribution) and `smacv2/examples/configs/sc2_gen_*.yaml`, 577ab5a.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from marl_flow import seeding, tasks
from marl_flow.envs.smac.battle import TYPES
from marl_flow.envs.smac.maps import LATTICE, MAP_SIZE, lattice
from marl_flow.envs.smac.units import UNITS

UNIT_TYPES: Mapping[tasks.Race, tuple[str, ...]] = MappingProxyType(
    {
        race: tuple(name for name, _ in sorted(teams.units.items(), key=lambda unit: -unit[1]))
        for race, teams in tasks.SMACV2_TEAMS.items()
    }
)
"""The unit types of a race in the order of their one-hot bits, the rare one last."""
MIRRORED_FRACTION = 0.5
"""Of the episodes: mirrored sides; in the others the allies are surrounded."""
BUFFER = 1.0
"""Mirrored allies start at least this far from the middle line."""
OFFSET = 2.0
"""Surrounding enemies start at least this far from the centre, on both axes."""
_POSITIONS, _TEAM, _ADDITIONAL = -1, -2, -3  # streams of random numbers; those of battles are not negative
_CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0))


def draw_teams(seeds: Tensor, race: tasks.Race, agents: int, enemies: int) -> Tensor:
    """Unit types [N + M, E], indices of TYPES: the enemies' are the allies', then those of additional enemies."""
    allies = _draw_team(seeds, race, agents, _TEAM)
    if enemies == agents:
        return torch.cat([allies, allies])
    return torch.cat([allies, allies, _draw_team(seeds, race, enemies - agents, _ADDITIONAL)])


def _draw_team(seeds: Tensor, race: tasks.Race, size: int, stream: int) -> Tensor:
    """Unit types [size, E], independent except that some teams are drawn again."""
    teams, names = tasks.SMACV2_TEAMS[race], UNIT_TYPES[race]
    types = torch.tensor([TYPES.index(name) for name in names], device=seeds.device)
    bounds = torch.tensor([teams.units[name] for name in names], dtype=torch.float64, device=seeds.device).cumsum(0)[
        :-1
    ]
    team = torch.full((size, len(seeds)), -1, device=seeds.device)
    missing = torch.ones_like(seeds, dtype=torch.bool)
    while bool(missing.any()):
        draws = seeding.row_uniform(seeds, stream, size, device=seeds.device).t().contiguous()
        team = torch.where(missing, types[torch.bucketize(draws, bounds, right=True)], team)
        missing = (team == types[-1]).all(0) & (names[-1] in teams.never_alone)
        stream -= 2
    return team


def draw_positions(seeds: Tensor, agents: int, enemies: int) -> tuple[Tensor, Tensor]:
    """Positions x, y [N + M, E], float64, on the whole map, equal for units that start as a group.

    Mirrored: allies anywhere in the left half, enemies mirrored in the middle line, additional ones anywhere in the
    right half. Surrounded: allies in the centre, enemies in one to four groups on as many diagonals, each somewhere
    between its corner and `OFFSET` from the centre.
    """
    additional, half = enemies - agents, MAP_SIZE / 2
    sizes = [1, 1, 4, 4, enemies, agents, agents, additional, additional]
    draws = seeding.row_uniform(seeds, _POSITIONS, sum(sizes), device=seeds.device).t()
    arrangement, group_count, along, shuffle, members, ally_x, ally_y, more_x, more_y = draws.split(sizes)

    left, height = ally_x * (half - BUFFER), ally_y * MAP_SIZE
    mirrored_x = torch.cat([left, MAP_SIZE - left, half + more_x * half])
    mirrored_y = torch.cat([height, height, more_y * MAP_SIZE])

    groups = 1.0 + (4.0 * group_count).floor()
    group = (members * groups).long().sort(0).values  # [M, E]: members of a group are next to each other
    diagonal, fraction = shuffle.argsort(0).gather(0, group), along.gather(0, group)
    corners = torch.tensor(_CORNERS, dtype=torch.float64, device=seeds.device)[diagonal]  # [M, E, 2]
    near = half + OFFSET * (2.0 * corners - 1.0)
    position = near * fraction[..., None] + MAP_SIZE * corners * (1.0 - fraction[..., None])
    centre = torch.full_like(ally_x, half)

    mirrored = arrangement <= MIRRORED_FRACTION
    x = torch.where(mirrored, mirrored_x, torch.cat([centre, position[..., 0]]))
    return x, torch.where(mirrored, mirrored_y, torch.cat([centre, position[..., 1]]))


def place_teams(
    types: Tensor, x: Tensor, y: Tensor, num_allies: int, box: tuple[float, float, float, float]
) -> tuple[Tensor, Tensor]:
    """Free positions x, y [U, E], float64: every unit on the free point nearest to its own, as in `maps.place_units`.

    One unit after the other, allies first; points of the unit's lattice around its own point (which comes first),
    mirrored in x for enemies. box: low x, high x, low y, high y, inside which all units start.
    """
    units = [UNITS[name] for name in TYPES]
    separation = torch.tensor([unit.separation for unit in units], dtype=torch.float64, device=x.device)[types]
    layer = torch.tensor([2 * unit.air + unit.walks_over for unit in units], device=x.device)[types]
    points = list(lattice((0.0, 0.0), 2.0 * LATTICE))  # in separations
    x, y = x.clamp(box[0], box[1]), y.clamp(box[2], box[3])
    for unit in range(1, len(x)):
        side = 1.0 if unit < num_allies else -1.0
        rows = torch.arange(x.shape[1], device=x.device)  # where the unit has no free position yet
        for right, up in points:
            new_x = x[unit, rows] + side * right * separation[unit, rows]
            new_y = y[unit, rows] + up * separation[unit, rows]
            distance = (x[:unit, rows] - new_x).hypot(y[:unit, rows] - new_y)
            needed = LATTICE * (separation[:unit, rows] + separation[unit, rows]) - 1e-6
            free = ((distance > needed) | (layer[:unit, rows] != layer[unit, rows])).all(0)
            free &= (new_x >= box[0]) & (new_x <= box[1]) & (new_y >= box[2]) & (new_y <= box[3])
            x[unit, rows[free]], y[unit, rows[free]] = new_x[free], new_y[free]
            rows = rows[~free]
            if not len(rows):
                break
    return x, y


def agent_order(types: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Order [N, E] in which the package numbers allies [N, E]: by the name of the type, then x, then y."""
    names = sorted(TYPES)
    rank = torch.tensor([names.index(name) for name in TYPES], device=types.device)[types]
    order = y.argsort(0)
    for key in (x, rank):
        order = order.gather(0, key.gather(0, order).argsort(dim=0, stable=True))
    return order
