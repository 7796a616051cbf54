"""SMAC's observations, state, legal actions and reward of a battle, with all their peculiarities.

Source: `oxwhirl/smac: smac/env/starcraft2/starcraft2.py` (get_obs_agent, get_state, get_avail_agent_actions,
reward_battle), d6aab33; generated armies as `oxwhirl/smacv2: smacv2/env/starcraft2/starcraft2.py`, 577ab5a.

    observation   moves (4) | enemies M * (attackable, distance, dx, dy, health [, shield] [, type])
                  | other agents (N - 1) * (visible, distance, dx, dy, health [, shield] [, type])
                  | own health [, shield] [, x, y] [, facing] [, type]
    state         agents N * (health, cooldown, x, y [, shield] [, facing] [, type])
                  | enemies M * (health, x, y [, shield] [, type]) | last actions N * A
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from marl_flow.envs.smac.battle import TYPES, Army, Battle
from marl_flow.envs.smac.maps import MAP_SIZE, PLAYABLE, BattleMap
from marl_flow.envs.smac.units import ENERGY_MAX, UNITS
from marl_flow.tasks import NUM_BASIC_ACTIONS

SIGHT_RANGE, SHOOT_RANGE = 9.0, 6.0
"""SMAC's constants for every agent, whatever its unit type's ranges are."""
LOOK_AHEAD = 1.0
"""A move is legal when the cell one unit ahead can be walked on."""
CENTRE, SPAN = MAP_SIZE / 2, PLAYABLE[1] - PLAYABLE[0]
KILL_REWARD, WIN_REWARD, CLEAN_WIN_RETURN = 10.0, 200.0, 20.0


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """How far each agent sees (distances are divided by it) and may be ordered to attack, [N, E or 1].

    facing [2, N, E]: directions in which agents look, unit vectors; None if all agents see in all directions.
    """

    sight: Tensor
    shoot: Tensor
    facing: Tensor | None = None


class Features:
    """The layout of one scenario. SMACv2: `own_position` adds the agent's position to its observation; agents that see
    only a cone turn by `turns` actions, which precede the attacks, and observe their facing."""

    def __init__(self, battle_map: BattleMap, grid: Tensor, *, own_position: bool = False, turns: int = 0) -> None:
        """grid [32, 32] bool: cells that can be walked on."""
        device = grid.device
        self.map, self.grid, self.own_position = battle_map, grid.reshape(-1), own_position
        self.agents, self.enemies = battle_map.num_agents, battle_map.num_enemies
        self.turns, self.first_target = turns, NUM_BASIC_ACTIONS + turns
        self.num_actions = self.first_target + self.enemies
        self.ally_bits, self.enemy_bits = (
            torch.tensor([[float(name == bit) for bit in bits] for name in TYPES], device=device)
            for bits in (battle_map.ally_bits, battle_map.enemy_bits)
        )
        self.enemy_width = 5 + battle_map.enemy_shield + len(battle_map.enemy_bits)
        self.ally_width = 5 + battle_map.ally_shield + len(battle_map.ally_bits)
        self.own_width = 1 + battle_map.ally_shield + 2 * own_position + 2 * (turns > 0) + len(battle_map.ally_bits)
        self.size = 4 + self.enemies * self.enemy_width + (self.agents - 1) * self.ally_width + self.own_width
        self.max_cooldown = torch.tensor([UNITS[name].max_cooldown for name in TYPES], device=device)
        self.one_hot = torch.eye(self.num_actions, device=device)

    def legal(self, battle: Battle, army: Army, ranges: Ranges) -> Tensor:
        """Legal actions [N, A, E] bool."""
        agents = self.agents
        x, y, alive = battle.x[:agents], battle.y[:agents], battle.health[:agents] > 0
        mask = torch.zeros(agents, self.num_actions, x.shape[1], dtype=torch.bool, device=x.device)
        mask[:, 0] = ~alive
        mask[:, 1] = alive
        for action, (dx, dy) in enumerate(((0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)), 2):
            cell_x, cell_y = (x + dx * LOOK_AHEAD).trunc(), (y + dy * LOOK_AHEAD).trunc()
            inside = (cell_x >= 0) & (cell_x < MAP_SIZE) & (cell_y >= 0) & (cell_y < MAP_SIZE)
            cell = torch.where(inside, cell_x * MAP_SIZE + cell_y, 0.0).long()
            mask[:, action] = alive & inside & self.grid[cell]
        mask[:, NUM_BASIC_ACTIONS : self.first_target] = alive[:, None]
        near = self._in_range(battle, agents, ranges)  # [N, M, E]
        target = alive[:, None] & near & (battle.health[agents:] > 0)[None]
        if self.map.has_medivacs:  # a medivac's targets are allies, never medivacs
            allies = self._in_range(battle, 0, ranges)[:, :agents]
            allies = allies & (alive & ~army.heals[:agents])[None]
            heals = army.heals[:agents, None].expand(-1, 1, x.shape[1])
            slots = torch.zeros_like(target)
            count = min(agents, self.enemies)
            slots[:, :count] = allies[:, :count] & alive[:, None]
            target = torch.where(heals, slots, target)
        mask[:, self.first_target :] = target
        return mask

    def _in_range(self, battle: Battle, first: int, ranges: Ranges) -> Tensor:
        """Which of the units from `first` on are in each agent's attack range, [N, U - first, E] bool."""
        dx = battle.x[first:][None] - battle.x[: self.agents, None]
        dy = battle.y[first:][None] - battle.y[: self.agents, None]
        distance = (dx * dx + dy * dy).sqrt()
        near = distance <= ranges.shoot[:, None]
        return near if ranges.facing is None else near & self._in_cone(dx, dy, distance, ranges.facing)

    def _in_cone(self, dx: Tensor, dy: Tensor, distance: Tensor, facing: Tensor) -> Tensor:
        """Whether offsets [N, .., E] are within half a turn's angle of the agents' facing [2, N, E]; the edge, on which
        exact diagonals are, counts."""
        min_cosine = math.cos(math.pi / self.turns) - 1e-6
        return dx * facing[0][:, None] + dy * facing[1][:, None] >= min_cosine * distance

    def observations(self, battle: Battle, army: Army, ranges: Ranges, mask: Tensor) -> Tensor:
        """Observations [E, N, O]; mask [N, A, E] the legal actions. A dead agent observes zeros."""
        agents, enemies, battle_map = self.agents, self.enemies, self.map
        alive = battle.health > 0
        dx, dy = battle.x[None] - battle.x[:agents, None], battle.y[None] - battle.y[:agents, None]
        distance = (dx * dx).add_(dy * dy).sqrt_()
        sight = ranges.sight[:, None]
        near = distance < sight
        if ranges.facing is not None:
            near &= self._in_cone(dx, dy, distance, ranges.facing)
        visible = (near & alive[None]).logical_and_(alive[:agents, None]).to(battle.x.dtype)
        visible_over_sight = visible / sight
        health = battle.health / army.max_health
        shields = self._shields(battle, army)
        out = battle.x.new_empty(agents, self.size, battle.x.shape[1])
        torch.mul(mask[:, 2:NUM_BASIC_ACTIONS], alive[:agents, None], out=out[:, :4])

        columns = [distance, dx, dy, health[None], shields[None]]
        block = out[:, 4 : 4 + enemies * self.enemy_width].unflatten(1, (enemies, self.enemy_width))
        torch.mul(mask[:, self.first_target :], visible[:, agents:], out=block[:, :, 0])
        for column, value in enumerate(columns[: 4 + battle_map.enemy_shield], 1):
            scale = visible_over_sight if column <= 3 else visible
            torch.mul(value[:, agents:], scale[:, agents:], out=block[:, :, column])
        if battle_map.enemy_bits:
            types = self._bits(army, agents, agents + enemies, battle.x)[None]
            torch.mul(types, visible[:, agents:, None], out=block[:, :, 5 + battle_map.enemy_shield :])

        start = 4 + enemies * self.enemy_width
        bits = self._bits(army, 0, agents, battle.x) if battle_map.ally_bits else None
        if agents > 1:
            rows = battle.x.new_empty(agents, agents, self.ally_width, battle.x.shape[1])
            rows[:, :, 0] = visible[:, :agents]
            for column, value in enumerate(columns[: 4 + battle_map.ally_shield], 1):
                scale = visible_over_sight if column <= 3 else visible
                torch.mul(value[:, :agents], scale[:, :agents], out=rows[:, :, column])
            if bits is not None:
                torch.mul(bits[None], visible[:, :agents, None], out=rows[:, :, 5 + battle_map.ally_shield :])
            # all but the diagonal: the agents in their order without the observer
            others = rows.flatten(0, 1)[1:].unflatten(0, (agents - 1, agents + 1))[:, :-1]
            others = others.reshape(agents, agents - 1, self.ally_width, battle.x.shape[1])
            out[:, start : self.size - self.own_width] = others.flatten(1, 2)

        own = [health[:agents, None]]
        if battle_map.ally_shield:
            own.append(shields[:agents, None])
        if self.own_position:
            own += [(battle.x[:agents] / MAP_SIZE)[:, None], (battle.y[:agents] / MAP_SIZE)[:, None]]
        if ranges.facing is not None:
            own.append(ranges.facing.transpose(0, 1))
        if bits is not None:
            own.append(bits)
        torch.mul(torch.cat(own, dim=1), alive[:agents, None], out=out[:, self.size - self.own_width :])
        return out.permute(2, 0, 1) + 0.0  # no negative zeros

    def _shields(self, battle: Battle, army: Army) -> Tensor:
        """Shields as fractions of the full ones [U, E]."""
        return battle.shield / army.max_shield.clamp_min(1.0)

    def _bits(self, army: Army, first: int, last: int, like: Tensor) -> Tensor:
        """One-hot unit types [last - first, bits, E]."""
        bits = self.ally_bits if last <= self.agents else self.enemy_bits
        types = army.types[first:last].expand(-1, like.shape[1])
        return bits[types].transpose(1, 2)

    def state(self, battle: Battle, army: Army, last_actions: Tensor | None, facing: Tensor | None = None) -> Tensor:
        """Global state [E, S]; last_actions [N, E], None before the first step; facing as in `Ranges`. Dead
        units are zero rows."""
        agents, battle_map = self.agents, self.map
        alive = (battle.health > 0).to(battle.x.dtype)
        health = battle.health / army.max_health
        x, y = (battle.x - CENTRE) / SPAN, (battle.y - CENTRE) / SPAN
        ready = battle.cooldown[:agents].clamp_min(0.0) / self.max_cooldown[army.types[:agents]]
        ready = torch.where(army.heals[:agents], battle.energy[:agents] / ENERGY_MAX, ready)
        ally = [health[:agents], ready, x[:agents], y[:agents]]
        enemy = [health[agents:], x[agents:], y[agents:]]
        if battle_map.ally_shield:
            ally.append(self._shields(battle, army)[:agents])
        if battle_map.enemy_shield:
            enemy.append(self._shields(battle, army)[agents:])
        if facing is not None:
            ally += [facing[0], facing[1]]
        ally_rows, enemy_rows = torch.stack(ally, dim=1), torch.stack(enemy, dim=1)  # [N, F, E]
        if battle_map.ally_bits:
            ally_rows = torch.cat([ally_rows, self._bits(army, 0, agents, battle.x)], dim=1)
        if battle_map.enemy_bits:
            enemy_rows = torch.cat([enemy_rows, self._bits(army, agents, army.num_units, battle.x)], dim=1)
        parts = [(ally_rows * alive[:agents, None]).flatten(0, 1), (enemy_rows * alive[agents:, None]).flatten(0, 1)]
        if last_actions is None:
            parts.append(battle.x.new_zeros(agents * self.num_actions, battle.x.shape[1]))
        else:
            parts.append(self.one_hot[last_actions].permute(0, 2, 1).flatten(0, 1))
        return torch.cat(parts).t().contiguous()


