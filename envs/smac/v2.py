"""`smacv2/<race>_<n>_vs_<m>`: SMACv2 without StarCraft II, thousands of battles at once.

Teams and starting places are drawn anew for every episode (v2_teams.py), on an open map. Observations, states,
legal actions and endings are SMACv2's with its published settings (`use_unit_ranges`, `min_attack_range=2`,
`obs_own_pos`); the battle is our own simulation (battle.py). Scores here are never those of the real game: that
is `smacv2-sc2/<race>_<n>_vs_<m>` (starcraft.py).

Source: `oxwhirl/smacv2: smacv2/env/starcraft2/starcraft2.py`, 577ab5a. Stated deviations:
- Reward scale: the package divides every return by what a clean win over the first enemy team of its process would
  have paid, so that later wins pay more or less than 20 by chance. Here each episode has its own enemy team's scale.
- The package's observations lose enemies 0..k-1 as long as enemy k has not been seen by anybody, and depend on the
  random order in which it asks its agents. Both are faults of its bookkeeping for an option that is off
  (`prob_obs_enemy` below 1); here everybody sees what is alive and in sight.
- Cone of view (`conic_fov`): the package compares arc tangents, in which left and right are alike, so that an agent
  that looks along the x axis also sees behind its back. Here a cone is a cone.
- Starting places outside the playable square begin at its edge, on the free point nearest to it; what the game makes
  of them is not known.
- The map sends idle enemies at the ally nearest to them, every half game second: here all enemies without a target walk
  to where the nearest ally that they can hit was at the beginning of the step, and take up with whom they meet.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from marl_flow.config import nearest
from marl_flow.envs.smac.battle import TYPES, Army, Battle, build_army, hits, order_allies
from marl_flow.envs.smac.env import BattleState, SmacEnv
from marl_flow.envs.smac.features import RETURN_OF_A_CLEAN_WIN, Features, Ranges, damage_dealt, max_reward
from marl_flow.envs.smac.maps import BattleMap, Group, task_spec
from marl_flow.envs.smac.units import HEAL_RANGE, UNITS
from marl_flow.envs.smac.v2_teams import RACES, draw_places, draw_teams, number, settle
from marl_flow.interfaces import ActionSpec, Policy, TaskSpec, TimeStep, UserError

SIZES = ((5, 5), (10, 10), (20, 20), (10, 11), (20, 23))
LIMIT = 200
MIN_SHOOT_RANGE = 2.0
"""Whose weapon reaches less far may still be told to attack from here, centre to centre."""
SHOOT_RANGES: Mapping[str, float] = MappingProxyType(
    {unit.name: unit.range or 0.0 for unit in UNITS.values()} | {"medivac": HEAL_RANGE, "colossus": 7.0}
)
"""The package's own table; its colossus is the multiplayer game's, which reaches one cell further than the map's."""
NUM_TURNS = 12
"""Directions to look in, anticlockwise from the east, each the middle of a cone of 30 degrees."""


@dataclass(frozen=True, kw_only=True)
class Scenario(BattleMap):
    """How many fight. Who they are and where is drawn: the groups name one type and one place for all of them."""

    race: str

    @property
    def has_medivacs(self) -> bool:
        """The rules for medivacs hold in every terran battle, whoever was drawn."""
        return self.race == "terran"


SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        f"{race}_{agents}_vs_{enemies}": Scenario(
            name=f"{race}_{agents}_vs_{enemies}",
            race=race,
            allies=(Group(unit=types[0], count=agents, point=(9.0, 16.0)),),
            enemies=(Group(unit=types[0], count=enemies, point=(23.0, 16.0)),),
            order=(),
            terrain="open",
            limit=LIMIT,
            ally_bits=types,
            enemy_bits=types,
        )
        for race, types in RACES.items()
        for agents, enemies in SIZES
    }
)


def find_scenario(task_id: str) -> Scenario:
    name = task_id.removeprefix("smacv2/")
    if name not in SCENARIOS:
        raise UserError(f"unknown SMACv2 scenario {name!r}; {nearest(name, SCENARIOS)}")
    return SCENARIOS[name]


