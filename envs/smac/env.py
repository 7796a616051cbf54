"""`smac/<map>`: SMAC without StarCraft II, thousands of battles at once.

The interface is SMAC v1's, feature by feature (features.py); the battle is our own simulation with the game's
unit numbers (battle.py says what is approximated). Scores here are never those of the real game, which is
`smac-sc2/<map>` (starcraft2.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from marl_flow import seeding, tasks
from marl_flow.envs.base import BaseEnv, check_dtype, refuse_opponent
from marl_flow.envs.smac.battle import TYPES, Army, Battle, begin, build_army, move_dead_off_map, order_allies
from marl_flow.envs.smac.features import (
    CLEAN_WIN_RETURN,
    SHOOT_RANGE,
    SIGHT_RANGE,
    WIN_REWARD,
    Features,
    Ranges,
    damage_reward,
    max_reward,
)
from marl_flow.envs.smac.maps import BattleMap, find_map, walkable
from marl_flow.envs.smac.restore import battle_from_state, nearest_possible_state
from marl_flow.envs.smac.step import advance
from marl_flow.envs.smac.terrain import build_ground
from marl_flow.envs.smac.units import LOOPS_PER_STEP
from marl_flow.interfaces import Policy, TaskSpec, TimeStep

if TYPE_CHECKING:
    import numpy as np

BLOCK_SIZE = 2048
"""Battles advanced together: a block should fit into the processor's cache."""
BLOCK_MULTIPLE = 64
"""Blocks are padded to a multiple of this, so that every battle is computed by the same vector instructions, and so
to the same bits, however many others there are."""


@dataclass(frozen=True, kw_only=True)
class BattleState:
    """Everything a battle continues from: the units, steps [E] made, last actions [N, E] (-1 before the first), and
    the directions in which agents look [N, E] if they see only a cone (SMACv2)."""

    battle: Battle
    steps: Tensor
    last_actions: Tensor
    facing: Tensor | None = None


