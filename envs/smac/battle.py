"""Battles: batches of unit-on-unit fights, advanced loop by loop (16 a game second) as pure tensor programs.

Everything is laid out [U, E]: units first, allies before enemies, battles last, so that every operation runs along
contiguous battles. The dead lie far outside the map: no distance to them is ever small.

What is exact: unit numbers, time base, weapon periods with their jitter, shots in random order within a loop with the
target checked when the shot is taken, armour, shields, regeneration. What is modelled, since the game's engine is
closed:
- movement: straight lines at full speed, no acceleration, no turning; units that touch (at 0.9 of their summed
  separation radii) push each other apart, who stands and attacks is not pushed by who moves; walls stop the part of a
  step that would enter them;
- enemies keep a target until it dies or leaves weapon range, then take the nearest in scan range (who cannot fight back
  comes last), else answer whoever hit them, else follow their target while they see it, else walk on as ordered; once
  a step, enemies without a target come to the help of one hit within 4 cells;
- attacks: the cooldown starts with the attack; damage follows after the damage point unless a new order comes first,
  which frees the weapon again; a target may drift one cell out of range meanwhile; homing projectiles always hit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from marl_flow.envs.smac.units import (
    AUTO_HEAL_RANGE,
    ENERGY_START,
    HEAL_RANGE,
    LOOPS_PER_SECOND,
    SHIELD_RATE,
    UNITS,
    ZERG_HEALTH_RATE,
    Unit,
    raw_damage,
)

TYPES = tuple(UNITS)
"""Unit types by number."""
LIMBO = 1000.0
"""Where the dead lie, on both axes, far enough from each other."""
CONTACT = 0.9
"""Share of the summed separation radii at which two units touch: just inside the lattice of fresh units (0.918)."""
MAX_PUSH = 0.2
"""Most that the others move a unit in one loop, in cells on each axis."""
HELP_RADIUS = 4.0
NEVER = 1e6
"""Timers that do not run."""
CLOSE = 1e-4
"""Tolerance of range tests, in cells."""


@dataclass(kw_only=True)
class Battle:
    """State of E battles of U units (allies first); times in loops, lengths in cells, numbers float32.

    x, y, health, shield, energy: [U, E]. cooldown: until the weapon is ready. windup: until a begun attack does its
    damage, NEVER where none was begun. flight, flight_target: until a projectile or second blow lands, and on whom.
    second: until a colossus's second sweep; beam_x, beam_y, beam_dx, beam_dy: the place both sweeps go over and the way
    they were aimed. target: unit attacked (allies: as ordered, enemies:
    as chosen) or healed, -1 for none. calm: since the last damage. attacker: who hit last in this step, -1 for nobody.
    goal_x, goal_y: where a unit walks when it has no target: allies as ordered, enemies as the map orders.
    """

    x: Tensor
    y: Tensor
    health: Tensor
    shield: Tensor
    energy: Tensor
    cooldown: Tensor
    windup: Tensor
    flight: Tensor
    flight_target: Tensor
    second: Tensor
    beam_x: Tensor
    beam_y: Tensor
    beam_dx: Tensor
    beam_dy: Tensor
    target: Tensor
    calm: Tensor
    attacker: Tensor
    goal_x: Tensor
    goal_y: Tensor

    @property
    def alive(self) -> Tensor:
        return self.health > 0

    def columns(self, index: Tensor) -> Battle:
        """The battles [J] of an index, as a copy."""
        return replace(self, **{f.name: getattr(self, f.name).index_select(1, index) for f in fields(self)})

    def put(self, index: Tensor, other: Battle) -> None:
        """Overwrites the battles of an index [J] with the first J of another state."""
        for f in fields(self):
            getattr(self, f.name).index_copy_(1, index, getattr(other, f.name)[:, : len(index)])


@dataclass(frozen=True, kw_only=True)
class Army:
    """Who fights: [U, E], or [U, 1] where every battle has the same units; `kinds` int64 indexes TYPES.

    pushes [U, U, E or 1]: distance below which a pair is pushed apart, 0 for pairs that pass through each other.
    """

    num_allies: int
    kinds: Tensor
    kinds_present: frozenset[str]
    max_health: Tensor
    max_shield: Tensor
    armour: Tensor
    radius: Tensor
    speed: Tensor
    reach: Tensor
    scan: Tensor
    sight: Tensor
    period: Tensor
    damage_point: Tensor
    launches: Tensor
    projectile_speed: Tensor
    second_delay: Tensor
    shield_gain: Tensor
    health_gain: Tensor
    ground: Tensor
    heals: Tensor
    harmless: Tensor
    organic: Tensor
    pushes: Tensor
    damage_table: Tensor

    @property
    def num_units(self) -> int:
        return self.kinds.shape[0]

    def columns(self, index: Tensor) -> Army:
        """The armies of the battles [J] of an index; itself where all battles have the same."""
        if self.kinds.shape[1] == 1:
            return self
        changes: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and f.name != "damage_table":
                changes[f.name] = value.index_select(-1, index)
        return replace(self, **changes)

    def has(self, *names: str) -> bool:
        return any(name in self.kinds_present for name in names)


def build_army(kinds: Tensor, num_allies: int, kinds_present: frozenset[str]) -> Army:
    """Tables of the units `kinds` [U, E or 1] (int64, indices of TYPES), on their device."""
    units = [UNITS[name] for name in TYPES]
    device = kinds.device

    def table(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[kinds]

    loops = float(LOOPS_PER_SECOND)

    def flag(values: list[bool]) -> Tensor:
        return torch.tensor(values, device=device)[kinds]

    separation = table([unit.separation for unit in units])
    air, over = flag([unit.air for unit in units]), flag([unit.walks_over for unit in units])
    meets = (air[:, None] == air[None]) & (over[:, None] == over[None])
    return Army(
        num_allies=num_allies,
        kinds=kinds,
        kinds_present=kinds_present,
        max_health=table([unit.health for unit in units]),
        max_shield=table([unit.shield for unit in units]),
        armour=table([unit.armour for unit in units]),
        radius=table([unit.radius for unit in units]),
        speed=table([unit.speed / loops for unit in units]),
        reach=table([HEAL_RANGE if unit.name == "medivac" else unit.range or 0.0 for unit in units]),
        scan=table([AUTO_HEAL_RANGE if unit.name == "medivac" else unit.scan_range for unit in units]),
        sight=table([unit.sight for unit in units]),
        period=table([unit.period * loops for unit in units]),
        damage_point=table([unit.damage_point * loops for unit in units]),
        launches=flag([unit.projectile_speed is not None or unit.name == "colossus" for unit in units]),
        projectile_speed=table([_speed(unit) / loops for unit in units]),
        second_delay=table(
            [NEVER if unit.second_hit_delay is None else unit.second_hit_delay * loops for unit in units]
        ),
        shield_gain=table([SHIELD_RATE / loops if unit.shield else 0.0 for unit in units]),
        health_gain=table([ZERG_HEALTH_RATE / loops if unit.race == "zerg" else 0.0 for unit in units]),
        ground=~air,
        heals=flag([unit.name == "medivac" for unit in units]),
        harmless=flag([unit.range is None for unit in units]),
        organic=flag([unit.biological and not unit.structure for unit in units]),
        pushes=CONTACT * (separation[:, None] + separation[None]) * meets,
        damage_table=torch.tensor([[raw_damage(a, b) for b in units] for a in units], device=device),
    )


def _speed(unit: Unit) -> float:
    return unit.projectile_speed or 1.0


def begin(army: Army, x: Tensor, y: Tensor, goal_x: Tensor, goal_y: Tensor) -> Battle:
    """Full health, loaded weapons, nobody attacked; x, y, goal_x, goal_y [U, E]."""
    shape = x.shape
    none = torch.full(shape, -1, dtype=torch.int64, device=x.device)
    zero = torch.zeros_like(x)
    never = torch.full_like(x, NEVER)
    return Battle(
        x=x,
        y=y,
        health=army.max_health.expand(shape).clone(),
        shield=army.max_shield.expand(shape).clone(),
        energy=torch.where(army.heals, ENERGY_START, 0.0).expand(shape).clone(),
        cooldown=zero,
        windup=never,
        flight=never.clone(),
        flight_target=none,
        second=never.clone(),
        beam_x=zero.clone(),
        beam_y=zero.clone(),
        beam_dx=zero.clone(),
        beam_dy=zero.clone(),
        target=none.clone(),
        calm=never.clone(),
        attacker=none.clone(),
        goal_x=goal_x,
        goal_y=goal_y,
    )


def limbo_of(like: Tensor) -> Tensor:
    """Where each unit lies when it is dead, on both axes, [U, 1]; like [U, E]."""
    return (LIMBO + 10.0 * torch.arange(len(like), device=like.device, dtype=like.dtype))[:, None]


def bury(s: Battle) -> None:
    """Lays the dead where nothing is near them, in place."""
    limbo = limbo_of(s.x)
    dead = s.health <= 0
    s.x, s.y = torch.where(dead, limbo, s.x), torch.where(dead, limbo, s.y)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What can be walked on. box: low x, high x, low y, high y where it is a rectangle, else None and `cells` [32 * 32]
    bool counts. way_x, way_y [32 * 32]: from each cell, where to walk next to reach the enemy's goal; None where the
    straight line does."""

    box: tuple[float, float, float, float] | None
    cells: Tensor
    way_x: Tensor | None
    way_y: Tensor | None
    size: int


