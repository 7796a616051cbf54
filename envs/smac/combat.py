"""Attacks: begun, carried out in random order, landed; splash damage, healing, regeneration. All in place."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_flow.envs.smac.battle import NEVER, TYPES, Army, Battle
from marl_flow.envs.smac.pairs import Pairs, Targeting
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


def heal(battle: Battle, army: Army, in_reach: Tensor) -> None:
    """Medivacs in reach of their targets heal 9 health a second for a third of an energy point each."""
    at = battle.target.clamp_min(0)
    missing = (army.max_health - battle.health).gather(0, at)
    healable = army.healable.expand(battle.x.shape).gather(0, at)
    amount = torch.minimum(missing, battle.energy / HEAL_ENERGY_PER_HP).clamp_max(HEAL_RATE / LOOPS_PER_SECOND)
    amount = torch.where(in_reach & army.heals & healable, amount, 0.0)
    battle.health.scatter_add_(0, at, amount)
    battle.health = torch.minimum(battle.health, army.max_health)
    battle.energy -= amount * HEAL_ENERGY_PER_HP


def attack(battle: Battle, army: Army, pairs: Pairs, targeting: Targeting, jitter: Tensor, priority: Tensor) -> None:
    """Begins attacks, takes the shots that are due, lands the projectiles and second hits that are due."""
    idle = battle.windup > NEVER / 2
    begins = targeting.in_reach & (battle.cooldown <= 0)
    begins &= idle
    if army.has("medivac"):
        begins &= ~army.heals
    cancelled = ~(idle | targeting.in_slop)
    battle.windup = torch.where(begins, army.damage_point, battle.windup).masked_fill_(cancelled, NEVER)
    battle.cooldown.clamp_min_(-1.0).add_((army.period + jitter) * begins)
    battle.cooldown = torch.where(begins, battle.cooldown, battle.cooldown.clamp_min(0.0)).masked_fill_(cancelled, 0.0)
    fires = battle.windup <= 0
    if pairs.has_flight:
        _land_hits(battle, army, pairs, priority)
    for shooter, present in _by_priority(fires, priority):
        target = battle.target.gather(0, shooter).clamp_min_(0)
        present = present & (battle.health.gather(0, shooter) > 0)
        done = present & (battle.health.gather(0, target) > 0)
        _shoot(battle, army, pairs, shooter, target, done)
        unused = present & ~done  # the target died first: the weapon stays loaded
        battle.cooldown.scatter_(0, shooter, battle.cooldown.gather(0, shooter).masked_fill_(unused, 0.0))
    battle.windup.masked_fill_(fires, NEVER)


def _by_priority(which: Tensor, priority: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The units where `which` [U, E], one after the other by priority: pairs (unit, whether there is one), [1, E]."""
    turns = []
    order = torch.where(which, priority, torch.inf)
    for _ in range(int(which.sum(0).max()) if bool(which.any()) else 0):
        value, unit = order.min(0, keepdim=True)
        order.scatter_(0, unit, torch.inf)
        turns.append((unit, value < torch.inf))
    return turns


