"""Battles: batches of unit-on-unit fights, advanced loop by loop (16 a game second) as pure tensor programs.

All tensors are [U, E]: units first, allies before enemies, battles last, so that every operation runs along
contiguous battles. Dead units are moved far off the map, so that no distance to them is ever small.

What is exact: unit numbers, time base, weapon periods with their jitter, shots in random order within a loop with the
target checked when the shot is taken, armour, shields, regeneration. What is approximated, since the game's engine is
not public:
- movement: straight lines at full speed, no acceleration, no turning; units that touch (at 0.9 of their summed
  separation radii) push each other apart, but moving units do not push one that stands and attacks; walls stop the part
  of a step that would enter them;
- enemies keep a target until it dies or leaves weapon range, then take the nearest in scan range (unarmed units last),
  else attack whoever hit them, else follow their target while they see it, else walk on as ordered; once a step,
  enemies without a target help a teammate that was hit within 4 cells;
- attacks: the cooldown starts with the attack; damage follows after the damage point unless a new order comes first,
  which makes the weapon ready again; a target may move one cell out of range meanwhile; projectiles always hit.
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
OFF_MAP = 1000.0
"""Coordinate of the first dead unit, on both axes; the others follow at distances of 10."""
CONTACT = 0.9
"""Fraction of the summed separation radii at which two units touch: just below the lattice of new units (0.918)."""
MAX_PUSH = 0.2
"""Largest displacement of a unit by the others in one loop, in cells on each axis."""
HELP_RADIUS = 4.0
NEVER = 1e6
"""Value of timers that are not running."""
RANGE_TOLERANCE = 1e-4
"""Of range tests, in cells."""


@dataclass(kw_only=True)
class Battle:
    """State of E battles of U units (allies first); times in loops, lengths in cells, numbers float32.

    x, y, health, shield, energy: [U, E]. cooldown: until the weapon is ready. windup: until a begun attack does its
    damage, NEVER if none was begun. flight, flight_target: until a projectile or second hit lands, and its target.
    second_sweep: until a colossus's second sweep; beam_x, beam_y, beam_dx, beam_dy: the point that both sweeps go
    through and the direction of the attack. target: unit attacked (allies: as ordered, enemies: as chosen) or healed,
    -1 for none. since_damage: since the unit last took damage. attacker: the unit that hit last in this step, -1 for
    none. goal_x, goal_y: where a unit without a target walks: allies as ordered, enemies as the map orders.
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
    second_sweep: Tensor
    beam_x: Tensor
    beam_y: Tensor
    beam_dx: Tensor
    beam_dy: Tensor
    target: Tensor
    since_damage: Tensor
    attacker: Tensor
    goal_x: Tensor
    goal_y: Tensor

    @property
    def alive(self) -> Tensor:
        return self.health > 0

    def columns(self, index: Tensor) -> Battle:
        """The battles [J] of an index, as a copy."""
        return replace(self, **{field.name: getattr(self, field.name).index_select(1, index) for field in fields(self)})

    def put(self, index: Tensor, other: Battle) -> None:
        """Overwrites the battles of an index [J] with the first J of another state."""
        for field in fields(self):
            getattr(self, field.name).index_copy_(1, index, getattr(other, field.name)[:, : len(index)])


@dataclass(frozen=True, kw_only=True)
class Army:
    """The units that fight: [U, E], or [U, 1] if all battles have the same; `types` int64 are indices of TYPES.

    pushes [U, U, E or 1]: distance below which a pair is pushed apart, 0 for pairs that pass through each other.
    """

    num_allies: int
    types: Tensor
    types_present: frozenset[str]
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
    unarmed: Tensor
    healable: Tensor
    pushes: Tensor
    damage_table: Tensor

    @property
    def num_units(self) -> int:
        return self.types.shape[0]

    def columns(self, index: Tensor) -> Army:
        """The armies of the battles [J] of an index; itself if all battles have the same."""
        if self.types.shape[1] == 1:
            return self
        changes: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and field.name != "damage_table":
                changes[field.name] = value.index_select(-1, index)
        return replace(self, **changes)

    def has(self, *names: str) -> bool:
        return any(name in self.types_present for name in names)


