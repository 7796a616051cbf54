"""Scripted teams for `smac/<map>`: reference points for what a map asks of its players. They see the whole battle.

- `nearest`: attack the nearest enemy that may be attacked, else step towards the nearest living one.
- `focus`: attack the one with least life (health and shield) of those that may be attacked, else as `nearest`.
- `kite`: as `focus`, but who cannot shoot in this step and outranges the nearest enemy steps away from it while it is
  about to be reached.
Medivacs heal the legal friend with the least share of its life and otherwise follow the nearest living team-mate.
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
"""How close to an enemy's reach a kiting unit lets it come, in cells: what a zealot walks in two steps is 2.25."""


class ScriptedTeam:
    """A `Policy` for one environment; `observations` are ignored, the environment's battle is read instead."""

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
        s, army, count = self.env.battle_state.battle, self.env.army, self.env.map.num_agents
        legal = action_mask.permute(1, 2, 0)  # [N, A, E]
        x, y, alive = s.x[:count], s.y[:count], s.health > 0
        dx, dy = s.x[count:][None] - x[:, None], s.y[count:][None] - y[:, None]
        distance = (dx**2 + dy**2).sqrt().masked_fill(~alive[count:][None], torch.inf)  # [N, M, E]
        gap, closest = distance.min(1)
        first = legal.shape[1] - self.env.map.num_enemies
        attacks = legal[:, first:]
        life = (s.health + s.shield)[count:][None].expand_as(distance)
        score = distance if self.script == "nearest" else life + 1e-3 * distance
        value, choice = score.masked_fill(~attacks, torch.inf).min(1)
        way_x, way_y = dx.gather(1, closest[:, None])[:, 0], dy.gather(1, closest[:, None])[:, 0]
        heals = army.heals[:count].expand_as(gap)
        if self.env.map.has_medivacs:
            share = (s.health / army.max_health)[:count]
            hurt = share[None].expand(count, -1, -1).masked_fill(~attacks[:, :count], torch.inf)
            best, friend = hurt.min(1)
            value, choice = torch.where(heals, best, value), torch.where(heals, friend, choice)
            fx, fy = x[None] - x[:, None], y[None] - y[:, None]
            others = alive[:count][None] & ~heals[None]
            near = (fx**2 + fy**2).masked_fill(~others, torch.inf).argmin(1)[:, None]
            way_x = torch.where(heals, fx.gather(1, near)[:, 0], way_x)
            way_y = torch.where(heals, fy.gather(1, near)[:, 0], way_y)
        walk = _towards(way_x, way_y, legal)
        actions = torch.where(value < torch.inf, choice + first, walk)
        if self.script == "kite":
            ours = army.reach[:count] + army.radius[:count]
            theirs = (army.reach + army.radius)[count:].expand(-1, s.x.shape[1])
            threat = theirs.gather(0, closest) + army.radius[:count]
            waits = (s.cooldown[:count] >= LOOPS_PER_STEP) & (ours > threat + 1.0) & ~heals
            waits &= gap <= threat + KITE_MARGIN
            actions = torch.where(waits, _towards(-way_x, -way_y, legal), actions)
        return torch.where(alive[:count], actions, 0).t().contiguous()


def _towards(way_x: Tensor, way_y: Tensor, legal: Tensor) -> Tensor:
    """The legal step [N, E] along the longer part of a way, else along the other one, else stop."""
    along_x = torch.where(way_x > 0, 4, 5)
    along_y = torch.where(way_y > 0, 2, 3)
    first = torch.where(way_x.abs() >= way_y.abs(), along_x, along_y)
    second = torch.where(way_x.abs() >= way_y.abs(), along_y, along_x)

    def allowed(action: Tensor) -> Tensor:
        return legal.gather(1, action[:, None])[:, 0]

    return torch.where(allowed(first), first, torch.where(allowed(second), second, 1))
