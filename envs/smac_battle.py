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

from marl_flow.envs.smac_units import (
    AUTO_HEAL_ENERGY,
    AUTO_HEAL_RANGE,
    BANELING_SPLASH_RADIUS,
    COLOSSUS_HIT_DELAY,
    COLOSSUS_SPLASH_HALF_WIDTH,
    COLOSSUS_SPLASH_REACH,
    COOLDOWN_JITTER,
    ENERGY_MAX,
    ENERGY_RATE,
    ENERGY_START,
    HEAL_ENERGY_PER_HP,
    HEAL_RANGE,
    HEAL_RATE,
    LOOPS_PER_SECOND,
    MIN_DAMAGE,
    RANGE_SLOP,
    SHIELD_DELAY_SECONDS,
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
_CLOSE = 1e-4
"""Tolerance of range tests, in cells."""


@dataclass(kw_only=True)
class Battle:
    """State of E battles of U units (allies first); times in loops, lengths in cells, numbers float32.

    x, y, health, shield, energy: [U, E]. cooldown: until the weapon is ready. windup: until a begun attack does its
    damage, NEVER where none was begun. flight, flight_target: until a projectile or second blow lands, and on whom.
    second, second_target: the same for a colossus's second sweep. target: unit attacked (allies: as ordered, enemies:
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
    second_target: Tensor
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
        second_target=none.clone(),
        target=none.clone(),
        calm=never.clone(),
        attacker=none.clone(),
        goal_x=goal_x,
        goal_y=goal_y,
    )


def bury(s: Battle) -> None:
    """Lays the dead where nothing is near them, in place."""
    limbo = (LIMBO + 10.0 * torch.arange(len(s.x), device=s.x.device, dtype=s.x.dtype))[:, None]
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
        hittable = _hits(army, kinds[:allies], kinds.gather(0, target.clamp_min(0))) | heals
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


def _hits(army: Army, shooters: Tensor, targets: Tensor) -> Tensor:
    """Whether weapons of kinds [.., E] can hit kinds [.., E]."""
    return army.damage_table.view(-1)[shooters * len(TYPES) + targets] > 0


def advance(s: Battle, army: Army, ground: Ground, draws: Tensor) -> None:
    """The battles one SMAC step later, in place. draws [1 + loops, U, E] uniform in [0, 1): cooldown jitter, then who
    goes first in each loop."""
    low, high = COOLDOWN_JITTER
    jitter = low + (high - low) * draws[0]
    pairs = _Pairs(s, army)
    _answer_calls(s, army)
    for priority in draws[1:]:
        _loop(s, army, ground, pairs, jitter, priority)


class _Pairs:
    """What stays the same through a step: limits between units, the middle of each side, where the dead lie."""

    def __init__(self, s: Battle, army: Army) -> None:
        allies, units = army.num_allies, army.num_units
        device = s.x.device
        self.limbo = (LIMBO + 10.0 * torch.arange(units, device=device, dtype=s.x.dtype))[:, None]
        self.numbers = torch.arange(units, device=device)[:, None]
        self.is_enemy = self.numbers >= allies
        radius, kinds = army.radius, army.kinds
        self.scan_squared = (army.scan[allies:, None] + radius[allies:, None] + radius[None, :allies]) ** 2
        hittable = _hits(army, kinds[allies:, None], kinds[None, :allies])
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


def _answer_calls(s: Battle, army: Army) -> None:
    """Enemies without a target take the attacker of who was hit in the last step: themselves, else the nearest friend
    within reach of a call for help. Then the step's own attackers are forgotten."""
    allies = army.num_allies
    x, y, attacker = s.x[allies:], s.y[allies:], s.attacker[allies:]
    if bool((attacker >= 0).any()):
        squared = (x[:, None] - x[None]) ** 2 + (y[:, None] - y[None]) ** 2
        squared = squared.masked_fill((attacker < 0)[None], torch.inf)
        distance, friend = squared.min(1)
        called = attacker.gather(0, friend)
        answers = (s.target[allies:] < 0) & (distance <= HELP_RADIUS**2) & ~army.harmless[allies:]
        answers &= s.health.gather(0, called.clamp_min(0)) > 0
        s.target[allies:] = torch.where(answers, called, s.target[allies:])
    s.attacker.fill_(-1)


def _loop(s: Battle, army: Army, ground: Ground, pairs: _Pairs, jitter: Tensor, priority: Tensor) -> None:
    s.cooldown.sub_((s.cooldown > 0).to(s.cooldown.dtype))  # what a shot in time leaves below 0 shortens the next wait
    s.windup.sub_(1.0)
    _choose_targets(s, army, pairs)
    if army.has("medivac"):
        _choose_patients(s, army)
    aim, lived = _aim(s, army, pairs), s.health > 0
    _move(s, army, ground, pairs, aim)
    if army.has("medivac"):
        _heal(s, army, aim.in_reach)
    _attack(s, army, pairs, aim, jitter, priority)
    if army.has("baneling"):
        _explode(s, army, pairs, lived)
    _recover(s, army)
    dead = s.health <= 0
    s.x = torch.where(dead, pairs.limbo, s.x)
    s.y = torch.where(dead, pairs.limbo, s.y)


def _choose_targets(s: Battle, army: Army, pairs: _Pairs) -> None:
    """Enemies keep, change or drop their targets."""
    allies = army.num_allies
    x, y = s.x[allies:], s.y[allies:]
    squared = (x[:, None] - s.x[None, :allies]).square_()
    squared += (y[:, None] - s.y[None, :allies]).square_()
    current = s.target[allies:]
    at = current.clamp_min(0)
    # healers' targets are friends: their numbers are not among the allies here
    own = squared.gather(1, at.clamp_max(allies - 1)[:, None])[:, 0]
    valid = (current >= 0) & (s.health.gather(0, at) > 0)
    reach = army.reach[allies:] + army.radius[allies:] + pairs.target_radius(at)
    slack = torch.where(s.windup[allies:] < NEVER / 2, (reach + RANGE_SLOP) ** 2, (reach + _CLOSE) ** 2)
    keep = valid & (own <= slack)
    scanned = squared.masked_fill_(squared > pairs.scan_squared, torch.inf)
    if not pairs.plain:
        scanned += pairs.penalty
    near, nearest = scanned.min(1)
    if not pairs.plain:  # who cannot fight back is left for who can
        keep &= ~(army.harmless.expand(s.x.shape).gather(0, at) & (near < pairs.last_resort))
    sees = valid & (own <= (army.sight[allies:] + army.radius[allies:]) ** 2)
    attacker = s.attacker[allies:]
    answers = (attacker >= 0) & (s.health.gather(0, attacker.clamp_min(0)) > 0)
    otherwise = torch.where(sees, current, torch.where(answers, attacker, -1))
    chosen = torch.where(keep, current, torch.where(near < torch.inf, nearest, otherwise))
    if army.has("medivac"):
        chosen = torch.where(army.heals[allies:], current, chosen)
    lost = (chosen != current) & (s.windup[allies:] < NEVER / 2)
    s.windup[allies:].masked_fill_(lost, NEVER)
    s.cooldown[allies:].masked_fill_(lost, 0.0)
    s.target[allies:] = chosen


def _choose_patients(s: Battle, army: Army) -> None:
    """Enemy medivacs: the hurt friend with the least share of its life, then the nearest, within their scan range."""
    allies = army.num_allies
    x, y, health = s.x[allies:], s.y[allies:], s.health[allies:]
    radius = army.radius[allies:]
    distance = ((x[:, None] - x[None]) ** 2 + (y[:, None] - y[None]) ** 2).sqrt()
    share = health / army.max_health[allies:]
    fit = army.organic[allies:] & (health > 0) & (share < 1)
    fit = fit[None] & (distance <= army.scan[allies:, None] + radius[:, None] + radius[None])
    score = torch.where(fit, share[None] + 1e-5 * distance, torch.inf)
    best, patient = score.min(1)
    heals = army.heals[allies:] & (s.energy[allies:] >= AUTO_HEAL_ENERGY) & (best < torch.inf)
    chosen = torch.where(heals, patient + allies, -1)
    s.target[allies:] = torch.where(army.heals[allies:], chosen, s.target[allies:])


@dataclass(frozen=True, kw_only=True)
class _Aim:
    """Per unit [U, E]: whether it has a living target, the way there, how far its weapon reaches it, whether it is in
    reach, and in reach of a shot already begun."""

    aimed: Tensor
    way_x: Tensor
    way_y: Tensor
    reach: Tensor
    in_reach: Tensor
    in_slop: Tensor


def _aim(s: Battle, army: Army, pairs: _Pairs) -> _Aim:
    at = s.target.clamp_min(0)
    aimed = (s.target >= 0) & (s.health.gather(0, at) > 0)
    aimed &= s.health > 0
    way_x, way_y = s.x.gather(0, at).sub_(s.x), s.y.gather(0, at).sub_(s.y)
    squared = way_x * way_x
    squared += way_y * way_y
    reach = army.reach + army.radius + pairs.target_radius(at)
    in_reach = aimed & (squared <= (reach + _CLOSE) ** 2)
    in_slop = aimed & (squared <= (reach + RANGE_SLOP) ** 2)
    return _Aim(aimed=aimed, way_x=way_x, way_y=way_y, reach=reach, in_reach=in_reach, in_slop=in_slop)


def _move(s: Battle, army: Army, ground: Ground, pairs: _Pairs, aim: _Aim) -> None:
    """Walks towards targets out of reach or goals, then pushes apart who touches, then stops at walls."""
    goal_x, goal_y = s.goal_x, s.goal_y
    if ground.way_x is not None and ground.way_y is not None:
        cell = _cell(ground, s.x, s.y)
        far = pairs.is_enemy & ((goal_x - s.x).abs().maximum((goal_y - s.y).abs()) > 1.0)
        goal_x = torch.where(far, ground.way_x[cell], goal_x)
        goal_y = torch.where(far, ground.way_y[cell], goal_y)
    way_x = torch.where(aim.aimed, aim.way_x, goal_x - s.x)
    way_y = torch.where(aim.aimed, aim.way_y, goal_y - s.y)
    length = (way_x * way_x).add_(way_y * way_y).sqrt_()
    stride = torch.where(aim.aimed, length - aim.reach, length).clamp_min_(0.0)
    stride = torch.minimum(stride, army.speed)
    bereft = ~aim.aimed & (s.target >= 0) & ~pairs.is_enemy  # an ally whose target is gone stands until its next order
    stride.masked_fill_(bereft | (s.health <= 0) | (s.windup < NEVER / 2), 0.0)
    stride /= length.clamp_min_(1e-6)
    new_x, new_y = s.x + way_x.mul_(stride), s.y + way_y.mul_(stride)
    push_x, push_y = _pushes(army, pairs, new_x, new_y, aim.in_reach)
    side_x, side_y = _around(s, pairs, way_x, way_y, push_x, push_y)
    new_x += push_x
    new_x += side_x
    new_y += push_y
    new_y += side_y
    if ground.box is not None:
        low_x, high_x, low_y, high_y = ground.box
        s.x, s.y = new_x.clamp_(low_x, high_x), new_y.clamp_(low_y, high_y)
    else:
        free_x = ground.cells[_cell(ground, new_x, s.y)]
        step_x = torch.where(free_x, new_x, s.x)
        free_y = ground.cells[_cell(ground, step_x, new_y)]
        s.x, s.y = step_x, torch.where(free_y, new_y, s.y)


def _around(
    s: Battle, pairs: _Pairs, walk_x: Tensor, walk_y: Tensor, push_x: Tensor, push_y: Tensor
) -> tuple[Tensor, Tensor]:
    """Sideways steps [U, E] of who is held up: as long as the way that pushes took from a walk, across it, away from
    the middle of the own side, so that the rear ranks walk around the front."""
    walked = (walk_x * walk_x).add_(walk_y * walk_y).clamp_min_(1e-12)
    held = (walk_x * push_x).add_(walk_y * push_y).neg_().div_(walked).clamp_(0.0, 1.0)
    across = (s.y - pairs.middle_y).mul_(walk_x).sub_((s.x - pairs.middle_x).mul_(walk_y))
    held = torch.where(across >= 0, held, -held)
    return (walk_y * held).neg_(), walk_x * held


def _cell(ground: Ground, x: Tensor, y: Tensor) -> Tensor:
    top = ground.size - 1
    return x.floor().clamp_(0, top).long() * ground.size + y.floor().clamp_(0, top).long()


def _pushes(army: Army, pairs: _Pairs, x: Tensor, y: Tensor, standing: Tensor) -> tuple[Tensor, Tensor]:
    """Where touching units are pushed [U, E]: half of the overlap each, all of it for who meets a standing attacker."""
    dx, dy = x[:, None] - x[None], y[:, None] - y[None]
    gap = dx * dx
    gap += dy * dy
    gap += pairs.apart
    overlap = army.pushes / gap.sqrt_()
    overlap -= 1.0
    overlap.clamp_min_(0.0)
    stands = standing.to(x.dtype).mul_(0.5)
    overlap *= (stands + 0.5)[None] - stands[:, None]
    return dx.mul_(overlap).sum(1).clamp_(-MAX_PUSH, MAX_PUSH), dy.mul_(overlap).sum(1).clamp_(-MAX_PUSH, MAX_PUSH)


def _heal(s: Battle, army: Army, in_reach: Tensor) -> None:
    """Medivacs in reach of their patients: 9 health a second for a third of an energy point each."""
    at = s.target.clamp_min(0)
    missing = (army.max_health - s.health).gather(0, at)
    fit = army.organic.expand(s.x.shape).gather(0, at)
    amount = torch.minimum(missing, s.energy / HEAL_ENERGY_PER_HP).clamp_max(HEAL_RATE / LOOPS_PER_SECOND)
    amount = torch.where(in_reach & army.heals & fit, amount, 0.0)
    s.health.scatter_add_(0, at, amount)
    s.health = torch.minimum(s.health, army.max_health)
    s.energy -= amount * HEAL_ENERGY_PER_HP


def _attack(s: Battle, army: Army, pairs: _Pairs, aim: _Aim, jitter: Tensor, priority: Tensor) -> None:
    """Begins attacks, takes the shots that are due, lands the projectiles and second blows that are due."""
    idle = s.windup > NEVER / 2
    begins = aim.in_reach & (s.cooldown <= 0)
    begins &= idle
    if army.has("medivac"):
        begins &= ~army.heals
    lost = ~(idle | aim.in_slop)
    s.windup = torch.where(begins, army.damage_point, s.windup).masked_fill_(lost, NEVER)
    s.cooldown.clamp_min_(-1.0).add_((army.period + jitter) * begins)
    s.cooldown = torch.where(begins, s.cooldown, s.cooldown.clamp_min(0.0)).masked_fill_(lost, 0.0)
    fires = s.windup <= 0
    if pairs.has_flight:
        _land(s, army, pairs, priority)
    for shooter, present in _in_turn(fires, priority):
        target = s.target.gather(0, shooter).clamp_min_(0)
        present = present & (s.health.gather(0, shooter) > 0)
        done = present & (s.health.gather(0, target) > 0)
        _shoot(s, army, pairs, shooter, target, done)
        spoilt = present & ~done  # the target died first: the weapon stays loaded
        s.cooldown.scatter_(0, shooter, s.cooldown.gather(0, shooter).masked_fill_(spoilt, 0.0))
    s.windup.masked_fill_(fires, NEVER)


def _in_turn(who: Tensor, priority: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Units of `who` [U, E] one after the other, in the order of their priority: (unit, is it one), [1, E]."""
    turns = []
    order = torch.where(who, priority, torch.inf)
    for _ in range(int(who.sum(0).max()) if bool(who.any()) else 0):
        value, unit = order.min(0, keepdim=True)
        order.scatter_(0, unit, torch.inf)
        turns.append((unit, value < torch.inf))
    return turns


def _shoot(s: Battle, army: Army, pairs: _Pairs, shooter: Tensor, target: Tensor, done: Tensor) -> None:
    """One shot per battle where `done` [1, E]: hits at once, or sends something on its way."""
    kind = pairs.kinds.gather(0, shooter)
    now = done
    if pairs.has_flight:
        launches = army.launches.expand(s.x.shape).gather(0, shooter) & done
        radii = pairs.radius.gather(0, shooter) + pairs.radius.gather(0, target)
        flying = (_distance(s, shooter, target) - radii).clamp_min_(0.0) / army.projectile_speed.expand(
            s.x.shape
        ).gather(0, shooter)
        second = army.second_delay.expand(s.x.shape).gather(0, shooter)
        if army.has("colossus"):
            sweeps = (kind == TYPES.index("colossus")) & done
            flying = torch.where(sweeps, COLOSSUS_HIT_DELAY * LOOPS_PER_SECOND, flying)
            _write(s.second, shooter, flying + second, sweeps)
            _write(s.second_target, shooter, target, sweeps)
        _write(s.flight, shooter, torch.where(launches, flying, second), done)
        _write(s.flight_target, shooter, target, done)
        now = now & ~launches
    if army.has("baneling"):
        bursts = (kind == TYPES.index("baneling")) & done
        _write(s.health, shooter, torch.zeros_like(s.health[:1]), bursts)
        now = now & ~bursts
    _hit(s, pairs, shooter, target, pairs.table[kind * len(TYPES) + pairs.kinds.gather(0, target)] * now)


def _distance(s: Battle, one: Tensor, other: Tensor) -> Tensor:
    return ((s.x.gather(0, one) - s.x.gather(0, other)) ** 2 + (s.y.gather(0, one) - s.y.gather(0, other)) ** 2).sqrt()


def _write(field: Tensor, unit: Tensor, value: Tensor, where: Tensor) -> None:
    """field[unit] = value where `where`, in place; all but field [1, E]."""
    field.scatter_(0, unit, torch.where(where, value, field.gather(0, unit)))


def _hit(s: Battle, pairs: _Pairs, shooter: Tensor, target: Tensor, damage: Tensor) -> None:
    """Damage [1, E] (0: none) to one target per battle: shields first, armour from what reaches health."""
    through = damage
    if pairs.has_shields:
        shield = s.shield.gather(0, target)
        absorbed = torch.minimum(shield, damage)
        s.shield.scatter_(0, target, shield - absorbed)
        through = damage - absorbed
    hurt = damage > 0
    loss = (through - pairs.armour.gather(0, target)).clamp_min_(MIN_DAMAGE).mul_(through > 0)
    s.health.scatter_(0, target, s.health.gather(0, target).sub_(loss).clamp_min_(0.0))
    s.calm.scatter_(0, target, s.calm.gather(0, target).masked_fill_(hurt, 0.0))
    s.attacker.scatter_(0, target, torch.where(hurt, shooter, s.attacker.gather(0, target)))


def _hit_many(s: Battle, army: Army, by: Tensor, damage: Tensor) -> None:
    """Damage [U, E] to all units at once, dealt by one unit per battle `by` [1, E]."""
    absorbed = torch.minimum(s.shield, damage)
    through = damage - absorbed
    loss = torch.where(through > 0, (through - army.armour).clamp_min_(MIN_DAMAGE), 0.0)
    s.shield -= absorbed
    s.health = (s.health - loss).clamp_min_(0.0)
    s.calm.masked_fill_(damage > 0, 0.0)
    s.attacker = torch.where(damage > 0, by, s.attacker)


def _land(s: Battle, army: Army, pairs: _Pairs, priority: Tensor) -> None:
    """Projectiles, second blows and sweeps whose time has come; a target that died meanwhile is missed."""
    s.flight.sub_(1.0)
    lands = s.flight <= 0
    for shooter, present in _in_turn(lands, priority):
        target = s.flight_target.gather(0, shooter).clamp_min(0)
        due = present & (s.health.gather(0, target) > 0)
        kind = pairs.kinds.gather(0, shooter)
        due &= army.launches.expand(s.x.shape).gather(0, shooter) | (s.health.gather(0, shooter) > 0)  # blows need life
        if army.has("colossus"):
            sweeps = kind == TYPES.index("colossus")
            _sweep(s, army, pairs, shooter, target, due & sweeps)
            due = due & ~sweeps
        _hit(s, pairs, shooter, target, pairs.table[kind * len(TYPES) + pairs.kinds.gather(0, target)] * due)
    s.flight.masked_fill_(lands, NEVER)
    if army.has("colossus"):
        s.second.sub_(1.0)
        lands = s.second <= 0
        for shooter, present in _in_turn(lands, priority):
            target = s.second_target.gather(0, shooter).clamp_min(0)
            _sweep(s, army, pairs, shooter, target, present & (s.health.gather(0, target) > 0))
        s.second.masked_fill_(lands, NEVER)


def _sweep(s: Battle, army: Army, pairs: _Pairs, shooter: Tensor, target: Tensor, due: Tensor) -> None:
    """A colossus's beam: everybody of the other side on a line across its aim through the target."""
    x, y = s.x.gather(0, target), s.y.gather(0, target)
    aim_x, aim_y = x - s.x.gather(0, shooter), y - s.y.gather(0, shooter)
    length = (aim_x**2 + aim_y**2).sqrt().clamp_min(1e-6)
    aim_x, aim_y = aim_x / length, aim_y / length
    along = (s.x - x) * aim_x + (s.y - y) * aim_y
    across = ((s.y - y) * aim_x - (s.x - x) * aim_y).abs()
    gap = (along**2 + (across - COLOSSUS_SPLASH_HALF_WIDTH).clamp_min(0.0) ** 2).sqrt()
    other_side = pairs.is_enemy != (shooter >= army.num_allies)
    caught = due & other_side & army.ground & (s.health > 0) & (gap <= COLOSSUS_SPLASH_REACH + army.radius)
    _hit_many(s, army, shooter, pairs.table[TYPES.index("colossus") * len(TYPES) + pairs.kinds] * caught)


def _explode(s: Battle, army: Army, pairs: _Pairs, lived: Tensor) -> None:
    """Banelings that died in this loop, by their own attack or another's, burst once each; lived [U, E] before it."""
    spent = torch.zeros_like(s.health, dtype=torch.bool)
    while True:
        fresh = (army.kinds == TYPES.index("baneling")) & lived & (s.health <= 0) & ~spent
        if not bool(fresh.any()):
            return
        for unit, present in _in_turn(fresh, pairs.numbers.to(s.x.dtype).expand(s.x.shape)):
            reach = BANELING_SPLASH_RADIUS + army.radius
            squared = (s.x - s.x.gather(0, unit)) ** 2 + (s.y - s.y.gather(0, unit)) ** 2
            other_side = pairs.is_enemy != (unit >= army.num_allies)
            caught = present & other_side & army.ground & (s.health > 0) & (squared <= reach**2)
            _hit_many(s, army, unit, pairs.table[TYPES.index("baneling") * len(TYPES) + pairs.kinds] * caught)
        spent |= fresh


def _recover(s: Battle, army: Army) -> None:
    """Shields after ten calm seconds, zerg health always, medivacs' energy."""
    living = s.health > 0
    if army.has("stalker", "zealot", "colossus"):
        s.calm += 1.0
        calm = living & (s.calm > SHIELD_DELAY_SECONDS * LOOPS_PER_SECOND)
        s.shield = torch.where(calm, torch.minimum(s.shield + army.shield_gain, army.max_shield), s.shield)
    if army.has("zergling", "baneling", "hydralisk", "spine_crawler"):
        s.health = torch.where(living, torch.minimum(s.health + army.health_gain, army.max_health), s.health)
    if army.has("medivac"):
        gain = ENERGY_RATE / LOOPS_PER_SECOND
        s.energy = torch.where(living & army.heals, (s.energy + gain).clamp_max(ENERGY_MAX), s.energy)
