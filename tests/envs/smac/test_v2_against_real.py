"""The embedded SMACv2's features, rewards and ends against the real package's own Python, on restored units; no game is
needed. Enemies count as seen by everybody, which turns off what the package does to those who are not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from marl_flow.envs import starcraft2
from marl_flow.envs.smac.battle import TYPES, Battle
from marl_flow.envs.smac.env import BattleState
from marl_flow.envs.smac.v2 import SmacV2Env

SAMPLES = 50
FIRST_OWN_TYPE = 1970
STOCK_TYPES = {"baneling": 9, "colossus": 4, "hydralisk": 107, "marauder": 51, "marine": 48, "medivac": 54} | {
    "stalker": 74,
    "zealot": 73,
    "zergling": 105,
}
TASKS = ("terran_5_vs_5", "terran_10_vs_11", "protoss_5_vs_5", "protoss_10_vs_11", "zerg_5_vs_5", "zerg_10_vs_11")


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Game` sets this in its worker; here it is taken back."""
    monkeypatch.setenv(starcraft2.PROTOBUF, "python")
    if missing := list(starcraft2._missing_packages("smacv2")):
        pytest.skip(f"needs the real package, not the game; {missing[0]}")


def restored(env: SmacV2Env, source: np.random.Generator) -> BattleState:
    """Random states: anywhere on the map and in crowds, on and off whole coordinates, hurt, a quarter dead, some sides
    wiped out but for their medivacs."""
    state, agents = env.battle_state, env.spec.num_agents
    shape = tuple(state.battle.x.shape)

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.tensor(source.uniform(low, high, size=shape), dtype=torch.float32)

    third = torch.arange(shape[1]) % 3
    x, y = (
        torch.where(third > 0, 8.0 + coordinate / 2.4, coordinate) for coordinate in (draw(0.0, 32.0), draw(0.0, 32.0))
    )
    x, y = (torch.where(third == 1, coordinate.round().clamp(max=31.0), coordinate) for coordinate in (x, y))
    health = (draw(0.0, 1.0) * env.army.max_health).clamp_min(0.5)
    health[draw(0.0, 1.0) < 0.25] = 0.0
    others = ~env.army.heals
    health[:agents, :6] *= ~others[:agents, :6]
    health[agents:, 3:9] *= ~others[agents:, 3:9]
    battle = dataclasses.replace(
        state.battle,
        x=x,
        y=y,
        health=health,
        shield=draw(0.0, 1.0) * env.army.max_shield * (health > 0),
        energy=draw(0.0, 200.0),
        cooldown=draw(0.0, 40.0),
    )
    last = torch.tensor(source.integers(0, env.spec.action.size, size=(agents, shape[1])))
    last[:, source.uniform(size=shape[1]) < 0.1] = -1
    facing = torch.tensor(source.integers(0, 12, size=(agents, shape[1])))
    turn = last - 6
    turned = (turn >= 0) & (turn < env.spec.action.size - 6 - env.map.num_enemies)
    return BattleState(
        battle=battle, steps=state.steps, last_actions=last, facing=torch.where(turned, turn.clamp(0, 11), facing)
    )


def real_units(env: SmacV2Env, battle: Battle, column: int) -> list[Any]:
    """The units of one battle as the game would report them, allies first, the dead included."""
    from s2clientprotocol import raw_pb2

    units = []
    for index, kind in enumerate(env.army.types[:, column].tolist()):
        is_ally, name = index < env.spec.num_agents, TYPES[kind]
        unit = raw_pb2.Unit(tag=index + 1, owner=1 if is_ally else 2)
        unit.unit_type = FIRST_OWN_TYPE + sorted(STOCK_TYPES).index(name) if is_ally else STOCK_TYPES[name]
        unit.pos.x, unit.pos.y = float(battle.x[index, column]), float(battle.y[index, column])
        unit.health, unit.shield = float(battle.health[index, column]), float(battle.shield[index, column])
        unit.health_max = float(env.army.max_health[index, column])
        unit.shield_max = float(env.army.max_shield[index, column])
        unit.energy, unit.weapon_cooldown = float(battle.energy[index, column]), float(battle.cooldown[index, column])
        units.append(unit)
    return units


def real_env(env: SmacV2Env, **options: Any) -> Any:
    """The package's environment as its launch leaves it, on the ground that the embedded one walks on."""
    task = f"smacv2-sc2/{env.map.name}"
    if options:
        from smacv2.env import StarCraftCapabilityEnvWrapper

        game_map = starcraft2.find_map(task)
        wrapper = StarCraftCapabilityEnvWrapper(
            map_name=game_map.map_name,
            capability_config=starcraft2.capability_config(game_map),
            use_unit_ranges=True,
            min_attack_range=2,
            obs_own_pos=True,
            **options,
        )
    else:
        wrapper = starcraft2.Game(task)._build(None)
    real = wrapper.env
    real.map_x = real.map_y = 32
    real.max_distance_x = real.max_distance_y = 28
    real.pathing_grid = env._features.grid.reshape(32, 32).numpy()
    real._controller = SimpleNamespace(data=lambda: SimpleNamespace(units=[None] * (FIRST_OWN_TYPE + 9)))
    real._init_ally_unit_types(0)
    return real


