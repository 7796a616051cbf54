"""The embedded SMAC's features against the real package's own Python, on restored units; no game is needed."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from marl_flow import envs
from marl_flow.envs import starcraft2
from marl_flow.envs.smac.battle import Battle
from marl_flow.envs.smac.env import BattleState, SmacEnv
from marl_flow.envs.smac.features import damage_reward
from marl_flow.envs.smac.maps import MAPS

SAMPLES = 50
OWN_TYPE = 1970  # of the first ally copy that a map carries; the next ones follow in the alphabet's order
STOCK_TYPES = {
    "baneling": 9,
    "colossus": 4,
    "hydralisk": 107,
    "marauder": 51,
    "marine": 48,
    "medivac": 54,
    "spine_crawler": 98,
    "stalker": 74,
    "zealot": 73,
    "zergling": 105,
}


def restored(env: SmacEnv, source: np.random.Generator) -> BattleState:
    """Random states: anywhere on the map, on and off whole coordinates, hurt, a quarter dead, some sides wiped out."""
    state, agents = env.battle_state, env.spec.num_agents
    shape = tuple(state.battle.x.shape)

    def draw(low: float, high: float | np.ndarray) -> torch.Tensor:
        return torch.tensor(source.uniform(low, high, size=shape), dtype=torch.float32)

    x, y = draw(0.0, 32.0), draw(0.0, 32.0)
    close = torch.arange(shape[1]) % 3 > 0  # two thirds fight in a crowd, one third of all on whole coordinates
    x, y = (torch.where(close, 8.0 + coordinate / 2.4, coordinate) for coordinate in (x, y))
    x, y = (
        torch.where(torch.arange(shape[1]) % 3 == 1, coordinate.round().clamp(max=31.0), coordinate)
        for coordinate in (x, y)
    )
    health = draw(1.0, 1.0) * (draw(0.01, 1.0) * env.army.max_health)
    health[torch.tensor(source.uniform(size=shape)) < 0.25] = 0.0
    health[:agents, :4] = 0.0
    health[agents:, 2:6] = 0.0
    if env.map.has_medivacs:
        others = ~env.army.heals.expand(shape)
        health[:agents, 6:10] *= ~others[:agents, 6:10]
        health[agents:, 8:14] *= ~others[agents:, 8:14]
    battle = dataclasses.replace(
        state.battle,
        x=x,
        y=y,
        health=health,
        shield=draw(0.0, 1.0) * env.army.max_shield * (health > 0),
        energy=draw(0.0, 200.0),
        cooldown=draw(0.0, 40.0),
    )
    last = torch.tensor(source.integers(-1, env.spec.action.size, size=(1, shape[1])))
    actions = torch.tensor(source.integers(0, env.spec.action.size, size=(agents, shape[1])))
    return dataclasses.replace(state, battle=battle, last_actions=torch.where(last < 0, -1, actions))


def real_units(env: SmacEnv, battle: Battle, column: int) -> list[Any]:
    """The units of one battle as the game would report them, allies first, the dead included."""
    from s2clientprotocol import raw_pb2

    names = [unit.name for unit, _ in env.map.agents + env.map.opponents]
    own = sorted(set(names[: env.spec.num_agents]))
    units = []
    for index, name in enumerate(names):
        is_ally = index < env.spec.num_agents
        unit = raw_pb2.Unit(tag=index + 1, owner=1 if is_ally else 2)
        unit.unit_type = OWN_TYPE + own.index(name) if is_ally else STOCK_TYPES[name]
        unit.pos.x, unit.pos.y = float(battle.x[index, column]), float(battle.y[index, column])
        unit.health, unit.shield = float(battle.health[index, column]), float(battle.shield[index, column])
        unit.health_max, unit.shield_max = float(env.army.max_health[index, 0]), float(env.army.max_shield[index, 0])
        unit.energy, unit.weapon_cooldown = float(battle.energy[index, column]), float(battle.cooldown[index, column])
        units.append(unit)
    return units


def real_env(env: SmacEnv) -> Any:
    """The package's environment as its launch leaves it, on the ground that the embedded one walks on."""
    real = starcraft2.Game(f"smac-sc2/{env.map.name}")._build(None)
    real.map_x = real.map_y = 32
    real.max_distance_x = real.max_distance_y = 28
    real.pathing_grid = env._features.grid.reshape(32, 32).numpy()
    real._init_ally_unit_types(OWN_TYPE)
    return real


