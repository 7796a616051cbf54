"""`smac/<map>`: SMAC without StarCraft II, thousands of battles at once.

The interface is SMAC v1's, feature by feature (features.py); the battle is our own simulation with the game's
unit numbers (battle.py, which says what is modelled). Scores here are never those of the real game: that is
`smac-sc2/<map>` (starcraft.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from marl_flow import seeding
from marl_flow.envs.smac.battle import TYPES, Army, Battle, begin, build_army, bury, order_allies
from marl_flow.envs.smac.features import (
    RETURN_OF_A_CLEAN_WIN,
    SHOOT_RANGE,
    SIGHT_RANGE,
    WIN_REWARD,
    Features,
    Ranges,
    damage_reward,
    max_reward,
)
from marl_flow.envs.smac.maps import BattleMap, find_map, task_spec, walkable
from marl_flow.envs.smac.restore import battle_of, possible_state
from marl_flow.envs.smac.step import advance
from marl_flow.envs.smac.terrain import build_ground
from marl_flow.envs.smac.units import LOOPS_PER_STEP
from marl_flow.interfaces import Policy, TaskSpec, TimeStep, UserError

if TYPE_CHECKING:
    import numpy as np

BLOCK = 2048
"""Battles advanced together: what is worked on at once should fit into the processor's cache."""
ROUND = 64
"""Blocks are filled up to a multiple of this, so that every battle takes the same vector instructions whatever the
number of its neighbours, and gets the same bits."""


@dataclass(frozen=True, kw_only=True)
class BattleState:
    """Everything a battle continues from: the units, steps [E] made, last actions [N, E] (-1 before the first), and
    where agents look [N, E] where that matters (SMACv2's cones)."""

    battle: Battle
    steps: Tensor
    last_actions: Tensor
    facing: Tensor | None = None