def restore(real: Any, env: SmacV2Env, state: BattleState, column: int) -> None:
    units, agents = real_units(env, state.battle, column), env.spec.num_agents
    real.agents = dict(enumerate(units[:agents]))
    real.enemies = dict(enumerate(units[agents:]))
    real.death_tracker_ally = np.array([float(unit.health == 0) for unit in units[:agents]])
    real.death_tracker_enemy = np.array([float(unit.health == 0) for unit in units[agents:]])
    last = state.last_actions[:, column].numpy()
    real.last_action = np.eye(real.n_actions)[last] if (last >= 0).all() else np.zeros((agents, real.n_actions))
    real.obs_enemies = np.ones((real.n_enemies, agents))
    real.enemy_tags = [0] * real.n_enemies
    if real.conic_fov and state.facing is not None:
        real.fov_directions = real.canonical_fov_directions[state.facing[:, column].numpy()]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("conic_fov", [False, True])
def test_features(task: str, conic_fov: bool) -> None:
    """Catches an entry in another place, another range, rounding or divisor, bits in another order, and the dead shown
    otherwise. Of the cones the places of the entries are compared here, their angle below."""
    env = SmacV2Env(f"smacv2/{task}", SAMPLES, conic_fov=conic_fov)
    source = np.random.default_rng(0)
    # ground up to the border, and holes everywhere: the map's own hides how a place becomes a cell
    env._features.grid = torch.tensor(source.uniform(size=32 * 32) < 0.7)
    env.reset(range(SAMPLES))
    state = restored(env, source)
    step, real = env.set_state(state), real_env(env, **({"conic_fov": True} if conic_fov else {}))
    assert step.action_mask is not None and step.state is not None
    assert real.get_env_info()["n_actions"] == env.spec.action.size
    if conic_fov:
        real.is_position_in_cone = lambda agent, coordinate, range="sight_range": cone(real, agent, coordinate, range)
    observed = 0
    for column in range(SAMPLES):
        restore(real, env, state, column)
        mask, observations = np.array(real.get_avail_actions(), dtype=bool), np.array(real.get_obs())
        assert np.array_equal(step.action_mask[column], mask), f"legal actions of sample {column}"
        assert np.abs(step.observations[column].numpy() - observations).max() <= 1e-6, f"observation {column}"
        assert np.abs(step.state[column].numpy() - real.get_state()).max() <= 1e-6, f"state of sample {column}"
        observed += int(mask[:, -env.map.num_enemies :].sum())
    assert observed > 0, "nobody had a target"


def cone(real: Any, agent: int, coordinate: Any, range_: str) -> bool:
    """What the package means by a cone: in range, and within 15 degrees of the direction. Here the edge counts, on
    which diagonals lie."""
    unit = real.agents[agent]
    x, y = coordinate.x - unit.pos.x, coordinate.y - unit.pos.y
    distance, most = np.hypot(x, y), {"sight_range": real.unit_sight_range, "shoot_range": real.unit_shoot_range}
    way = real.fov_directions[agent]
    near = distance < most[range_](agent) if range_ == "sight_range" else distance <= most[range_](agent)
    return bool(near and x * way[0] + y * way[1] >= (np.cos(np.pi / 12) - 1e-6) * distance)


def test_cones() -> None:
    """Catches a cone of another angle than the package's, where its arc tangents tell left from right: the direction
    is not along an axis, and the target on its side."""
    env = SmacV2Env("smacv2/terran_5_vs_5", SAMPLES, conic_fov=True)
    env.reset(range(SAMPLES))
    state = restored(env, np.random.default_rng(2))
    real = real_env(env, conic_fov=True)
    inside = outside = 0
    for column in range(SAMPLES):
        restore(real, env, state, column)
        for agent, unit in real.agents.items():
            way = real.fov_directions[agent]
            for enemy in real.enemies.values():
                x, y = enemy.pos.x - unit.pos.x, enemy.pos.y - unit.pos.y
                if abs(way[0]) > 0.1 and abs(way[1]) > 0.1 and x * way[0] > 0 and abs(x) != abs(y):
                    expected = bool(real.is_position_in_cone(agent, enemy.pos))
                    assert expected == cone(real, agent, enemy.pos, "sight_range")
                    inside, outside = inside + expected, outside + (not expected)
    assert inside > 10 and outside > 100


@pytest.mark.parametrize("task", TASKS)
def test_rewards_and_ends(task: str) -> None:
    """Catches damage, kills or regained life paid otherwise, and battles decided by another rule."""
    env = SmacV2Env(f"smacv2/{task}", SAMPLES)
    env.reset(range(SAMPLES))
    source = np.random.default_rng(1)
    after, before = restored(env, source), restored(env, source)
    lived = after.battle.health > 0
    health = torch.where(lived & (before.battle.health == 0), env.army.max_health, before.battle.health)
    shield = torch.where(health > 0, before.battle.shield, 0.0)
    before = dataclasses.replace(before, battle=dataclasses.replace(before.battle, health=health, shield=shield))
    reward = env._reward(health, shield, after.battle)
    step, real = env.set_state(after), real_env(env)
    assert step.won is not None
    codes = set()
    for column in range(SAMPLES):
        restore(real, env, before, column)
        living = [unit for unit in real_units(env, after.battle, column) if unit.health > 0]
        real._obs = SimpleNamespace(observation=SimpleNamespace(raw_data=SimpleNamespace(units=living)))
        code = real.update_units()
        assert float(reward[column]) == pytest.approx(real.reward_battle(), abs=1e-3), f"reward of sample {column}"
        assert bool(step.terminated[column]) == (code is not None), f"end of sample {column}"
        assert bool(step.won[column]) == (code == 1), f"victory of sample {column}"
        codes.add(code)
    assert codes >= {1, -1, None}
    assert float(reward.min()) == 0.0 or task.startswith("terran")  # who regains more than it loses pays nothing