def build_army(types: Tensor, num_allies: int, types_present: frozenset[str]) -> Army:
    """Tables of the units `types` [U, E or 1] (int64, indices of TYPES), on their device."""
    units = [UNITS[name] for name in TYPES]
    device = types.device

    def table(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[types]

    loops = float(LOOPS_PER_SECOND)

    def flag(values: list[bool]) -> Tensor:
        return torch.tensor(values, device=device)[types]

    separation = table([unit.separation for unit in units])
    air, over = flag([unit.air for unit in units]), flag([unit.walks_over for unit in units])
    meets = (air[:, None] == air[None]) & (over[:, None] == over[None])
    return Army(
        num_allies=num_allies,
        types=types,
        types_present=types_present,
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
        unarmed=flag([unit.range is None for unit in units]),
        healable=flag([unit.biological and not unit.structure for unit in units]),
        pushes=CONTACT * (separation[:, None] + separation[None]) * meets,
        damage_table=torch.tensor([[raw_damage(a, b) for b in units] for a in units], device=device),
    )


def _speed(unit: Unit) -> float:
    return unit.projectile_speed or 1.0


def begin(army: Army, x: Tensor, y: Tensor, goal_x: Tensor, goal_y: Tensor) -> Battle:
    """Full health, weapons ready, no attacks yet; x, y, goal_x, goal_y [U, E]."""
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
        second_sweep=never.clone(),
        beam_x=zero.clone(),
        beam_y=zero.clone(),
        beam_dx=zero.clone(),
        beam_dy=zero.clone(),
        target=none.clone(),
        since_damage=never.clone(),
        attacker=none.clone(),
        goal_x=goal_x,
        goal_y=goal_y,
    )


def off_map_positions(like: Tensor) -> Tensor:
    """Coordinate of each unit after its death, on both axes, [U, 1]; like [U, E]."""
    return (OFF_MAP + 10.0 * torch.arange(len(like), device=like.device, dtype=like.dtype))[:, None]


def move_dead_off_map(battle: Battle) -> None:
    """Moves dead units to where nothing is near them, in place."""
    off_map = off_map_positions(battle.x)
    dead = battle.health <= 0
    battle.x, battle.y = torch.where(dead, off_map, battle.x), torch.where(dead, off_map, battle.y)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where units can walk. box: low x, high x, low y, high y of a rectangle; None means the cells [32 * 32] bool.
    flow_x, flow_y [32 * 32]: from each cell, where to walk next to reach the enemy's goal; None means straight on."""

    box: tuple[float, float, float, float] | None
    cells: Tensor
    flow_x: Tensor | None
    flow_y: Tensor | None
    size: int


def order_allies(battle: Battle, army: Army, actions: Tensor, medivacs_heal: bool, turns: int = 0) -> None:
    """Legal actions [N, E] become orders, in place. An attack on a unit that the weapon cannot hit is a stop; the
    `turns` actions before the first attack keep the last order."""
    allies = army.num_allies
    x, y = battle.x[:allies], battle.y[:allies]
    choice = actions - 6 - turns
    target = torch.where(choice >= 0, choice + allies, -1)
    types = army.types.expand(battle.x.shape)
    if medivacs_heal:
        heals = army.heals[:allies]
        target = torch.where(heals & (choice >= 0), choice, target)
        hittable = hits(army, types[:allies], types.gather(0, target.clamp_min(0))) | heals
        target = torch.where(hittable, target, -1)
    goal_x = x + 2.0 * ((actions == 4).float() - (actions == 5).float())
    goal_y = y + 2.0 * ((actions == 2).float() - (actions == 3).float())
    if turns:
        keeps = (actions >= 6) & (choice < 0)
        target = torch.where(keeps, battle.target[:allies], target)
        walks = keeps & (target < 0)
        goal_x, goal_y = (
            torch.where(walks, battle.goal_x[:allies], goal_x),
            torch.where(walks, battle.goal_y[:allies], goal_y),
        )
    battle.goal_x[:allies], battle.goal_y[:allies] = goal_x, goal_y
    changed = (target != battle.target[:allies]) & (battle.windup[:allies] < NEVER / 2)
    battle.windup[:allies].masked_fill_(changed, NEVER)
    battle.cooldown[:allies].masked_fill_(changed, 0.0)
    battle.target[:allies] = target


def hits(army: Army, shooters: Tensor, targets: Tensor) -> Tensor:
    """Whether weapons of types [.., E] can hit types [.., E]."""
    return army.damage_table.view(-1)[shooters * len(TYPES) + targets] > 0