class SmacEnv:
    """E battles of a map. Actions are integer choices [E, N]: no-op (the dead only), stop, north, south, east, west,
    attack enemy 0, 1, ... (medivacs: heal ally 0, 1, ...). An illegal one is refused.

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
        if num_envs < 1:
            raise UserError(f"{task_id}: expected at least one environment, got num_envs={num_envs}")
        self._map = self._find(task_id)
        self._num_envs = num_envs
        self._device = torch.empty(0, device=device).device
        self._spec = self._describe()
        self._ground = build_ground(self._map, self._device)
        grid = torch.from_numpy(walkable(self._map.terrain).copy()).to(self._device)
        self._features = self._build_features(grid)
        units = self._map.agents + self._map.opponents
        self._places = torch.tensor([place for _, place in units], device=self._device).t()[..., None]  # [2, U, 1]
        self._army = self._fixed_army()
        self._scale = self._reward_scale()
        self._seeds: Tensor | None = None

    # What SMACv2's generated battles do differently (smacv2.py)

    def _find(self, task_id: str) -> BattleMap:
        return find_map(task_id.removeprefix("smac/"))

    def _describe(self) -> TaskSpec:
        return task_spec(self._map, f"smac/{self._map.name}")

    def _build_features(self, grid: Tensor) -> Features:
        return Features(self._map, grid)

    def _fixed_army(self) -> Army:
        units = self._map.agents + self._map.opponents
        kinds = torch.tensor([[TYPES.index(unit.name)] for unit, _ in units], device=self._device)
        return build_army(kinds, self._map.num_agents, frozenset(unit.name for unit, _ in units))

    def _reward_scale(self) -> float | Tensor:
        life = sum(unit.health + unit.shield for unit, _ in self._map.opponents)
        return RETURN_OF_A_CLEAN_WIN / max_reward(self._map, life)

    def _ranges(self) -> Ranges:
        ones = torch.ones(self._map.num_agents, 1, device=self._device)
        return Ranges(sight=SIGHT_RANGE * ones, shoot=SHOOT_RANGE * ones)

    def _reward(self, health: Tensor, shield: Tensor, after: Battle) -> Tensor:
        """Pay [E] of a step before scaling, the win apart; health and shield [U, E] before it."""
        return damage_reward(health, shield, after, self._map.num_agents)

    def _spawn(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Places x, y [U, E] at the start."""
        x, y = self._places.expand(-1, -1, len(seeds)).clone()
        return x, y

    # The contract

    @property
    def spec(self) -> TaskSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def map(self) -> BattleMap:
        return self._map

    @property
    def army(self) -> Army:
        """Who fights, [U, E] or [U, 1] tables, allies first."""
        return self._army

    @property
    def battle_state(self) -> BattleState:
        """A copy of the state, which `set_state` takes back."""
        steps = self._started()
        return BattleState(
            battle=self._battle.columns(self._everybody()),
            steps=steps.clone(),
            last_actions=self._last_actions.clone(),
        )

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        """First step of E new battles. What differs between seeds: how far the enemy has walked before the first
        observation (one or two loops), where it is ordered (2m_vs_1z), then every cooldown and the order of shots."""
        seeds = [int(seed) for seed in seeds]
        task = self.spec.task_id
        if len(seeds) != self._num_envs:
            raise UserError(f"{task}: expected {self._num_envs} seeds, got {len(seeds)}")
        if min(seeds) < 0 or max(seeds) >= 2**63:
            raise UserError(f"{task}: seeds must be in [0, 2**63), got {min(seeds)} to {max(seeds)}")
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device=self._device)
        x, y = self._spawn(self._seeds)
        draws = seeding.row_uniform(self._seeds, 0, 2, device=self._device).to(torch.float32).t()
        goal_x, goal_y = self._goals(x, y, draws[0])
        self._walk_on(x, y, goal_x, goal_y, 1.0 + (draws[1] < 0.5))
        battle = begin(self._army, x, y, goal_x, goal_y)
        steps = torch.zeros(self._num_envs, dtype=torch.int64, device=self._device)
        return self._begin(battle, steps, torch.full_like(battle.target[: self._map.num_agents], -1))

    def set_state(self, state: BattleState) -> TimeStep:
        """Continues from a state as after a reset: no rewards yet; decided battles are finished.

        The draws to come are those of the last `reset`'s seeds, of zeros before the first."""
        shape = (self._army.num_units, self._num_envs)
        for field in dataclasses.fields(state.battle):
            value = getattr(state.battle, field.name)
            numbers = value.dtype in (torch.float32, torch.int64)
            if tuple(value.shape) != shape or not numbers or not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"{self.spec.task_id}: expected finite battle.{field.name}, float32 or int64, of shape {shape}, "
                    f"got {value.dtype} of shape {tuple(value.shape)}"
                )
        units, agents = shape[0], (self._map.num_agents, shape[1])
        whole = {
            "steps": (state.steps, shape[1:], None, None),
            "last_actions": (state.last_actions, agents, -1, self.spec.action.size - 1),
            "battle.target": (state.battle.target, shape, -1, units - 1),
            "battle.flight_target": (state.battle.flight_target, shape, -1, units - 1),
            "battle.attacker": (state.battle.attacker, shape, -1, units - 1),
        }
        for name, (value, expected, low, high) in whole.items():
            bounds = "" if low is None else f" from {low} to {high}"
            if tuple(value.shape) != expected or value.dtype != torch.int64:
                raise UserError(
                    f"{self.spec.task_id}: expected state.{name} as int64 of shape {expected}{bounds}, "
                    f"got {value.dtype} of shape {tuple(value.shape)}"
                )
            if low is not None and high is not None and not bool(((value >= low) & (value <= high)).all()):
                raise UserError(
                    f"{self.spec.task_id}: expected state.{name}{bounds}, got {int(value.min())} to {int(value.max())}"
                )
        begun = state.last_actions >= 0
        if not bool((begun.all(0) | ~begun.any(0)).all()):
            raise UserError(f"{self.spec.task_id}: expected state.last_actions of a row to be all -1 or none")
        if self._seeds is None:
            self._seeds = torch.zeros(self._num_envs, dtype=torch.int64, device=self._device)
        battle = state.battle.columns(self._everybody().to(state.battle.x.device))
        for field in dataclasses.fields(battle):
            setattr(battle, field.name, getattr(battle, field.name).to(self._device))
        bury(battle)
        return self._begin(
            battle, state.steps.to(self._device, copy=True), state.last_actions.to(self._device, copy=True)
        )

    def expected_transition(self, state: Tensor, actions: Tensor, next_state: Tensor) -> tuple[TimeStep, TimeStep]:
        """What must have been seen before and after a step from state [E, S] to next_state [E, S] under actions [E, N].

        The second moment's `state` is the possible one nearest to next_state; its rewards are those of the step.
        """
        features, army, size = self._features, self._army, state.shape[1]
        if state.shape != next_state.shape or size != self.spec.state_size:
            raise UserError(
                f"{self.spec.task_id}: expected states [E, {self.spec.state_size}], got {list(state.shape)}"
            )
        before, after = (battle_of(features, army, moment) for moment in (state, next_state))
        won, _, over = self._outcome(after)
        paid = self._reward(before.health, before.shield, after) + WIN_REWARD * won
        steps = []
        for battle, moment in ((before, state), (after, possible_state(features, army, state, actions, next_state))):
            ranges = self._ranges()
            mask = features.legal(battle, army, ranges)
            rewards = (paid * self._scale)[:, None].expand(-1, self._map.num_agents)
            steps.append(
                TimeStep(
                    observations=features.observations(battle, army, ranges, mask),
                    rewards=rewards if battle is after else torch.zeros_like(rewards),
                    terminated=over if battle is after else torch.zeros_like(over),
                    truncated=torch.zeros_like(over),
                    action_mask=mask.permute(2, 0, 1),
                    state=moment,
                    won=won,
                )
            )
        return steps[0], steps[1]

    @torch.no_grad()
    def step(self, actions: Tensor) -> TimeStep:
        """Eight game loops under actions [E, N]; finished rows stay as they are and are paid nothing."""
        steps = self._started()
        chosen = self._checked(actions).t().contiguous()
        going = (~self._finished).nonzero()[:, 0]
        paid = torch.zeros(self._num_envs, device=self._device)
        self._tick += 1
        for part in going.split(BLOCK) if len(going) else ():
            padded = torch.cat([part, part[-1:].expand(-len(part) % ROUND)])
            battle, army = self._battle.columns(padded), self._army.columns(padded)
            health, shield = battle.health.clone(), battle.shield.clone()
            self._order(battle, army, chosen[:, padded])
            advance(battle, army, self._ground, self._draws(padded))
            self._battle.put(part, battle)
            paid[part] = self._reward(health, shield, battle)[: len(part)]
        self._steps = steps + ~self._finished
        self._last_actions = torch.where(self._finished, self._last_actions, chosen)
        return self._time_step(paid)

    # Inside

    def _started(self) -> Tensor:
        if self._seeds is None:
            raise UserError(f"{self.spec.task_id}: no episode has begun; call reset(seeds) first")
        return self._steps

    def _everybody(self) -> Tensor:
        return torch.arange(self._num_envs, device=self._device)

    def _goals(self, x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Where everybody walks: allies nowhere, enemies to where they are ordered; share [E] places it between two
        points."""
        goal_x, goal_y = x.clone(), y.clone()
        enemies, order = slice(self._map.num_agents, None), self._map.order
        if order:
            goal_x[enemies] = order[0][0] + share * (order[-1][0] - order[0][0])
            goal_y[enemies] = order[0][1] + share * (order[-1][1] - order[0][1])
        return goal_x, goal_y

    def _walk_on(self, x: Tensor, y: Tensor, goal_x: Tensor, goal_y: Tensor, loops: Tensor) -> None:
        """Everybody that many loops [E] along the straight line to its goal, in place."""
        way_x, way_y = goal_x - x, goal_y - y
        share = self._army.speed * loops / (way_x**2 + way_y**2).sqrt().clamp_min(1e-6)
        x += way_x * share.clamp_max(1.0)
        y += way_y * share.clamp_max(1.0)

    def _order(self, battle: Battle, army: Army, actions: Tensor) -> None:
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
        self._tick = 0
        rows = torch.zeros(self._num_envs, device=self._device)
        self._finished = rows.bool()
        self._terminated, self._truncated, self._won = rows.bool(), rows.bool(), rows.bool()
        self._returns = rows
        return self._time_step(rows)

    def _time_step(self, paid: Tensor) -> TimeStep:
        """Ends battles that are decided or out of time, and describes them all; paid [E] unscaled."""
        won, _, over = self._outcome(self._battle)
        going = ~self._finished
        self._won = torch.where(going, won, self._won)
        self._terminated = torch.where(going, over, self._terminated)
        self._truncated = torch.where(going, ~over & (self._steps >= self.spec.max_steps), self._truncated)
        bonus = WIN_REWARD * (won & going & (self._tick > 0))
        reward = torch.where(going, (paid + bonus) * self._scale, 0.0)
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
        """Won, lost, decided [E] bool. On maps with medivacs SMAC counts a side of medivacs alone as beaten, ours
        first; both sides dead is neither won nor lost elsewhere."""
        agents = self._map.num_agents
        alive = battle.alive
        ours, theirs = alive[:agents].any(0), alive[agents:].any(0)
        lost, won = ~ours & theirs, ours & ~theirs
        if self._map.has_medivacs:
            healers = self._army.heals.expand(alive.shape)
            lost = ~(alive & ~healers)[:agents].any(0)
            remaining = alive[agents:].sum(0)
            won = ~lost & ((remaining == 0) | ((remaining == 1) & (alive & healers)[agents:].any(0)))
        return won, lost, won | lost | (~ours & ~theirs)

    def _checked(self, actions: Tensor) -> Tensor:
        task, shape = self.spec.task_id, (self._num_envs, self._map.num_agents)
        if tuple(actions.shape) != shape or actions.is_floating_point() or actions.dtype == torch.bool:
            raise UserError(
                f"{task}: expected actions as integers of shape {shape}, "
                f"got {actions.dtype} of shape {tuple(actions.shape)}"
            )
        if actions.device != self._device:
            raise UserError(f"{task}: expected actions on {self._device}, got them on {actions.device}")
        actions = actions.long()
        size = self.spec.action.size
        inside = (actions >= 0) & (actions < size)
        legal = inside & self._mask.gather(2, actions.clamp(0, size - 1)[..., None])[..., 0]
        if not bool(legal.all()):
            row, agent = (~legal).nonzero()[0].tolist()
            allowed = self._mask[row, agent].nonzero()[:, 0].tolist()
            raise UserError(
                f"{task}: expected legal actions, got {int(actions[row, agent])} for agent {agent} of row {row}, who "
                f"may choose {allowed}; choose where action_mask is true"
            )
        return actions

    def render(self, row: int = 0, size: int = 400) -> np.ndarray:
        """RGB picture uint8 [size, size, 3] of one battle."""
        from marl_flow.envs.smac.render import draw_battle

        self._started()
        if not 0 <= row < self._num_envs:
            raise UserError(f"{self.spec.task_id}: expected a row from 0 to {self._num_envs - 1}, got {row}")
        if size < 64:
            raise UserError(f"{self.spec.task_id}: expected a picture of at least 64 pixels, got {size}")
        column = torch.tensor([row], device=self._device)
        caption = f"{self.spec.task_id}   step {int(self._steps[row])}   return {float(self._returns[row]):.1f}"
        army = self._army.columns(column)
        return draw_battle(self._battle.columns(column), army, walkable(self._map.terrain), caption, size)


def make(
    task_id: str, num_envs: int, device: torch.device | str, dtype: torch.dtype | None, opponent: Policy | None
) -> SmacEnv:
    """The environment of a task; arguments as in `marl_flow.envs.make`. Single precision only."""
    if opponent is not None:
        raise UserError(f"{task_id}: the enemy is the map's own; leave `opponent` out")
    if dtype not in (None, torch.float32):
        raise UserError(f"{task_id}: expected dtype float32, got {dtype}")
    return SmacEnv(task_id, num_envs, device=device)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task, without building it."""
    return task_spec(find_map(task_id.removeprefix("smac/")), task_id)