def _shoot(battle: Battle, army: Army, pairs: Pairs, shooter: Tensor, target: Tensor, done: Tensor) -> None:
    """One shot per battle where `done` [1, E]: it hits at once, or launches a projectile or a delayed hit."""
    shooter_type = pairs.types.gather(0, shooter)
    immediate = done
    if pairs.has_flight:
        launches = army.launches.expand(battle.x.shape).gather(0, shooter) & done
        radii = pairs.radius.gather(0, shooter) + pairs.radius.gather(0, target)
        delay = (_distance(battle, shooter, target) - radii).clamp_min_(0.0) / army.projectile_speed.expand(
            battle.x.shape
        ).gather(0, shooter)
        second_delay = army.second_delay.expand(battle.x.shape).gather(0, shooter)
        if army.has("colossus"):
            sweeps = (shooter_type == TYPES.index("colossus")) & done
            delay = torch.where(sweeps, COLOSSUS_HIT_DELAY * LOOPS_PER_SECOND, delay)
            _assign(battle.second_sweep, shooter, delay + second_delay, sweeps)
            offset_x = battle.x.gather(0, target) - battle.x.gather(0, shooter)
            offset_y = battle.y.gather(0, target) - battle.y.gather(0, shooter)
            length = (offset_x**2 + offset_y**2).sqrt().clamp_min(1e-6)
            _assign(battle.beam_x, shooter, battle.x.gather(0, target), sweeps)
            _assign(battle.beam_y, shooter, battle.y.gather(0, target), sweeps)
            _assign(battle.beam_dx, shooter, offset_x / length, sweeps)
            _assign(battle.beam_dy, shooter, offset_y / length, sweeps)
        _assign(battle.flight, shooter, torch.where(launches, delay, second_delay), done)
        _assign(battle.flight_target, shooter, target, done)
        immediate = immediate & ~launches
    if army.has("baneling"):
        bursts = (shooter_type == TYPES.index("baneling")) & done
        _assign(battle.health, shooter, torch.zeros_like(battle.health[:1]), bursts)
        immediate = immediate & ~bursts
    _hit(
        battle,
        pairs,
        shooter,
        target,
        pairs.table[shooter_type * len(TYPES) + pairs.types.gather(0, target)] * immediate,
    )


def _distance(battle: Battle, unit: Tensor, other: Tensor) -> Tensor:
    dx = battle.x.gather(0, unit) - battle.x.gather(0, other)
    dy = battle.y.gather(0, unit) - battle.y.gather(0, other)
    return (dx**2 + dy**2).sqrt()


def _assign(field: Tensor, unit: Tensor, value: Tensor, where: Tensor) -> None:
    """field[unit] = value where `where`, in place; field [U, E], the others [1, E]."""
    field.scatter_(0, unit, torch.where(where, value, field.gather(0, unit)))


def _hit(battle: Battle, pairs: Pairs, shooter: Tensor, target: Tensor, damage: Tensor) -> None:
    """Damage [1, E] (0: none) to one target per battle: shields first; armour reduces what reaches health."""
    unshielded = damage
    if pairs.has_shields:
        shield = battle.shield.gather(0, target)
        absorbed = torch.minimum(shield, damage)
        battle.shield.scatter_(0, target, shield - absorbed)
        unshielded = damage - absorbed
    hurt = damage > 0
    loss = (unshielded - pairs.armour.gather(0, target)).clamp_min_(MIN_DAMAGE).mul_(unshielded > 0)
    battle.health.scatter_(0, target, battle.health.gather(0, target).sub_(loss).clamp_min_(0.0))
    battle.since_damage.scatter_(0, target, battle.since_damage.gather(0, target).masked_fill_(hurt, 0.0))
    battle.attacker.scatter_(0, target, torch.where(hurt, shooter, battle.attacker.gather(0, target)))


def _hit_many(battle: Battle, army: Army, attacker: Tensor, damage: Tensor) -> None:
    """Damage [U, E] to all units at once, dealt by the unit `attacker` [1, E] of each battle."""
    absorbed = torch.minimum(battle.shield, damage)
    unshielded = damage - absorbed
    loss = torch.where(unshielded > 0, (unshielded - army.armour).clamp_min_(MIN_DAMAGE), 0.0)
    battle.shield -= absorbed
    battle.health = (battle.health - loss).clamp_min_(0.0)
    battle.since_damage.masked_fill_(damage > 0, 0.0)
    battle.attacker = torch.where(damage > 0, attacker, battle.attacker)


