"""What SMAC says of a battle: observations, state, legal actions, reward; its quirks included.

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
from marl_flow.envs.smac.maps import MAP_SIZE, NUM_BASIC_ACTIONS, PLAYABLE, BattleMap
from marl_flow.envs.smac.units import ENERGY_MAX, UNITS

SIGHT_RANGE, SHOOT_RANGE = 9.0, 6.0
"""SMAC's own constants for every agent, whatever its unit's are."""
LOOK_AHEAD = 1.0
"""A move is legal when the cell one unit ahead can be walked on."""
CENTRE, SPAN = MAP_SIZE / 2, PLAYABLE[1] - PLAYABLE[0]
KILL_REWARD, WIN_REWARD, RETURN_OF_A_CLEAN_WIN = 10.0, 200.0, 20.0


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """How far each agent sees, may be told to attack, and what distances are divided by, [N, E or 1].

    facing [2, N, E]: where it looks, unit vectors; None where everybody sees all around.
    """

    sight: Tensor
    shoot: Tensor
    facing: Tensor | None = None


class Features:
    """The layout of one scenario. SMACv2: `own_position` adds the agent's place to its observation; agents that see
    cones only turn by `turns` actions before the attacks, and their facing is observed."""

    def __init__(self, battle: BattleMap, grid: Tensor, *, own_position: bool = False, turns: int = 0) -> None:
        """grid [32, 32] bool: cells that can be walked on."""
        device = grid.device
        self.battle, self.grid, self.own_position = battle, grid.reshape(-1), own_position
        self.agents, self.enemies = battle.num_agents, battle.num_enemies
        self.turns, self.first_target = turns, NUM_BASIC_ACTIONS + turns
        self.num_actions = self.first_target + self.enemies
        self.ally_bits, self.enemy_bits = (
            torch.tensor([[float(name == kind) for kind in bits] for name in TYPES], device=device)
            for bits in (battle.ally_bits, battle.enemy_bits)
        )
        self.enemy_width = 5 + battle.enemy_shield + len(battle.enemy_bits)
        self.ally_width = 5 + battle.ally_shield + len(battle.ally_bits)
        self.own_width = 1 + battle.ally_shield + 2 * own_position + 2 * (turns > 0) + len(battle.ally_bits)
        self.size = 4 + self.enemies * self.enemy_width + (self.agents - 1) * self.ally_width + self.own_width
        self.max_cooldown = torch.tensor([UNITS[name].max_cooldown for name in TYPES], device=device)
        self.eye = torch.eye(self.num_actions, device=device)

    def legal(self, s: Battle, army: Army, ranges: Ranges) -> Tensor:
        """Legal actions [N, A, E] bool."""
        agents = self.agents
        x, y, alive = s.x[:agents], s.y[:agents], s.health[:agents] > 0
        mask = torch.zeros(agents, self.num_actions, x.shape[1], dtype=torch.bool, device=x.device)
        mask[:, 0] = ~alive
        mask[:, 1] = alive
        for action, (dx, dy) in enumerate(((0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)), 2):
            cx, cy = (x + dx * LOOK_AHEAD).trunc(), (y + dy * LOOK_AHEAD).trunc()
            inside = (cx >= 0) & (cx < MAP_SIZE) & (cy >= 0) & (cy < MAP_SIZE)
            cell = torch.where(inside, cx * MAP_SIZE + cy, 0.0).long()
            mask[:, action] = alive & inside & self.grid[cell]
        mask[:, NUM_BASIC_ACTIONS : self.first_target] = alive[:, None]
        near = self._in_range(s, agents, ranges)  # [N, M, E]
        target = alive[:, None] & near & (s.health[agents:] > 0)[None]
        if self.battle.has_medivacs:  # a medivac's targets are allies, never medivacs
            friends = self._in_range(s, 0, ranges)[:, :agents]
            friends = friends & (alive & ~army.heals[:agents])[None]
            heals = army.heals[:agents, None].expand(-1, 1, x.shape[1])
            slots = torch.zeros_like(target)
            count = min(agents, self.enemies)
            slots[:, :count] = friends[:, :count] & alive[:, None]
            target = torch.where(heals, slots, target)
        mask[:, self.first_target :] = target
        return mask

    def _in_range(self, s: Battle, first: int, ranges: Ranges) -> Tensor:
        """Whom agents may be told to attack by their places [N, U - first, E], of the units from `first` on."""
        dx = s.x[first:][None] - s.x[: self.agents, None]
        dy = s.y[first:][None] - s.y[: self.agents, None]
        distance = (dx * dx + dy * dy).sqrt()
        near = distance <= ranges.shoot[:, None]
        return near if ranges.facing is None else near & self._in_cone(dx, dy, distance, ranges.facing)

    def _in_cone(self, dx: Tensor, dy: Tensor, distance: Tensor, facing: Tensor) -> Tensor:
        """Whether ways [N, .., E] lie within half a turn's angle of where agents look, facing [2, N, E]; the edge, on
        which exact diagonals lie, counts."""
        least = math.cos(math.pi / self.turns) - 1e-6
        return dx * facing[0][:, None] + dy * facing[1][:, None] >= least * distance

    def observations(self, s: Battle, army: Army, ranges: Ranges, mask: Tensor) -> Tensor:
        """Observations [E, N, O]; mask [N, A, E] the legal actions. A dead agent sees zeros."""
        agents, enemies, battle = self.agents, self.enemies, self.battle
        alive = s.health > 0
        dx, dy = s.x[None] - s.x[:agents, None], s.y[None] - s.y[:agents, None]
        distance = (dx * dx).add_(dy * dy).sqrt_()
        sight = ranges.sight[:, None]
        near = distance < sight
        if ranges.facing is not None:
            near &= self._in_cone(dx, dy, distance, ranges.facing)
        seen = (near & alive[None]).logical_and_(alive[:agents, None]).to(s.x.dtype)
        share = seen / sight
        health = s.health / army.max_health
        shields = self._shields(s, army)
        out = s.x.new_empty(agents, self.size, s.x.shape[1])
        torch.mul(mask[:, 2:NUM_BASIC_ACTIONS], alive[:agents, None], out=out[:, :4])

        columns = [distance, dx, dy, health[None], shields[None]]
        block = out[:, 4 : 4 + enemies * self.enemy_width].unflatten(1, (enemies, self.enemy_width))
        torch.mul(mask[:, self.first_target :], seen[:, agents:], out=block[:, :, 0])
        for column, value in enumerate(columns[: 4 + battle.enemy_shield], 1):
            scale = share if column <= 3 else seen
            torch.mul(value[:, agents:], scale[:, agents:], out=block[:, :, column])
        if battle.enemy_bits:
            kinds = self._bits(army, agents, agents + enemies, s.x)[None]
            torch.mul(kinds, seen[:, agents:, None], out=block[:, :, 5 + battle.enemy_shield :])

        start = 4 + enemies * self.enemy_width
        bits = self._bits(army, 0, agents, s.x) if battle.ally_bits else None
        if agents > 1:
            pairs = s.x.new_empty(agents, agents, self.ally_width, s.x.shape[1])
            pairs[:, :, 0] = seen[:, :agents]
            for column, value in enumerate(columns[: 4 + battle.ally_shield], 1):
                scale = share if column <= 3 else seen
                torch.mul(value[:, :agents], scale[:, :agents], out=pairs[:, :, column])
            if bits is not None:
                torch.mul(bits[None], seen[:, :agents, None], out=pairs[:, :, 5 + battle.ally_shield :])
            # rows without their diagonal: the agents in their order, the observer left out
            others = pairs.flatten(0, 1)[1:].unflatten(0, (agents - 1, agents + 1))[:, :-1]
            others = others.reshape(agents, agents - 1, self.ally_width, s.x.shape[1])
            out[:, start : self.size - self.own_width] = others.flatten(1, 2)

        own = [health[:agents, None]]
        if battle.ally_shield:
            own.append(shields[:agents, None])
        if self.own_position:
            own += [(s.x[:agents] / MAP_SIZE)[:, None], (s.y[:agents] / MAP_SIZE)[:, None]]
        if ranges.facing is not None:
            own.append(ranges.facing.transpose(0, 1))
        if bits is not None:
            own.append(bits)
        torch.mul(torch.cat(own, dim=1), alive[:agents, None], out=out[:, self.size - self.own_width :])
        return out.permute(2, 0, 1) + 0.0  # no negative zeros

    def _shields(self, s: Battle, army: Army) -> Tensor:
        """Shields as shares of the full ones [U, E]."""
        return s.shield / army.max_shield.clamp_min(1.0)

    def _bits(self, army: Army, first: int, last: int, like: Tensor) -> Tensor:
        """One-hot unit types [last - first, bits, E]."""
        bits = self.ally_bits if last <= self.agents else self.enemy_bits
        kinds = army.kinds[first:last].expand(-1, like.shape[1])
        return bits[kinds].transpose(1, 2)

    def state(self, s: Battle, army: Army, last_actions: Tensor | None, facing: Tensor | None = None) -> Tensor:
        """Global state [E, S]; last_actions [N, E], None before the first step; facing as in `Ranges`. The dead are
        zero rows."""
        agents, battle = self.agents, self.battle
        alive = (s.health > 0).to(s.x.dtype)
        health = s.health / army.max_health
        x, y = (s.x - CENTRE) / SPAN, (s.y - CENTRE) / SPAN
        ready = s.cooldown[:agents].clamp_min(0.0) / self.max_cooldown[army.kinds[:agents]]
        ready = torch.where(army.heals[:agents], s.energy[:agents] / ENERGY_MAX, ready)
        ours = [health[:agents], ready, x[:agents], y[:agents]]
        theirs = [health[agents:], x[agents:], y[agents:]]
        if battle.ally_shield:
            ours.append(self._shields(s, army)[:agents])
        if battle.enemy_shield:
            theirs.append(self._shields(s, army)[agents:])
        if facing is not None:
            ours += [facing[0], facing[1]]
        ours_rows, theirs_rows = torch.stack(ours, dim=1), torch.stack(theirs, dim=1)  # [N, F, E]
        if battle.ally_bits:
            ours_rows = torch.cat([ours_rows, self._bits(army, 0, agents, s.x)], dim=1)
        if battle.enemy_bits:
            theirs_rows = torch.cat([theirs_rows, self._bits(army, agents, army.num_units, s.x)], dim=1)
        parts = [(ours_rows * alive[:agents, None]).flatten(0, 1), (theirs_rows * alive[agents:, None]).flatten(0, 1)]
        if last_actions is None:
            parts.append(s.x.new_zeros(agents * self.num_actions, s.x.shape[1]))
        else:
            parts.append(self.eye[last_actions].permute(0, 2, 1).flatten(0, 1))
        return torch.cat(parts).t().contiguous()


def damage_reward(health: Tensor, shield: Tensor, after: Battle, num_allies: int) -> Tensor:
    """|damage dealt + 10 per kill| [E], unscaled, win bonus apart; health and shield [U, E] before the step.

    The absolute value is SMAC's: enemies that regain shields or are healed pay the agents too.
    """
    return damage_dealt(health, shield, after, num_allies).abs()


def damage_dealt(health: Tensor, shield: Tensor, after: Battle, num_allies: int) -> Tensor:
    """Damage dealt + 10 per kill [E], less what enemies regained; health and shield [U, E] before the step."""
    lived, lives = health[num_allies:] > 0, after.health[num_allies:] > 0
    lost = (health - after.health + shield - after.shield)[num_allies:]
    lost = torch.where(lives, lost, health[num_allies:] + shield[num_allies:])
    gone = (lived & ~lives).to(lost.dtype)
    return (torch.where(lived, lost, 0.0) + KILL_REWARD * gone).sum(0)


def max_reward(battle: BattleMap, enemy_life: float) -> float:
    """The unscaled return of a clean win: what returns are divided by, times 1/20."""
    return KILL_REWARD * battle.num_enemies + WIN_REWARD + enemy_life