def restore(real: Any, env: SmacEnv, state: BattleState, column: int) -> None:
    units, agents = real_units(env, state.battle, column), env.spec.num_agents
    real.agents = dict(enumerate(units[:agents]))
    real.enemies = dict(enumerate(units[agents:]))
    real.death_tracker_ally = np.array([float(unit.health == 0) for unit in units[:agents]])
    real.death_tracker_enemy = np.array([float(unit.health == 0) for unit in units[agents:]])
    last = state.last_actions[:, column].numpy()
    real.last_action = np.eye(real.n_actions)[last] if (last >= 0).all() else np.zeros((agents, real.n_actions))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Game` sets this in its worker; here it is taken back."""
    monkeypatch.setenv(starcraft2.PROTOBUF, "python")


def needs_smac() -> None:
    if missing := list(starcraft2._missing_packages("smac")):
        pytest.skip(f"needs the real package, not the game; {missing[0]}")


@pytest.mark.parametrize("name", MAPS)
def test_the_two_suites_describe_a_map_alike(name: str) -> None:
    """Catches a size, a limit or an agent's name in which the embedded simulator is another task than the game."""
    embedded, real = envs.spec(f"smac/{name}"), starcraft2.spec(f"smac-sc2/{name}")
    assert embedded == dataclasses.replace(real, task_id=f"smac/{name}")


@pytest.mark.parametrize("name", MAPS)
def test_features(name: str) -> None:
    """Catches an entry in another place, another range, rounding or divisor, and the dead shown otherwise."""
    needs_smac()
    env = SmacEnv(f"smac/{name}", SAMPLES)
    source = np.random.default_rng(0)
    # ground up to the border, and holes everywhere: the maps' own hides how a place becomes a cell
    env._features.grid = torch.tensor(source.uniform(size=32 * 32) < 0.7)
    env.reset(range(SAMPLES))
    state = restored(env, source)
    step, real = env.set_state(state), real_env(env)
    assert step.action_mask is not None and step.state is not None
    observed = 0
    for column in range(SAMPLES):
        restore(real, env, state, column)
        mask, observations = np.array(real.get_avail_actions(), dtype=bool), np.array(real.get_obs())
        assert np.array_equal(step.action_mask[column], mask), f"legal actions of sample {column}"
        assert np.abs(step.observations[column].numpy() - observations).max() <= 1e-6, f"observation {column}"
        assert np.abs(step.state[column].numpy() - real.get_state()).max() <= 1e-6, f"state of sample {column}"
        observed += int(mask[:, 6:].sum())
    assert observed > 0, "nobody had a target"


@pytest.mark.parametrize("name", MAPS)
def test_rewards_and_ends(name: str) -> None:
    """Catches damage, kills or regained shields paid otherwise, and battles decided by another rule."""
    needs_smac()
    env = SmacEnv(f"smac/{name}", SAMPLES)
    env.reset(range(SAMPLES))
    source = np.random.default_rng(1)
    after = restored(env, source)
    before = restored(env, source)
    lived = after.battle.health > 0
    health = torch.where(lived & (before.battle.health == 0), env.army.max_health, before.battle.health)
    shield = torch.where(health > 0, before.battle.shield, 0.0)
    before = dataclasses.replace(before, battle=dataclasses.replace(before.battle, health=health, shield=shield))
    reward = damage_reward(before.battle.health, before.battle.shield, after.battle, env.spec.num_agents)
    step, real = env.set_state(after), real_env(env)
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
