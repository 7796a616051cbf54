"""Battles computed from SMAC's states, and what must hold between two successive states.

A state does not determine everything (enemies' cooldowns and targets and projectiles are missing), so a stored step
cannot be replayed; but it determines the observations, the legal actions and, with the next state, the reward and the
end of the episode.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from marl_flow.envs.smac.battle import Army, Battle, begin, off_map_positions
from marl_flow.envs.smac.features import CENTRE, SPAN, Features
from marl_flow.envs.smac.units import ENERGY_MAX, HEAL_RATE, LOOPS_PER_SECOND, LOOPS_PER_STEP

ROUNDING = 1e-5
"""Of a position in a float32 state, in cells."""
MAX_PUSH_PER_STEP = 1.0
"""How much farther than it walks a unit may move in one step, by being pushed, in cells."""


def battle_from_state(features: Features, army: Army, state: Tensor) -> Battle:
    """The battle whose state is [E, S]; what a state does not contain is as in a new battle."""
    agents = features.agents
    ally_rows, enemy_rows, _ = _split_state(features, state)
    ally, enemy = ally_rows.permute(1, 2, 0), enemy_rows.permute(1, 2, 0)  # [N, F, E], [M, F, E]
    health = torch.cat([ally[:, 0], enemy[:, 0]]) * army.max_health
    x, y = _position(torch.cat([ally[:, 2], enemy[:, 1]])), _position(torch.cat([ally[:, 3], enemy[:, 2]]))
    off_map, alive = off_map_positions(x), health > 0
    x, y = torch.where(alive, x, off_map), torch.where(alive, y, off_map)
    battle = begin(army, x, y, x.clone(), y.clone())
    shield = torch.zeros_like(x)
    if features.map.ally_shield:
        shield[:agents] = ally[:, 4] * army.max_shield[:agents]
    if features.map.enemy_shield:
        shield[agents:] = enemy[:, 3] * army.max_shield[agents:]
    cooldown, energy = torch.zeros_like(x), torch.zeros_like(x)
    cooldown[:agents] = ally[:, 1] * features.max_cooldown[army.types[:agents]]
    energy[:agents] = torch.where(army.heals[:agents], ally[:, 1] * ENERGY_MAX, 0.0)
    return dataclasses.replace(battle, health=health, shield=shield, cooldown=cooldown, energy=energy)


def _position(scaled: Tensor) -> Tensor:
    """Coordinates from those of a state. A unit at a wall is on the edge of a cell, and legal actions depend on cells:
    coordinates that rounding moved off an edge are moved back."""
    position = scaled * SPAN + CENTRE
    edge = position.round()
    return torch.where((position - edge).abs() < ROUNDING, edge, position)


def nearest_possible_state(
    features: Features, army: Army, state: Tensor, actions: Tensor, next_state: Tensor
) -> Tensor:
    """The state [E, S] nearest to `next_state` that can follow `state` under actions [E, N].

    Last actions are the actions; no unit moves farther than it can walk and be pushed, comes back to life, or gains
    more health than zerg regeneration and healing or more shield than regeneration give in a step.
    """
    result = next_state.clone()
    old_ally, old_enemy, _ = _split_state(features, state)
    ally, enemy, last_actions = _split_state(features, result)
    last_actions.copy_(features.one_hot[actions].flatten(1))
    max_move = (army.speed * LOOPS_PER_STEP + MAX_PUSH_PER_STEP) / SPAN  # [U, E or 1]
    max_heal = _max_gain(army.max_health, army.health_gain * LOOPS_PER_STEP)
    if army.has("medivac"):
        max_heal = max_heal + army.heals.sum(0) * HEAL_RATE * LOOPS_PER_STEP / LOOPS_PER_SECOND / army.max_health
    max_shield = _max_gain(army.max_shield.clamp_min(1.0), army.shield_gain * LOOPS_PER_STEP)
    agents = features.agents
    for rows, before, first, x_column in ((ally, old_ally, 0, 2), (enemy, old_enemy, agents, 1)):
        side = slice(first, first + rows.shape[1])
        was_alive = before[..., 0] > 0
        is_alive = was_alive & (rows[..., 0] > 0)
        rows.copy_(torch.where(was_alive[..., None], rows, 0.0))
        limit = max_move[side].t()
        for column in (x_column, x_column + 1):
            reached = rows[..., column].clamp(before[..., column] - limit, before[..., column] + limit)
            rows[..., column] = torch.where(is_alive, reached, rows[..., column])
        rows[..., 0] = torch.minimum(rows[..., 0], before[..., 0] + max_heal[side].t())
        has_shield = features.map.ally_shield if first == 0 else features.map.enemy_shield
        if has_shield:
            shield = x_column + 2
            rows[..., shield] = torch.minimum(rows[..., shield], before[..., shield] + max_shield[side].t())
    return result


def _max_gain(full: Tensor, per_step: Tensor) -> Tensor:
    """Largest gain in a step as a fraction of the full value, rounding included."""
    return per_step / full + 1e-4


def _split_state(features: Features, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of a state [E, S]: agents' rows [E, N, F], enemies' rows [E, M, F], last actions [E, N * A]."""
    battle_map, agents, enemies = features.map, features.agents, features.enemies
    ally = 4 + battle_map.ally_shield + len(battle_map.ally_bits)
    enemy = 3 + battle_map.enemy_shield + len(battle_map.enemy_bits)
    first, second, third = state.split([agents * ally, enemies * enemy, agents * features.num_actions], dim=1)
    return first.unflatten(1, (agents, ally)), second.unflatten(1, (enemies, enemy)), third
