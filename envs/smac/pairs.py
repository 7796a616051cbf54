"""What a loop asks of pairs of units: limits that stay the same through a step, and who aims at whom."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl_flow.envs.smac.battle import CLOSE, Army, Battle, hits, limbo_of
from marl_flow.envs.smac.units import RANGE_SLOP


class Pairs:
    """What stays the same through a step: limits between units, the middle of each side, where the dead lie."""

    def __init__(self, s: Battle, army: Army) -> None:
        allies, units = army.num_allies, army.num_units
        device = s.x.device
        self.limbo = limbo_of(s.x)
        self.numbers = torch.arange(units, device=device)[:, None]
        self.is_enemy = self.numbers >= allies
        radius, kinds = army.radius, army.kinds
        self.scan_squared = (army.scan[allies:, None] + radius[allies:, None] + radius[None, :allies]) ** 2
        hittable = hits(army, kinds[allies:, None], kinds[None, :allies])
        self.last_resort = 1e4
        self.penalty = torch.where(army.harmless[None, :allies], self.last_resort, 0.0).masked_fill(
            ~hittable, torch.inf
        )
        self.plain = not bool((self.penalty != 0).any())
        self.apart = torch.eye(units, device=device, dtype=s.x.dtype)[:, :, None] + 1e-6  # no division by zero
        self.same_radius = bool((radius == radius[0, 0]).all())
        self.radius, self.kinds, self.armour = (table.expand(s.x.shape) for table in (radius, kinds, army.armour))
        self.table = army.damage_table.view(-1)
        self.has_second = army.has("zealot", "colossus")
        self.has_flight = self.has_second or bool(army.launches.any())
        self.has_shields = army.has("stalker", "zealot", "colossus")
        alive = s.health > 0
        self.middle_x, self.middle_y = (
            torch.cat([_middle(place, alive, part) for part in (slice(None, allies), slice(allies, None))])
            for place in (s.x, s.y)
        )

    def target_radius(self, at: Tensor) -> Tensor:
        """Radius [.., E] of the units `at` [.., E]."""
        return self.radius[:1] if self.same_radius else self.radius.gather(0, at)


def _middle(place: Tensor, alive: Tensor, part: slice) -> Tensor:
    """Mean coordinate of a side's living, once for each of its units [side, E]."""
    here = alive[part]
    mean = (place[part] * here).sum(0) / here.sum(0).clamp_min(1)
    return mean.expand(here.shape)


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Per unit [U, E]: whether it has a living target, the way there, how far its weapon reaches it, whether it is in
    reach, and in reach of a shot already begun."""

    aimed: Tensor
    way_x: Tensor
    way_y: Tensor
    reach: Tensor
    in_reach: Tensor
    in_slop: Tensor


def aim_of(s: Battle, army: Army, pairs: Pairs) -> Aim:
    at = s.target.clamp_min(0)
    aimed = (s.target >= 0) & (s.health.gather(0, at) > 0)
    aimed &= s.health > 0
    way_x, way_y = s.x.gather(0, at).sub_(s.x), s.y.gather(0, at).sub_(s.y)
    squared = way_x * way_x
    squared += way_y * way_y
    reach = army.reach + army.radius + pairs.target_radius(at)
    in_reach = aimed & (squared <= (reach + CLOSE) ** 2)
    in_slop = aimed & (squared <= (reach + RANGE_SLOP) ** 2)
    return Aim(aimed=aimed, way_x=way_x, way_y=way_y, reach=reach, in_reach=in_reach, in_slop=in_slop)
