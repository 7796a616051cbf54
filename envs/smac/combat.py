"""Blows and shots: attacks begun, taken in random order, landed; splash, healing, recovery. All in place."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_flow.envs.smac.battle import NEVER, TYPES, Army, Battle
from marl_flow.envs.smac.pairs import Aim, Pairs
from marl_flow.envs.smac.units import (
    BANELING_SPLASH_RADIUS,
    COLOSSUS_HIT_DELAY,
    COLOSSUS_SPLASH_HALF_WIDTH,
    COLOSSUS_SPLASH_REACH,
    ENERGY_MAX,
    ENERGY_RATE,
    HEAL_ENERGY_PER_HP,
    HEAL_RATE,
    LOOPS_PER_SECOND,
    MIN_DAMAGE,
    SHIELD_DELAY_SECONDS,
)


def heal(s: Battle, army: Army, in_reach: Tensor) -> None:
    """Medivacs in reach of their patients: 9 health a second for a third of an energy point each."""
    at = s.target.clamp_min(0)
    missing = (army.max_health - s.health).gather(0, at)
    fit = army.organic.expand(s.x.shape).gather(0, at)
    amount = torch.minimum(missing, s.energy / HEAL_ENERGY_PER_HP).clamp_max(HEAL_RATE / LOOPS_PER_SECOND)
    amount = torch.where(in_reach & army.heals & fit, amount, 0.0)
    s.health.scatter_add_(0, at, amount)
    s.health = torch.minimum(s.health, army.max_health)
    s.energy -= amount * HEAL_ENERGY_PER_HP


def attack(s: Battle, army: Army, pairs: Pairs, aim: Aim, jitter: Tensor, priority: Tensor) -> None:
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


def _shoot(s: Battle, army: Army, pairs: Pairs, shooter: Tensor, target: Tensor, done: Tensor) -> None:
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
            way_x = s.x.gather(0, target) - s.x.gather(0, shooter)
            way_y = s.y.gather(0, target) - s.y.gather(0, shooter)
            length = (way_x**2 + way_y**2).sqrt().clamp_min(1e-6)
            _write(s.beam_x, shooter, s.x.gather(0, target), sweeps)
            _write(s.beam_y, shooter, s.y.gather(0, target), sweeps)
            _write(s.beam_dx, shooter, way_x / length, sweeps)
            _write(s.beam_dy, shooter, way_y / length, sweeps)
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


def _hit(s: Battle, pairs: Pairs, shooter: Tensor, target: Tensor, damage: Tensor) -> None:
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


def _land(s: Battle, army: Army, pairs: Pairs, priority: Tensor) -> None:
    """Projectiles, second blows and sweeps whose time has come. A target that died meanwhile is missed; a sweep goes
    over the ground it was aimed at, whoever stands there, and whether its colossus lives or not."""
    s.flight.sub_(1.0)
    lands = s.flight <= 0
    for shooter, present in _in_turn(lands, priority):
        target = s.flight_target.gather(0, shooter).clamp_min(0)
        due = present & (s.health.gather(0, target) > 0)
        kind = pairs.kinds.gather(0, shooter)
        due &= army.launches.expand(s.x.shape).gather(0, shooter) | (s.health.gather(0, shooter) > 0)  # blows need life
        if army.has("colossus"):
            sweeps = kind == TYPES.index("colossus")
            _sweep(s, army, pairs, shooter, present & sweeps)
            due = due & ~sweeps
        _hit(s, pairs, shooter, target, pairs.table[kind * len(TYPES) + pairs.kinds.gather(0, target)] * due)
    s.flight.masked_fill_(lands, NEVER)
    if army.has("colossus"):
        s.second.sub_(1.0)
        lands = s.second <= 0
        for shooter, present in _in_turn(lands, priority):
            _sweep(s, army, pairs, shooter, present)
        s.second.masked_fill_(lands, NEVER)


def _sweep(s: Battle, army: Army, pairs: Pairs, shooter: Tensor, due: Tensor) -> None:
    """A colossus's beam: everybody of the other side on a line across its aim, through the place it was aimed at."""
    x, y, aim_x, aim_y = (field.gather(0, shooter) for field in (s.beam_x, s.beam_y, s.beam_dx, s.beam_dy))
    along = (s.x - x) * aim_x + (s.y - y) * aim_y
    across = ((s.y - y) * aim_x - (s.x - x) * aim_y).abs()
    gap = (along**2 + (across - COLOSSUS_SPLASH_HALF_WIDTH).clamp_min(0.0) ** 2).sqrt()
    other_side = pairs.is_enemy != (shooter >= army.num_allies)
    caught = due & other_side & army.ground & (s.health > 0) & (gap <= COLOSSUS_SPLASH_REACH + army.radius)
    _hit_many(s, army, shooter, pairs.table[TYPES.index("colossus") * len(TYPES) + pairs.kinds] * caught)


def explode(s: Battle, army: Army, pairs: Pairs, lived: Tensor) -> None:
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


def recover(s: Battle, army: Army) -> None:
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