def damage_reward(health: Tensor, shield: Tensor, after: Battle, num_allies: int) -> Tensor:
    """|damage dealt + 10 per kill| [E], unscaled, without the win bonus; health and shield [U, E] before the step.

    The absolute value is SMAC's: the agents are also rewarded when enemies regain shields or are healed.
    """
    return damage_dealt(health, shield, after, num_allies).abs()


def damage_dealt(health: Tensor, shield: Tensor, after: Battle, num_allies: int) -> Tensor:
    """Damage dealt + 10 per kill [E], minus what enemies regained; health and shield [U, E] before the step."""
    was_alive, is_alive = health[num_allies:] > 0, after.health[num_allies:] > 0
    lost = (health - after.health + shield - after.shield)[num_allies:]
    lost = torch.where(is_alive, lost, health[num_allies:] + shield[num_allies:])
    killed = (was_alive & ~is_alive).to(lost.dtype)
    return (torch.where(was_alive, lost, 0.0) + KILL_REWARD * killed).sum(0)


def max_reward(battle_map: BattleMap, enemy_life: float) -> float:
    """The unscaled return of a win in which no enemy regains anything; rewards are scaled so that it becomes 20."""
    return KILL_REWARD * battle_map.num_enemies + WIN_REWARD + enemy_life
