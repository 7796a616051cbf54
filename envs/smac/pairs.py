"""Tables of pairs of units: limits that stay the same through a step, and the units' targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from marl_flow.envs.smac.battle import RANGE_TOLERANCE, Army, Battle, hits, off_map_positions
from marl_flow.envs.smac.units import RANGE_SLOP


class Pairs:
    """What stays the same through a step: limits between units, the centre of each side, where the dead are put."""

    def __init__(self, battle: Battle, army: Army) -> None:
        allies, units = army.num_allies, army.num_units
        device = battle.x.device
        self.off_map = off_map_positions(battle.x)
        self.numbers = torch.arange(units, device=device)[:, None]
        self.is_enemy = self.numbers >= allies
        radius, types = army.radius, army.types
        self.scan_squared = (army.scan[allies:, None] + radius[allies:, None] + radius[None, :allies]) ** 2
        hittable = hits(army, types[allies:, None], types[None, :allies])
        self.last_resort = 1e4
        self.penalty = torch.where(army.unarmed[None, :allies], self.last_resort, 0.0).masked_fill(~hittable, torch.inf)
        self.plain = not bool((self.penalty != 0).any())
        self.apart = (
            torch.eye(units, device=device, dtype=battle.x.dtype)[:, :, None] + 1e-6
        )  # keeps distances to oneself above zero
        self.same_radius = bool((radius == radius[0, 0]).all())
        self.radius, self.types, self.armour = (table.expand(battle.x.shape) for table in (radius, types, army.armour))
        self.table = army.damage_table.view(-1)
        self.has_second = army.has("zealot", "colossus")
        self.has_flight = self.has_second or bool(army.launches.any())
        self.has_shields = army.has("stalker", "zealot", "colossus")
        alive = battle.health > 0
        self.centre_x, self.centre_y = (
            torch.cat([_centre(position, alive, side) for side in (slice(None, allies), slice(allies, None))])
            for position in (battle.x, battle.y)
        )

    def target_radius(self, at: Tensor) -> Tensor:
        """Radius [.., E] of the units `at` [.., E]."""
        return self.radius[:1] if self.same_radius else self.radius.gather(0, at)


def _centre(position: Tensor, alive: Tensor, side: slice) -> Tensor:
    """Mean coordinate of a side's living units, repeated for each unit of the side [side, E]."""
    living = alive[side]
    mean = (position[side] * living).sum(0) / living.sum(0).clamp_min(1)
    return mean.expand(living.shape)


@dataclass(frozen=True, kw_only=True)
class Targeting:
    """Per unit [U, E]: whether it has a living target, the offset to it, up to which distance its weapon reaches it,
    whether it is in reach, and whether it is in reach of an attack already begun."""

    has_target: Tensor
    offset_x: Tensor
    offset_y: Tensor
    reach: Tensor
    in_reach: Tensor
    in_slop: Tensor


def find_targeting(battle: Battle, army: Army, pairs: Pairs) -> Targeting:
    at = battle.target.clamp_min(0)
    has_target = (battle.target >= 0) & (battle.health.gather(0, at) > 0)
    has_target &= battle.health > 0
    offset_x, offset_y = battle.x.gather(0, at).sub_(battle.x), battle.y.gather(0, at).sub_(battle.y)
    squared = offset_x * offset_x
    squared += offset_y * offset_y
    reach = army.reach + army.radius + pairs.target_radius(at)
    in_reach = has_target & (squared <= (reach + RANGE_TOLERANCE) ** 2)
    in_slop = has_target & (squared <= (reach + RANGE_SLOP) ** 2)
    return Targeting(
        has_target=has_target, offset_x=offset_x, offset_y=offset_y, reach=reach, in_reach=in_reach, in_slop=in_slop
    )
