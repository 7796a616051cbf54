"""`smacv2/<race>_<n>_vs_<m>`: SMACv2 without StarCraft II, thousands of battles at once.

Teams and starting positions are drawn for every episode (v2_teams.py), on an open map. Observations, states,
legal actions and endings are SMACv2's with its published settings (`use_unit_ranges`, `min_attack_range=2`,
`obs_own_pos`); the battle is our own simulation (battle.py). Scores here are never those of the real game: that
is `smacv2-sc2/<race>_<n>_vs_<m>` (starcraft2.py).

Source: `oxwhirl/smacv2: smacv2/env/starcraft2/starcraft2.py`, 577ab5a. Stated deviations:
- Reward scale: the package divides every return by that of a clean win over the first enemy team of its process, so
  that later wins return more or less than 20 by chance. Here each episode has the scale of its own enemy team.
- The package's observations miss enemies 0..k-1 as long as no agent has seen enemy k, and depend on the random order in
  which it reads its agents. Both are defects of its bookkeeping for an option that is off (`prob_obs_enemy` below 1);
  here all agents observe what is alive and in sight.
- Cone of view (`conic_fov`): the package compares arc tangents, which do not distinguish left from right, so that an
  agent that looks along the x axis also sees behind itself. Here it sees only the cone.
- Units with starting positions outside the playable square begin at its edge, on the free point nearest to it; what the
  game does with them is not known.
- The map sends idle enemies to the nearest ally every half game second: here all enemies without a target walk to where
  the nearest ally that they can hit was at the beginning of the step, and attack whom they meet.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from marl_flow import tasks
from marl_flow.config import nearest
from marl_flow.envs.base import check_dtype, refuse_opponent
from marl_flow.envs.smac.battle import TYPES, Army, Battle, build_army, hits, order_allies
from marl_flow.envs.smac.env import BattleState, SmacEnv
from marl_flow.envs.smac.features import CLEAN_WIN_RETURN, Features, Ranges, damage_dealt, max_reward
from marl_flow.envs.smac.maps import BattleMap, Group
from marl_flow.envs.smac.units import HEAL_RANGE, UNITS
from marl_flow.envs.smac.v2_teams import UNIT_TYPES, agent_order, draw_positions, draw_teams, place_teams
from marl_flow.interfaces import ActionSpec, Policy, TaskSpec, TimeStep, UserError

MIN_SHOOT_RANGE = 2.0
"""Units with shorter weapons may still be ordered to attack from this distance, centre to centre."""
SHOOT_RANGES: Mapping[str, float] = MappingProxyType(
    {unit.name: unit.range or 0.0 for unit in UNITS.values()} | {"medivac": HEAL_RANGE, "colossus": 7.0}
)
"""The package's own table; its colossus is the multiplayer game's, which reaches one cell further than the map's."""
NUM_TURNS = 12
"""Directions to look in, anticlockwise from the east, each the middle of a cone of 30 degrees."""


@dataclass(frozen=True, kw_only=True)
class Scenario(BattleMap):
    """The sizes of both teams. Unit types and positions are drawn: the groups have one type and one point for all."""

    @property
    def has_medivacs(self) -> bool:
        """The rules for medivacs hold in every terran battle, even if none was drawn."""
        return self.battle.races[0] == "terran"


SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        name: Scenario(
            name=name,
            battle=battle,
            allies=(Group(unit=types[0], count=battle.num_agents, point=(9.0, 16.0)),),
            enemies=(Group(unit=types[0], count=battle.num_enemies, point=(23.0, 16.0)),),
            order=(),
            terrain="open",
            ally_bits=types,
            enemy_bits=types,
        )
        for name, battle in tasks.SMACV2_BATTLES.items()
        for types in (UNIT_TYPES[battle.races[0]],)
    }
)


def find_scenario(task_id: str) -> Scenario:
    name = task_id.removeprefix("smacv2/")
    if name not in SCENARIOS:
        raise UserError(f"unknown SMACv2 scenario {name!r}; {nearest(name, SCENARIOS)}")
    return SCENARIOS[name]