class SmacEnv(BaseEnv):
    """E battles of a map. Actions are integer choices [E, N]: no-op (dead agents only), stop, north, south, east, west,
    attack enemy 0, 1, ... (medivacs: heal ally 0, 1, ...). Illegal actions are refused.

    Rewards are the team's, scaled so that a clean win returns 20, the same for every agent. `terminated` is a decided
    battle, a mutual kill included (`won` false); `truncated` is the step limit.
    """

    _battle: Battle
    _steps: Tensor
    _tick: int  # steps since the episodes began, which numbers their draws
    _last_actions: Tensor
    _finished: Tensor
    _terminated: Tensor
    _truncated: Tensor
    _won: Tensor
    _returns: Tensor
    _mask: Tensor

    def __init__(self, task_id: str, num_envs: int, *, device: torch.device | str = "cpu") -> None:
        self._map = self._find_map(task_id)
        super().__init__(self._build_spec(), num_envs, device=device)
        self._ground = build_ground(self._map, self._device)
        grid = torch.from_numpy(walkable(self._map.terrain).copy()).to(self._device)
        self._features = self._build_features(grid)
        points = [position for _, position in self._map.agents + self._map.opponents]
        self._start_positions = torch.tensor(points, device=self._device).t()[..., None]  # [2, U, 1]
        self._army = self._fixed_army()
        self._scale = self._reward_scale()
        self._seeds: Tensor | None = None

    # What `SmacV2Env` overrides

    def _find_map(self, task_id: str) -> BattleMap:
        return find_map(task_id.removeprefix("smac/"))

    def _build_spec(self) -> TaskSpec:
        return spec(f"smac/{self._map.name}")

    def _build_features(self, grid: Tensor) -> Features:
        return Features(self._map, grid)

    def _fixed_army(self) -> Army:
        units = self._map.agents + self._map.opponents
        types = torch.tensor([[TYPES.index(unit.name)] for unit, _ in units], device=self._device)
        return build_army(types, self._map.num_agents, frozenset(unit.name for unit, _ in units))

    def _reward_scale(self) -> float | Tensor:
        health = sum(unit.health + unit.shield for unit, _ in self._map.opponents)
        return CLEAN_WIN_RETURN / max_reward(self._map, health)

    def _ranges(self) -> Ranges:
        ones = torch.ones(self._map.num_agents, 1, device=self._device)
        return Ranges(sight=SIGHT_RANGE * ones, shoot=SHOOT_RANGE * ones)

    def _reward(self, health: Tensor, shield: Tensor, after: Battle) -> Tensor:
        """Reward [E] of a step before scaling and without the win bonus; health and shield [U, E] before it."""
        return damage_reward(health, shield, after, self._map.num_agents)

    def _spawn(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Positions x, y [U, E] at the start."""
        x, y = self._start_positions.expand(-1, -1, len(seeds)).clone()
        return x, y

    # The contract

    @property
    def map(self) -> BattleMap:
        return self._map

    @property
    def army(self) -> Army:
        """The units that fight, [U, E] or [U, 1] tables, allies first."""
        return self._army

    @property
    def battle_state(self) -> BattleState:
        """A copy of the state, which `set_state` continues from."""
        self._require_started()
        return BattleState(
            battle=self._battle.columns(self._all_rows()),
            steps=self._steps.clone(),
            last_actions=self._last_actions.clone(),
        )

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        """First step of E new battles. The seed decides how far the enemy has walked before the first observation (one
        or two loops), where it is ordered (2m_vs_1z), and then every cooldown and the order of shots."""
        self._seeds = torch.tensor(self._check_seeds(seeds), dtype=torch.int64, device=self._device)
        x, y = self._spawn(self._seeds)
        draws = seeding.row_uniform(self._seeds, 0, 2, device=self._device).to(torch.float32).t()
        goal_x, goal_y = self._goals(x, y, draws[0])
        self._walk_straight(x, y, goal_x, goal_y, 1.0 + (draws[1] < 0.5))
        battle = begin(self._army, x, y, goal_x, goal_y)
        steps = torch.zeros(self._num_envs, dtype=torch.int64, device=self._device)
        return self._begin(battle, steps, torch.full_like(battle.target[: self._map.num_agents], -1))

    def set_state(self, state: BattleState) -> TimeStep:
        """Continues from a state as after a reset: no rewards yet; decided battles are finished.

        The random numbers of the next steps are those of the last `reset`'s seeds, or of seeds 0 before the first."""
        shape = (self._army.num_units, self._num_envs)
        for field in dataclasses.fields(state.battle):
            value = getattr(state.battle, field.name)
            fits = value.dtype in (torch.float32, torch.int64) and tuple(value.shape) == shape
            if not fits or not bool(torch.isfinite(value).all()):
                raise self._error(
                    f"expected finite battle.{field.name}, float32 or int64, of shape {shape}, "
                    f"got {value.dtype} of shape {tuple(value.shape)}"
                )
        units, agents = shape[0], (self._map.num_agents, shape[1])
        indices = {
            "steps": (state.steps, shape[1:], None, None),
            "last_actions": (state.last_actions, agents, -1, self.spec.action.size - 1),
            "battle.target": (state.battle.target, shape, -1, units - 1),
            "battle.flight_target": (state.battle.flight_target, shape, -1, units - 1),
            "battle.attacker": (state.battle.attacker, shape, -1, units - 1),
        }
        for name, (value, expected, low, high) in indices.items():
            bounds = "" if low is None else f" from {low} to {high}"
            if tuple(value.shape) != expected or value.dtype != torch.int64:
                raise self._error(
                    f"expected state.{name} as int64 of shape {expected}{bounds}, "
                    f"got {value.dtype} of shape {tuple(value.shape)}"
                )
            if low is not None and high is not None and not bool(((value >= low) & (value <= high)).all()):
                raise self._error(f"expected state.{name}{bounds}, got {int(value.min())} to {int(value.max())}")
        has_acted = state.last_actions >= 0
        if not bool((has_acted.all(0) | ~has_acted.any(0)).all()):
            raise self._error("expected state.last_actions of a row to be all -1 or none")
        if self._seeds is None:
            self._seeds = torch.zeros(self._num_envs, dtype=torch.int64, device=self._device)
        battle = state.battle.columns(self._all_rows().to(state.battle.x.device))
        for field in dataclasses.fields(battle):
            setattr(battle, field.name, getattr(battle, field.name).to(self._device))
        move_dead_off_map(battle)
        return self._begin(
            battle, state.steps.to(self._device, copy=True), state.last_actions.to(self._device, copy=True)
        )

    def expected_transition(self, state: Tensor, actions: Tensor, next_state: Tensor) -> tuple[TimeStep, TimeStep]:
        """The time steps before and after a step from state [E, S] to next_state [E, S] under actions [E, N].

        The second one's `state` is the possible state nearest to next_state; its rewards are those of the step.
        """
        features, army, size = self._features, self._army, state.shape[1]
        if state.shape != next_state.shape or size != self.spec.state_size:
            raise self._error(f"expected states [E, {self.spec.state_size}], got {list(state.shape)}")
        before, after = (battle_from_state(features, army, given) for given in (state, next_state))
        won, _, decided = self._outcome(after)
        reward = self._reward(before.health, before.shield, after) + WIN_REWARD * won
        possible = nearest_possible_state(features, army, state, actions, next_state)
        steps = []
        for battle, battle_state in ((before, state), (after, possible)):
            ranges = self._ranges()
            mask = features.legal(battle, army, ranges)
            rewards = (reward * self._scale)[:, None].expand(-1, self._map.num_agents)
            steps.append(
                TimeStep(
                    observations=features.observations(battle, army, ranges, mask),
                    rewards=rewards if battle is after else torch.zeros_like(rewards),
                    terminated=decided if battle is after else torch.zeros_like(decided),
                    truncated=torch.zeros_like(decided),
                    action_mask=mask.permute(2, 0, 1),
                    state=battle_state,
                    won=won,
                )
            )
        return steps[0], steps[1]

    @torch.no_grad()
    def step(self, actions: Tensor) -> TimeStep:
        """Eight game loops under actions [E, N]; finished rows stay as they are and receive zero reward."""
        self._require_started()
        chosen = self._check_discrete(actions, self._mask).t().contiguous()
        running = (~self._finished).nonzero()[:, 0]
        reward = torch.zeros(self._num_envs, device=self._device)
        self._tick += 1
        for rows in running.split(BLOCK_SIZE) if len(running) else ():
            padded = torch.cat([rows, rows[-1:].expand(-len(rows) % BLOCK_MULTIPLE)])
            battle, army = self._battle.columns(padded), self._army.columns(padded)
            health, shield = battle.health.clone(), battle.shield.clone()
            self._give_orders(battle, army, chosen[:, padded])
            advance(battle, army, self._ground, self._draws(padded))
            self._battle.put(rows, battle)
            reward[rows] = self._reward(health, shield, battle)[: len(rows)]
        self._steps = self._steps + ~self._finished
        self._last_actions = torch.where(self._finished, self._last_actions, chosen)
        return self._time_step(reward)

    # Internals

    def _all_rows(self) -> Tensor:
        return torch.arange(self._num_envs, device=self._device)

    def _goals(self, x: Tensor, y: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
        """Where units walk: allies nowhere, enemies to where they are ordered; between two points of an order, fraction
        [E] of the way."""
        goal_x, goal_y = x.clone(), y.clone()
        enemies, order = slice(self._map.num_agents, None), self._map.order
        if order:
            goal_x[enemies] = order[0][0] + fraction * (order[-1][0] - order[0][0])
            goal_y[enemies] = order[0][1] + fraction * (order[-1][1] - order[0][1])
        return goal_x, goal_y

    def _walk_straight(self, x: Tensor, y: Tensor, goal_x: Tensor, goal_y: Tensor, loops: Tensor) -> None:
        """Moves units for that many loops [E] along the straight line to their goal, in place."""
        offset_x, offset_y = goal_x - x, goal_y - y
        fraction = self._army.speed * loops / (offset_x**2 + offset_y**2).sqrt().clamp_min(1e-6)
        x += offset_x * fraction.clamp_max(1.0)
        y += offset_y * fraction.clamp_max(1.0)

    def _give_orders(self, battle: Battle, army: Army, actions: Tensor) -> None:
        """Actions [N, E] become orders, in place."""
        order_allies(battle, army, actions, self._map.has_medivacs)

    def _draws(self, rows: Tensor) -> Tensor:
        """This step's uniform numbers [1 + loops, U, E] for the battles `rows` [E]."""
        assert self._seeds is not None
        units = self._army.num_units
        draws = seeding.row_uniform(self._seeds[rows], self._tick, (1 + LOOPS_PER_STEP) * units, device=self._device)
        return draws.t().to(torch.float32, memory_format=torch.contiguous_format).view(1 + LOOPS_PER_STEP, units, -1)

    def _begin(self, battle: Battle, steps: Tensor, last_actions: Tensor) -> TimeStep:
        self._battle, self._steps, self._last_actions = battle, steps, last_actions
        self._tick, self._has_begun = 0, True
        zeros = torch.zeros(self._num_envs, device=self._device)
        self._finished = zeros.bool()
        self._terminated, self._truncated, self._won = zeros.bool(), zeros.bool(), zeros.bool()
        self._returns = zeros
        return self._time_step(zeros)

    def _time_step(self, reward: Tensor) -> TimeStep:
        """Ends battles that are decided or at the step limit; reward [E] unscaled, without the win bonus."""
        won, _, decided = self._outcome(self._battle)
        running = ~self._finished
        self._won = torch.where(running, won, self._won)
        self._terminated = torch.where(running, decided, self._terminated)
        self._truncated = torch.where(running, ~decided & (self._steps >= self.spec.max_steps), self._truncated)
        bonus = WIN_REWARD * (won & running & (self._tick > 0))
        reward = torch.where(running, (reward + bonus) * self._scale, 0.0)
        self._returns = self._returns + reward
        self._finished = self._terminated | self._truncated
        ranges = self._ranges()
        mask = self._features.legal(self._battle, self._army, ranges)
        first = self._last_actions < 0
        last = self._last_actions.clamp_min(0)
        state = self._features.state(self._battle, self._army, last, ranges.facing)
        if bool(first.any()):
            count = self._map.num_agents * self._features.num_actions
            state[first[0], state.shape[1] - count :] = 0.0
        self._mask = mask.permute(2, 0, 1).contiguous()
        return TimeStep(
            observations=self._features.observations(self._battle, self._army, ranges, mask),
            rewards=reward[:, None].expand(-1, self._map.num_agents).contiguous(),
            terminated=self._terminated.clone(),
            truncated=self._truncated.clone(),
            action_mask=self._mask.clone(),
            state=state,
            won=self._won.clone(),
        )

    def _outcome(self, battle: Battle) -> tuple[Tensor, Tensor, Tensor]:
        """Won, lost, decided [E] bool. On maps with medivacs SMAC counts a side of medivacs alone as beaten, the allies
        first; on other maps it is neither won nor lost if both sides are dead."""
        agents = self._map.num_agents
        alive = battle.alive
        allies, enemies = alive[:agents].any(0), alive[agents:].any(0)
        lost, won = ~allies & enemies, allies & ~enemies
        if self._map.has_medivacs:
            healers = self._army.heals.expand(alive.shape)
            lost = ~(alive & ~healers)[:agents].any(0)
            remaining = alive[agents:].sum(0)
            won = ~lost & ((remaining == 0) | ((remaining == 1) & (alive & healers)[agents:].any(0)))
        return won, lost, won | lost | (~allies & ~enemies)

    def render(self, row: int = 0, size: int = 400) -> np.ndarray:
        """RGB picture uint8 [size, size, 3] of one battle."""
        from marl_flow.envs.smac.render import draw_battle

        self._check_picture(row, size)
        column = torch.tensor([row], device=self._device)
        caption = f"{self.spec.task_id}   step {int(self._steps[row])}   return {float(self._returns[row]):.1f}"
        army = self._army.columns(column)
        return draw_battle(self._battle.columns(column), army, walkable(self._map.terrain), caption, size)


def make(
    task_id: str, num_envs: int, device: torch.device | str, dtype: torch.dtype | None, opponent: Policy | None
) -> SmacEnv:
    """The environment of a task; arguments as in `marl_flow.envs.make`. Single precision only."""
    refuse_opponent(task_id, opponent)
    check_dtype(task_id, dtype or torch.float32, (torch.float32,))
    return SmacEnv(task_id, num_envs, device=device)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task, without building it."""
    return tasks.find_card(task_id).spec
