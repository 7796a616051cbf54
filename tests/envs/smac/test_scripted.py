"""The scripted teams: legal everywhere, neither unbeatable nor hopeless where they serve as reference."""

from __future__ import annotations

import pytest
import torch

from marl_flow.envs.smac.battle import OFF_MAP
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.envs.smac.maps import MAPS
from marl_flow.envs.smac.scripted import SCRIPTS, ScriptedTeam
from marl_flow.interfaces import TimeStep, UserError

NORTH, SOUTH, EAST, WEST, ATTACK = 2, 3, 4, 5, 6


def chosen(env: SmacEnv, script: str, step: TimeStep) -> torch.Tensor:
    return ScriptedTeam(env, script).act(step.observations, step.action_mask, step.rewards)


@pytest.mark.parametrize("name", MAPS)
def test_scripts_choose_legal_actions(name: str) -> None:
    """Catches orders to the dead, at targets that may not be attacked, and into walls, on every map's own ground."""
    rows = len(SCRIPTS)  # one battle for each script, in which the others must know legal actions too
    env = SmacEnv(f"smac/{name}", rows)
    step = env.reset(range(rows))
    for _ in range(30):
        proposed = [chosen(env, script, step) for script in SCRIPTS]
        assert step.action_mask is not None
        for script, actions in zip(SCRIPTS, proposed, strict=True):
            assert actions.shape == (rows, env.spec.num_agents) and actions.dtype == torch.int64
            assert bool(step.action_mask.gather(2, actions[..., None]).all()), script
        step = env.step(torch.stack([actions[row] for row, actions in enumerate(proposed)]))


@pytest.mark.parametrize(("name", "script"), [("3m", "focus"), ("8m", "nearest"), ("2s3z", "nearest")])
def test_some_script_wins_some_battles(name: str, script: str) -> None:
    """Catches battles without chance, in which a fixed policy wins all or none as in SMAClite: over 256 seeds the win
    rate is neither 0 nor 1."""
    env = SmacEnv(f"smac/{name}", 256)
    step = env.reset(range(256))
    while not bool(step.finished.all()):
        step = env.step(chosen(env, script, step))
    assert step.won is not None
    assert 0 < int(step.won.sum()) < 256


def facing(
    name: str, positions: dict[int, tuple[float, float]], **values: dict[int, float]
) -> tuple[SmacEnv, TimeStep]:
    """One battle with the named units at places and the others dead."""
    env = SmacEnv(f"smac/{name}", 1)
    env.reset([0])
    state = env.battle_state
    for unit in range(env.army.num_units):
        x, y = positions.get(unit, (OFF_MAP + unit, OFF_MAP))
        state.battle.x[unit], state.battle.y[unit] = x, y
        state.battle.health[unit] *= unit in positions
    for column, entries in values.items():
        for unit, value in entries.items():
            getattr(state.battle, column)[unit] = value
    return env, env.set_state(state)


def test_who_is_attacked() -> None:
    """Catches scripts named for each other: the nearest enemy, or the one with the least health and shield."""
    env, step = facing("3m", {0: (10, 16), 3: (14, 16), 4: (15, 16)}, health={4: 20})
    assert chosen(env, "nearest", step)[0].tolist() == [ATTACK, 0, 0]
    assert chosen(env, "focus", step)[0].tolist() == [ATTACK + 1, 0, 0]
    env, step = facing("2s3z", {0: (10, 16), 5: (14, 16), 6: (15, 16)}, health={6: 79}, shield={5: 40})
    assert chosen(env, "focus", step)[0, 0] == ATTACK
    env, step = facing("3m", {0: (10, 16), 3: (14, 16), 4: (16.1, 16)}, health={4: 1})
    assert chosen(env, "focus", step)[0, 0] == ATTACK  # the weaker one may not be attacked


def test_the_way_to_the_nearest() -> None:
    """Catches steps away from the enemy or along the shorter part of the way, and standing before a wall."""
    for (x, y), action in (((25, 18), EAST), ((2.5, 15), WEST), ((14, 23), NORTH), ((16, 9), SOUTH)):
        env, step = facing("3m", {0: (13, 16), 3: (x, y)})
        assert chosen(env, "nearest", step)[0, 0] == action
    env, step = facing("3m", {0: (13, 23.5), 3: (20, 33)})  # beyond the wall, mostly north
    assert chosen(env, "nearest", step)[0, 0] == EAST


def test_kiting_steps_back_while_it_reloads() -> None:
    """Catches retreats with a loaded weapon, from far enemies, or by units that their enemy outranges."""
    for cooldown, x, action in ((15.0, 12.0, WEST), (5.0, 12.0, ATTACK), (15.0, 15.5, ATTACK)):
        env, step = facing("3s_vs_3z", {0: (10, 16), 3: (x, 16)}, cooldown={0: cooldown})
        assert chosen(env, "kite", step)[0, 0] == action, (cooldown, x)
    env, step = facing("3m", {0: (10, 16), 3: (12, 16)}, cooldown={0: 12.0})
    assert chosen(env, "kite", step)[0, 0] == ATTACK


def test_medivacs_heal_the_worst_hurt() -> None:
    """Catches medivacs that heal the dead or each other's way, attack, or stay behind."""
    positions = {0: (10, 16), 2: (11, 16), 3: (12, 16), 9: (9, 16), 12: (15, 16)}
    env, step = facing("MMM", positions, health={0: 60, 2: 20, 3: 30})
    assert chosen(env, "nearest", step)[0, 9] == ATTACK + 2  # 20/45 is less than 60/125 and 30/45
    env, step = facing("MMM", {2: (20, 16), 9: (9, 16), 12: (25, 16)})
    assert chosen(env, "nearest", step)[0, 9] == EAST


def test_an_unknown_script_is_refused() -> None:
    """Catches a script that is taken for another one."""
    with pytest.raises(UserError, match=r"unknown script 'focsu'.*focus"):
        ScriptedTeam(SmacEnv("smac/3m", 1), "focsu")