def order_allies(s: Battle, army: Army, actions: Tensor, medivacs_heal: bool, turns: int = 0) -> None:
    """Legal actions [N, E] become orders, in place. An attack on what the weapon cannot hit is a stop; the `turns`
    actions before the first attack leave the last order in force."""
    allies = army.num_allies
    x, y = s.x[:allies], s.y[:allies]
    choice = actions - 6 - turns
    target = torch.where(choice >= 0, choice + allies, -1)
    kinds = army.kinds.expand(s.x.shape)
    if medivacs_heal:
        heals = army.heals[:allies]
        target = torch.where(heals & (choice >= 0), choice, target)
        hittable = hits(army, kinds[:allies], kinds.gather(0, target.clamp_min(0))) | heals
        target = torch.where(hittable, target, -1)
    goal_x = x + 2.0 * ((actions == 4).float() - (actions == 5).float())
    goal_y = y + 2.0 * ((actions == 2).float() - (actions == 3).float())
    if turns:
        keeps = (actions >= 6) & (choice < 0)
        target = torch.where(keeps, s.target[:allies], target)
        walks = keeps & (target < 0)
        goal_x, goal_y = torch.where(walks, s.goal_x[:allies], goal_x), torch.where(walks, s.goal_y[:allies], goal_y)
    s.goal_x[:allies], s.goal_y[:allies] = goal_x, goal_y
    changed = (target != s.target[:allies]) & (s.windup[:allies] < NEVER / 2)
    s.windup[:allies].masked_fill_(changed, NEVER)
    s.cooldown[:allies].masked_fill_(changed, 0.0)
    s.target[:allies] = target


def hits(army: Army, shooters: Tensor, targets: Tensor) -> Tensor:
    """Whether weapons of kinds [.., E] can hit kinds [.., E]."""
    return army.damage_table.view(-1)[shooters * len(TYPES) + targets] > 0
