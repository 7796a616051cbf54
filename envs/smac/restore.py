"""SMAC's states read backwards, and what must hold between two of them.

A state does not tell everything (enemies' cooldowns, targets, shots in the air), so a stored step cannot be played
again; but it tells the observations, the legal actions and, with the next state, the reward and the end.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from marl_flow.envs.smac.battle import Army, Battle, begin, limbo_of
from marl_flow.envs.smac.features import CENTRE, SPAN, Features
from marl_flow.envs.smac.units import ENERGY_MAX, HEAL_RATE, LOOPS_PER_SECOND, LOOPS_PER_STEP

EDGE = 1e-5
"""Rounding of a place in a float32 state, in cells."""
ROOM = 1.0
"""How much further than its own legs carry it a unit may be moved in one step, by being pushed, in cells."""


def battle_of(features: Features, army: Army, state: Tensor) -> Battle:
    """The battle that shows as state [E, S]; what a state does not tell is as at the start."""
    agents = features.agents
    ally, enemy, _ = _parts(features, state)
    kinds = army.kinds
    ours, theirs = ally.permute(1, 2, 0), enemy.permute(1, 2, 0)  # [N, F, E], [M, F, E]
    health = torch.cat([ours[:, 0], theirs[:, 0]]) * army.max_health
    x, y = _place(torch.cat([ours[:, 2], theirs[:, 1]])), _place(torch.cat([ours[:, 3], theirs[:, 2]]))
    limbo, alive = limbo_of(x), health > 0
    x, y = torch.where(alive, x, limbo), torch.where(alive, y, limbo)
    battle = begin(army, x, y, x.clone(), y.clone())
    shield = torch.zeros_like(x)
    if features.battle.ally_shield:
        shield[:agents] = ours[:, 4] * army.max_shield[:agents]
    if features.battle.enemy_shield:
        shield[agents:] = theirs[:, 3] * army.max_shield[agents:]
    cooldown, energy = torch.zeros_like(x), torch.zeros_like(x)
    cooldown[:agents] = ours[:, 1] * features.max_cooldown[kinds[:agents]]
    energy[:agents] = torch.where(army.heals[:agents], ours[:, 1] * ENERGY_MAX, 0.0)
    return dataclasses.replace(battle, health=health, shield=shield, cooldown=cooldown, energy=energy)


def _place(shown: Tensor) -> Tensor:
    """Coordinates from those of a state. Whoever stands at a wall stands on the edge of a cell, and legality reads
    cells: what rounding moved off an edge is put back."""
    place = shown * SPAN + CENTRE
    edge = place.round()
    return torch.where((place - edge).abs() < EDGE, edge, place)


def possible_state(features: Features, army: Army, state: Tensor, actions: Tensor, following: Tensor) -> Tensor:
    """The state [E, S] nearest to `following` that can follow on `state` under actions [E, N].

    Last actions are the actions; nobody moves further than its legs and pushes carry it, comes back to life, or gains
    more health than zerg regeneration and healing or more shield than regeneration gives in a step.
    """
    result = following.clone()
    old_ally, old_enemy, _ = _parts(features, state)
    ally, enemy, last = _parts(features, result)
    last.copy_(features.eye[actions].flatten(1))
    stride = (army.speed * LOOPS_PER_STEP + ROOM) / SPAN  # [U, E or 1]
    heal = _gain(army.max_health, army.health_gain * LOOPS_PER_STEP)
    if army.has("medivac"):
        heal = heal + army.heals.sum(0) * HEAL_RATE * LOOPS_PER_STEP / LOOPS_PER_SECOND / army.max_health
    shield = _gain(army.max_shield.clamp_min(1.0), army.shield_gain * LOOPS_PER_STEP)
    agents = features.agents
    for rows, before, first, place in ((ally, old_ally, 0, 2), (enemy, old_enemy, agents, 1)):
        part = slice(first, first + rows.shape[1])
        lived = before[..., 0] > 0
        lives = lived & (rows[..., 0] > 0)
        rows.copy_(torch.where(lived[..., None], rows, 0.0))
        room = stride[part].t()
        for column in (place, place + 1):
            reached = rows[..., column].clamp(before[..., column] - room, before[..., column] + room)
            rows[..., column] = torch.where(lives, reached, rows[..., column])
        rows[..., 0] = torch.minimum(rows[..., 0], before[..., 0] + heal[part].t())
        has_shield = features.battle.ally_shield if first == 0 else features.battle.enemy_shield
        if has_shield:
            rows[..., place + 2] = torch.minimum(rows[..., place + 2], before[..., place + 2] + shield[part].t())
    return result


def _gain(most: Tensor, per_step: Tensor) -> Tensor:
    return per_step / most + 1e-4


def _parts(features: Features, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of a state [E, S]: agents' rows [E, N, F], enemies' rows [E, M, F], last actions [E, N * A]."""
    battle, agents, enemies = features.battle, features.agents, features.enemies
    ally = 4 + battle.ally_shield + len(battle.ally_bits)
    enemy = 3 + battle.enemy_shield + len(battle.enemy_bits)
    first, second, third = state.split([agents * ally, enemies * enemy, agents * features.num_actions], dim=1)
    return first.unflatten(1, (agents, ally)), second.unflatten(1, (enemies, enemy)), third