class SmacV2Env(SmacEnv):
    """E generated battles. Actions, legality and the contract as in `SmacEnv`; sight and attack ranges are the unit
    types', and an agent may only be ordered to attack units within its own range.

    Rewards are max(damage + 10 per kill + 200 for the win, 0), minus what enemies regained in the step, scaled so that
    a clean win over the episode's own enemy team returns 20. A side with only medivacs left loses, the allies first.

    conic_fov: agents see and attack only inside a cone that they turn by 12 additional actions (6 to 17, before the
    attacks), which keep their last order; all begin looking east. Off in the published scenarios: the sizes of
    observations and actions change, the task's name does not.
    """

    _map: Scenario
    _scale: Tensor

    expected_transition = None  # type: ignore[assignment]
    """Not a `TransitionChecker`: states do not contain the types of dead units, and so not the scale of the rewards."""

    def __init__(
        self, task_id: str, num_envs: int, *, device: torch.device | str = "cpu", conic_fov: bool = False
    ) -> None:
        self._turns = NUM_TURNS if conic_fov else 0
        super().__init__(task_id, num_envs, device=device)
        self._facing = torch.zeros(self._map.num_agents, num_envs, dtype=torch.int64, device=self._device)
        self._shoot_ranges = torch.tensor([max(MIN_SHOOT_RANGE, SHOOT_RANGES[name]) for name in TYPES], device=device)
        angles = [2.0 * math.pi * turn / NUM_TURNS for turn in range(NUM_TURNS)]
        self._directions = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], device=device).t()  # [2, 12]

    def _find_map(self, task_id: str) -> Scenario:
        return find_scenario(task_id)

    def _build_spec(self) -> TaskSpec:
        plain = spec(f"smacv2/{self._map.name}")
        if not self._turns:
            return plain
        agents, size = plain.num_agents, plain.action.size + self._turns
        assert plain.state_size is not None
        return dataclasses.replace(
            plain,
            observation_size=plain.observation_size + 2,
            state_size=plain.state_size + agents * (2 + self._turns),
            action=ActionSpec(kind="discrete", size=size),
        )

    def _build_features(self, grid: Tensor) -> Features:
        return Features(self._map, grid, own_position=True, turns=self._turns)

    def _spawn(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        agents, box = self._map.num_agents, self._ground.box
        assert box is not None
        race, enemies = self._map.battle.races[0], self._map.num_enemies
        types = draw_teams(seeds, race, agents, enemies)
        x, y = place_teams(types, *draw_positions(seeds, agents, enemies), agents, box)
        order = agent_order(types[:agents], x[:agents], y[:agents])
        types, x, y = (torch.cat([table[:agents].gather(0, order), table[agents:]]) for table in (types, x, y))
        self._army = build_army(types, agents, frozenset(UNIT_TYPES[race]))
        health = (self._army.max_health + self._army.max_shield)[agents:].sum(0)
        self._scale = CLEAN_WIN_RETURN / (max_reward(self._map, 0.0) + health)
        self._facing = torch.zeros_like(self._facing)
        return x.float(), y.float()

    def _ranges(self) -> Ranges:
        types = self._army.types[: self._map.num_agents]
        return Ranges(
            sight=self._army.sight[: self._map.num_agents],
            shoot=self._shoot_ranges[types],
            facing=self._directions[:, self._facing] if self._turns else None,
        )

    def _reward(self, health: Tensor, shield: Tensor, after: Battle) -> Tensor:
        return damage_dealt(health, shield, after, self._map.num_agents).clamp_min(0.0)

    def _give_orders(self, battle: Battle, army: Army, actions: Tensor) -> None:
        _send_enemies(battle, army)
        order_allies(battle, army, actions, self._map.has_medivacs, self._turns)

    def _outcome(self, battle: Battle) -> tuple[Tensor, Tensor, Tensor]:
        """Won, lost, decided [E] bool: a side with only medivacs left is beaten, the allies first."""
        won, lost, decided = super()._outcome(battle)
        if self._map.has_medivacs:
            fighters = (battle.alive & ~self._army.heals)[self._map.num_agents :]
            won = ~lost & ~fighters.any(0)
            decided = won | lost
        return won, lost, decided

    @property
    def army(self) -> Army:
        """The units that fight, drawn by the last `reset`, [U, E]."""
        self._require_started()
        return self._army

    @property
    def battle_state(self) -> BattleState:
        """A copy of the state, which `set_state` continues from until the next `reset` draws other teams."""
        return dataclasses.replace(super().battle_state, facing=self._facing.clone())

    def set_state(self, state: BattleState) -> TimeStep:
        """As `SmacEnv.set_state`, with the teams of the last `reset`; facing [N, E], 0 to 11: None means east."""
        self._require_started()
        former, facing = self._facing, torch.zeros_like(self._facing)
        if state.facing is not None:
            expected = tuple(facing.shape)
            facing = state.facing.to(self._device, copy=True)
            fits = tuple(facing.shape) == expected and not facing.is_floating_point()
            if not fits or bool(((facing < 0) | (facing >= NUM_TURNS)).any()):
                raise self._error(
                    f"expected state.facing as integers of shape {expected} from 0 to "
                    f"{NUM_TURNS - 1}, got {facing.dtype} of shape {tuple(facing.shape)}, "
                    f"{facing.flatten()[:8].tolist()}"
                )
        self._facing = facing
        try:
            return super().set_state(state)
        except UserError:
            self._facing = former
            raise

    def _time_step(self, reward: Tensor) -> TimeStep:
        turn = self._last_actions - (self._features.first_target - self._turns)
        self._facing = torch.where((turn >= 0) & (turn < self._turns), turn, self._facing)
        return super()._time_step(reward)


def _send_enemies(battle: Battle, army: Army) -> None:
    """Sets enemies' goals to the positions of the nearest living allies that they can hit (medivacs: of all)."""
    allies, types = army.num_allies, army.types
    squared = (battle.x[allies:, None] - battle.x[None, :allies]) ** 2 + (
        battle.y[allies:, None] - battle.y[None, :allies]
    ) ** 2
    candidates = hits(army, types[allies:, None], types[None, :allies]) | army.heals[allies:, None]
    distance, ally = squared.masked_fill_(~(candidates & battle.alive[None, :allies]), torch.inf).min(1)
    for goal, position in ((battle.goal_x, battle.x), (battle.goal_y, battle.y)):
        goal[allies:] = torch.where(distance < torch.inf, position.gather(0, ally), position[allies:])


def make(
    task_id: str, num_envs: int, device: torch.device | str, dtype: torch.dtype | None, opponent: Policy | None
) -> SmacV2Env:
    """The environment of a task; arguments as in `marl_flow.envs.make`."""
    refuse_opponent(task_id, opponent)
    check_dtype(task_id, dtype or torch.float32, (torch.float32,))
    return SmacV2Env(task_id, num_envs, device=device)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task, without building it."""
    return tasks.find_card(task_id).spec
