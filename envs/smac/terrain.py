"""Where units can walk: a rectangle, or cells with a flow field that leads to where the enemy is ordered."""

from __future__ import annotations

import heapq
import math

import numpy as np
import torch

from marl_flow.envs.smac.battle import Ground
from marl_flow.envs.smac.maps import MAP_SIZE, BattleMap, Point, walkable

WINDING = ("corridor", "ravine")
"""Terrains where the straight line from start to goal leaves the ground."""
_EDGE = 1e-3
"""Unit centres stay this far from the next cell."""


def build_ground(battle_map: BattleMap, device: torch.device) -> Ground:
    grid = walkable(battle_map.terrain)
    xs, ys = np.flatnonzero(grid.any(1)), np.flatnonzero(grid.any(0))
    rectangle = grid.sum() == len(xs) * len(ys)
    box = (float(xs[0]), xs[-1] + 1 - _EDGE, float(ys[0]), ys[-1] + 1 - _EDGE) if rectangle else None
    flow_x = flow_y = None
    if battle_map.terrain in WINDING:
        flow_x, flow_y = torch.from_numpy(flow_field(grid, battle_map.order[0])).to(device)
    return Ground(
        box=box,
        cells=torch.from_numpy(grid.reshape(-1).copy()).to(device),
        flow_x=flow_x,
        flow_y=flow_y,
        size=MAP_SIZE,
    )


def flow_field(grid: np.ndarray, goal: Point) -> np.ndarray:
    """Centre of the next cell on a shortest path to the goal, from every cell, float32 [2, 32 * 32]; its own centre
    where there is no path. Steps go to the eight neighbours, never diagonally past a blocked cell."""
    size = grid.shape[0]
    start = (int(goal[0]), int(goal[1]))
    distance = np.full(grid.shape, np.inf)
    distance[start] = 0.0
    next_cell = {start: start}
    queue = [(0.0, start)]
    while queue:
        length, (x, y) = heapq.heappop(queue)
        if length > distance[x, y]:
            continue
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                i, j = x + dx, y + dy
                if not (0 <= i < size and 0 <= j < size) or not (grid[i, j] and grid[i, y] and grid[x, j]):
                    continue
                longer = length + math.hypot(dx, dy)
                if longer < distance[i, j]:
                    distance[i, j] = longer
                    next_cell[i, j] = (x, y)
                    heapq.heappush(queue, (longer, (i, j)))
    field = np.empty((2, size, size), dtype=np.float32)
    for i in range(size):
        for j in range(size):
            x, y = next_cell.get((i, j), (i, j))
            field[:, i, j] = x + 0.5, y + 0.5
    return field.reshape(2, -1)
