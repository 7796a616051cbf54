"""What a map's ground means for walking: a rectangle, or cells with a way through them to where the enemy is sent."""

from __future__ import annotations

import heapq
import math

import numpy as np
import torch

from marl_flow.envs.smac.battle import Ground
from marl_flow.envs.smac.maps import MAP_SIZE, BattleMap, Point, walkable

WINDING = ("corridor", "ravine")
"""Terrains whose straight line from spawn to goal leaves the ground."""
_EDGE = 1e-3
"""Centres stop this short of the next cell."""


def build_ground(battle: BattleMap, device: torch.device) -> Ground:
    grid = walkable(battle.terrain)
    xs, ys = np.flatnonzero(grid.any(1)), np.flatnonzero(grid.any(0))
    rectangle = grid.sum() == len(xs) * len(ys)
    box = (float(xs[0]), xs[-1] + 1 - _EDGE, float(ys[0]), ys[-1] + 1 - _EDGE) if rectangle else None
    way_x = way_y = None
    if battle.terrain in WINDING:
        ways = torch.from_numpy(_ways(grid, battle.order[0])).to(device)
        way_x, way_y = ways[0], ways[1]
    return Ground(
        box=box,
        cells=torch.from_numpy(grid.reshape(-1).copy()).to(device),
        way_x=way_x,
        way_y=way_y,
        size=MAP_SIZE,
    )


def _ways(grid: np.ndarray, goal: Point) -> np.ndarray:
    """Centre of the next cell on a shortest path to the goal, from every cell, float32 [2, 32 * 32]; its own centre
    where there is no path. Steps go to the eight neighbours, never between two blocked corners."""
    size = grid.shape[0]
    start = (int(goal[0]), int(goal[1]))
    distance = np.full(grid.shape, np.inf)
    distance[start] = 0.0
    following = {start: start}
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
                    following[i, j] = (x, y)
                    heapq.heappush(queue, (longer, (i, j)))
    ways = np.empty((2, size, size), dtype=np.float32)
    for i in range(size):
        for j in range(size):
            x, y = following.get((i, j), (i, j))
            ways[:, i, j] = x + 0.5, y + 0.5
    return ways.reshape(2, -1)