class SmacV2Env(SmacEnv):
    """E generated battles. Actions, legality and the contract as in `SmacEnv`; sight and attack ranges are the unit
    types', and an agent may only be told to attack who is within its own: nobody is walked towards from further away.

    Rewards are max(damage + 10 per kill + 200 for the win, 0), less what enemies regained in the step, scaled so that a
    clean win over the episode's own enemy team returns 20. Both sides lose when only medivacs are left, ours first.

    conic_fov: agents see and attack only inside a cone that they turn by 12 further actions (6 to 17, attacks follow),
    which leave their last order in force; everybody begins looking east. Off in the published scenarios: sizes differ,
    the task's name does not.
    """

    _map: Scenario
    _scale: Tensor

    expected_transition = None  # type: ignore[assignment]
    """States do not tell who the dead were, and so not what the rewards were divided by: not an `TransitionChecker`."""

    def __init__(
        self, task_id: str, num_envs: int, *, device: torch.device | str = "cpu", conic_fov: bool = False
    ) -> None:
        self._turns = NUM_TURNS if conic_fov else 0
        super().__init__(task_id, num_envs, device=device)
        self._facing = torch.zeros(self._map.num_agents, num_envs, dtype=torch.int64, device=self._device)
        self._shoot_ranges = torch.tensor([max(MIN_SHOOT_RANGE, SHOOT_RANGES[name]) for name in TYPES], device=device)
        angles = [2.0 * math.pi * turn / NUM_TURNS for turn in range(NUM_TURNS)]
        self._directions = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], device=device).t()  # [2, 12]

    def _find(self, task_id: str) -> Scenario:
        return find_scenario(task_id)

    def _describe(self) -> TaskSpec:
        described = spec(f"smacv2/{self._map.name}")
        if not self._turns:
            return described
        agents, size = described.num_agents, described.action.size + self._turns
        assert described.state_size is not None
        return dataclasses.replace(
            described,
            observation_size=described.observation_size + 2,
            state_size=described.state_size + agents * (2 + self._turns),
            action=ActionSpec(kind="discrete", size=size),
        )

    def _build_features(self, grid: Tensor) -> Features:
        return Features(self._map, grid, own_position=True, turns=self._turns)

    def _spawn(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        agents, box = self._map.num_agents, self._ground.box
        assert box is not None
        kinds = draw_teams(seeds, self._map.race, agents, self._map.num_enemies)
        x, y = settle(kinds, *draw_places(seeds, agents, self._map.num_enemies), agents, box)
        order = number(kinds[:agents], x[:agents], y[:agents])
        kinds, x, y = (torch.cat([table[:agents].gather(0, order), table[agents:]]) for table in (kinds, x, y))
        self._army = build_army(kinds, agents, frozenset(RACES[self._map.race]))
        life = (self._army.max_health + self._army.max_shield)[agents:].sum(0)
        self._scale = RETURN_OF_A_CLEAN_WIN / (max_reward(self._map, 0.0) + life)
        self._facing = torch.zeros_like(self._facing)
        return x.float(), y.float()

    def _ranges(self) -> Ranges:
        kinds = self._army.kinds[: self._map.num_agents]
        return Ranges(
            sight=self._army.sight[: self._map.num_agents],
            shoot=self._shoot_ranges[kinds],
            facing=self._directions[:, self._facing] if self._turns else None,
        )

    def _reward(self, health: Tensor, shield: Tensor, after: Battle) -> Tensor:
        return damage_dealt(health, shield, after, self._map.num_agents).clamp_min(0.0)

    def _order(self, battle: Battle, army: Army, actions: Tensor) -> None:
        _send_enemies(battle, army)
        order_allies(battle, army, actions, self._map.has_medivacs, self._turns)

    def _outcome(self, battle: Battle) -> tuple[Tensor, Tensor, Tensor]:
        """Won, lost, decided [E] bool: a side without anybody but medivacs is beaten, ours first."""
        won, lost, over = super()._outcome(battle)
        if self._map.has_medivacs:
            fighters = (battle.alive & ~self._army.heals)[self._map.num_agents :]
            won = ~lost & ~fighters.any(0)
            over = won | lost
        return won, lost, over

    @property
    def army(self) -> Army:
        """Who fights, drawn by the last `reset`, [U, E]."""
        self._started()
        return self._army

    @property
    def battle_state(self) -> BattleState:
        """A copy of the state, which `set_state` takes back while the episodes are those of the same `reset`."""
        return dataclasses.replace(super().battle_state, facing=self._facing.clone())

    def set_state(self, state: BattleState) -> TimeStep:
        """As `SmacEnv.set_state`, with the teams of the last `reset`; facing [N, E], 0 to 11: None looks east."""
        self._started()
        former, facing = self._facing, torch.zeros_like(self._facing)
        if state.facing is not None:
            expected = tuple(facing.shape)
            facing = state.facing.to(self._device, copy=True)
            fits = tuple(facing.shape) == expected and not facing.is_floating_point()
            if not fits or bool(((facing < 0) | (facing >= NUM_TURNS)).any()):
                raise UserError(
                    f"{self.spec.task_id}: expected state.facing as integers of shape {expected} from 0 to "
                    f"{NUM_TURNS - 1}, got {facing.dtype} of shape {tuple(facing.shape)}, "
                    f"{facing.flatten()[:8].tolist()}"
                )
        self._facing = facing
        try:
            return super().set_state(state)
        except UserError:
            self._facing = former
            raise

    def _time_step(self, paid: Tensor) -> TimeStep:
        turn = self._last_actions - (self._features.first_target - self._turns)
        self._facing = torch.where((turn >= 0) & (turn < self._turns), turn, self._facing)
        return super()._time_step(paid)


def _send_enemies(s: Battle, army: Army) -> None:
    """Enemies' goals become the places of the nearest living allies that they can hit (medivacs: of all), in place."""
    allies, kinds = army.num_allies, army.kinds
    squared = (s.x[allies:, None] - s.x[None, :allies]) ** 2 + (s.y[allies:, None] - s.y[None, :allies]) ** 2
    sought = hits(army, kinds[allies:, None], kinds[None, :allies]) | army.heals[allies:, None]
    gap, ally = squared.masked_fill_(~(sought & s.alive[None, :allies]), torch.inf).min(1)
    for goal, place in ((s.goal_x, s.x), (s.goal_y, s.y)):
        goal[allies:] = torch.where(gap < torch.inf, place.gather(0, ally), place[allies:])


def make(
    task_id: str, num_envs: int, device: torch.device | str, dtype: torch.dtype | None, opponent: Policy | None
) -> SmacV2Env:
    """The environment of a task; arguments as in `marl_flow.envs.make`."""
    if opponent is not None:
        raise UserError(f"{task_id}: the enemy is the map's own; leave `opponent` out")
    if dtype not in (None, torch.float32):
        raise UserError(f"{task_id}: expected dtype float32, got {dtype}")
    return SmacV2Env(task_id, num_envs, device=device)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec` of a task, without building it."""
    return task_spec(find_scenario(task_id), task_id, extra_observation=2)