def _land_hits(battle: Battle, army: Army, pairs: Pairs, priority: Tensor) -> None:
    """Projectiles, second hits and sweeps that are due. A target that has died is missed; a sweep covers the ground it
    was aimed at, whoever stands there, and even if its colossus has died."""
    battle.flight.sub_(1.0)
    lands = battle.flight <= 0
    for shooter, present in _by_priority(lands, priority):
        target = battle.flight_target.gather(0, shooter).clamp_min(0)
        due = present & (battle.health.gather(0, target) > 0)
        shooter_type = pairs.types.gather(0, shooter)
        due &= army.launches.expand(battle.x.shape).gather(0, shooter) | (
            battle.health.gather(0, shooter) > 0
        )  # melee hits need a living attacker
        if army.has("colossus"):
            sweeps = shooter_type == TYPES.index("colossus")
            _sweep(battle, army, pairs, shooter, present & sweeps)
            due = due & ~sweeps
        _hit(
            battle, pairs, shooter, target, pairs.table[shooter_type * len(TYPES) + pairs.types.gather(0, target)] * due
        )
    battle.flight.masked_fill_(lands, NEVER)
    if army.has("colossus"):
        battle.second_sweep.sub_(1.0)
        lands = battle.second_sweep <= 0
        for shooter, present in _by_priority(lands, priority):
            _sweep(battle, army, pairs, shooter, present)
        battle.second_sweep.masked_fill_(lands, NEVER)


def _sweep(battle: Battle, army: Army, pairs: Pairs, shooter: Tensor, due: Tensor) -> None:
    """A colossus's beam: hits all enemies on a line across the direction of the attack, through the point aimed at."""
    x, y, dx, dy = (
        field.gather(0, shooter) for field in (battle.beam_x, battle.beam_y, battle.beam_dx, battle.beam_dy)
    )
    along = (battle.x - x) * dx + (battle.y - y) * dy
    across = ((battle.y - y) * dx - (battle.x - x) * dy).abs()
    gap = (along**2 + (across - COLOSSUS_SPLASH_HALF_WIDTH).clamp_min(0.0) ** 2).sqrt()
    other_side = pairs.is_enemy != (shooter >= army.num_allies)
    inside = due & other_side & army.ground & (battle.health > 0) & (gap <= COLOSSUS_SPLASH_REACH + army.radius)
    _hit_many(battle, army, shooter, pairs.table[TYPES.index("colossus") * len(TYPES) + pairs.types] * inside)


def explode_banelings(battle: Battle, army: Army, pairs: Pairs, was_alive: Tensor) -> None:
    """Banelings that died in this loop, by their own attack or another's, explode once each.

    was_alive [U, E] before the loop.
    """
    exploded = torch.zeros_like(battle.health, dtype=torch.bool)
    while True:
        exploding = (army.types == TYPES.index("baneling")) & was_alive & (battle.health <= 0) & ~exploded
        if not bool(exploding.any()):
            return
        for unit, present in _by_priority(exploding, pairs.numbers.to(battle.x.dtype).expand(battle.x.shape)):
            reach = BANELING_SPLASH_RADIUS + army.radius
            squared = (battle.x - battle.x.gather(0, unit)) ** 2 + (battle.y - battle.y.gather(0, unit)) ** 2
            other_side = pairs.is_enemy != (unit >= army.num_allies)
            inside = present & other_side & army.ground & (battle.health > 0) & (squared <= reach**2)
            _hit_many(battle, army, unit, pairs.table[TYPES.index("baneling") * len(TYPES) + pairs.types] * inside)
        exploded |= exploding


def regenerate(battle: Battle, army: Army) -> None:
    """Shields after ten seconds without damage, zerg health always, medivacs' energy."""
    alive = battle.health > 0
    if army.has("stalker", "zealot", "colossus"):
        battle.since_damage += 1.0
        recovers = alive & (battle.since_damage > SHIELD_DELAY_SECONDS * LOOPS_PER_SECOND)
        battle.shield = torch.where(
            recovers, torch.minimum(battle.shield + army.shield_gain, army.max_shield), battle.shield
        )
    if army.has("zergling", "baneling", "hydralisk", "spine_crawler"):
        battle.health = torch.where(
            alive, torch.minimum(battle.health + army.health_gain, army.max_health), battle.health
        )
    if army.has("medivac"):
        gain = ENERGY_RATE / LOOPS_PER_SECOND
        battle.energy = torch.where(alive & army.heals, (battle.energy + gain).clamp_max(ENERGY_MAX), battle.energy)
