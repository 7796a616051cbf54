"""Scripted teams for `smac/<map>`: reference points for how hard a map is. They see the whole battle.

- `nearest`: attack the nearest enemy that may be attacked, else step towards the nearest living one.
- `focus`: attack the enemy with the least health and shield of those that may be attacked, else as `nearest`.
- `kite`: as `focus`, but a unit that cannot shoot in this step and outranges the nearest enemy steps away from it when
  that enemy is about to reach it.
Medivacs heal the legal teammate with the smallest fraction of its health, else follow the nearest living teammate.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from marl_flow.config import nearest as nearest_names
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.envs.smac.units import LOOPS_PER_STEP
from marl_flow.interfaces import UserError

Script = Literal["nearest", "focus", "kite"]
SCRIPTS: tuple[str, ...] = get_args(Script)
KITE_MARGIN = 2.0
"""Distance to an enemy's reach at which a kiting unit retreats, in cells; a zealot walks 2.25 in two steps."""


class ScriptedTeam:
    """A `Policy` for one environment: it ignores `observations` and reads the environment's battle."""

    network_passes = 0

    def __init__(self, env: SmacEnv, script: str) -> None:
        if script not in SCRIPTS:
            raise UserError(f"unknown script {script!r}; {nearest_names(script, SCRIPTS)}")
        self.env, self.script = env, script

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        pass

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        """Choices [E, N]."""
        assert action_mask is not None
        battle, army, count = self.env.battle_state.battle, self.env.army, self.env.map.num_agents
        legal = action_mask.permute(1, 2, 0)  # [N, A, E]
        x, y, alive = battle.x[:count], battle.y[:count], battle.health > 0
        dx, dy = battle.x[count:][None] - x[:, None], battle.y[count:][None] - y[:, None]
        distance = (dx**2 + dy**2).sqrt().masked_fill(~alive[count:][None], torch.inf)  # [N, M, E]
        gap, closest = distance.min(1)
        first = legal.shape[1] - self.env.map.num_enemies
        attacks = legal[:, first:]
        life = (battle.health + battle.shield)[count:][None].expand_as(distance)
        score = distance if self.script == "nearest" else life + 1e-3 * distance
        value, choice = score.masked_fill(~attacks, torch.inf).min(1)
        toward_x, toward_y = dx.gather(1, closest[:, None])[:, 0], dy.gather(1, closest[:, None])[:, 0]
        heals = army.heals[:count].expand_as(gap)
        if self.env.map.has_medivacs:
            fraction = (battle.health / army.max_health)[:count]
            hurt = fraction[None].expand(count, -1, -1).masked_fill(~attacks[:, :count], torch.inf)
            best, teammate = hurt.min(1)
            value, choice = torch.where(heals, best, value), torch.where(heals, teammate, choice)
            fx, fy = x[None] - x[:, None], y[None] - y[:, None]
            others = alive[:count][None] & ~heals[None]
            near = (fx**2 + fy**2).masked_fill(~others, torch.inf).argmin(1)[:, None]
            toward_x = torch.where(heals, fx.gather(1, near)[:, 0], toward_x)
            toward_y = torch.where(heals, fy.gather(1, near)[:, 0], toward_y)
        walk = _towards(toward_x, toward_y, legal)
        actions = torch.where(value < torch.inf, choice + first, walk)
        if self.script == "kite":
            own_reach = army.reach[:count] + army.radius[:count]
            enemy_reach = (army.reach + army.radius)[count:].expand(-1, battle.x.shape[1])
            threat = enemy_reach.gather(0, closest) + army.radius[:count]
            retreats = (battle.cooldown[:count] >= LOOPS_PER_STEP) & (own_reach > threat + 1.0) & ~heals
            retreats &= gap <= threat + KITE_MARGIN
            actions = torch.where(retreats, _towards(-toward_x, -toward_y, legal), actions)
        return torch.where(alive[:count], actions, 0).t().contiguous()


def _towards(toward_x: Tensor, toward_y: Tensor, legal: Tensor) -> Tensor:
    """The legal step [N, E] along the larger component of an offset, else along the other one, else stop."""
    along_x = torch.where(toward_x > 0, 4, 5)
    along_y = torch.where(toward_y > 0, 2, 3)
    first = torch.where(toward_x.abs() >= toward_y.abs(), along_x, along_y)
    second = torch.where(toward_x.abs() >= toward_y.abs(), along_y, along_x)

    def allowed(action: Tensor) -> Tensor:
        return legal.gather(1, action[:, None])[:, 0]

    return torch.where(allowed(first), first, torch.where(allowed(second), second, 1))
