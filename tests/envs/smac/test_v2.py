"""Generated battles: what is drawn, how far units see and are sent, what is paid, who has won. The battle itself is
tested in test_smac_battle.py, the features against the real package in test_smacv2_against_real.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from marl_flow import envs, tasks
from marl_flow.envs import starcraft2
from marl_flow.envs.checks import check_vector_env
from marl_flow.envs.smac.battle import OFF_MAP, TYPES
from marl_flow.envs.smac.env import BattleState
from marl_flow.envs.smac.maps import LATTICE
from marl_flow.envs.smac.scripted import ScriptedTeam
from marl_flow.envs.smac.units import UNITS
from marl_flow.envs.smac.v2 import SCENARIOS, SHOOT_RANGES, SmacV2Env
from marl_flow.envs.smac.v2_teams import UNIT_TYPES, draw_positions, draw_teams, place_teams
from marl_flow.interfaces import TimeStep, TransitionChecker, UserError
from marl_flow.seeding import row_uniform

STOP, NORTH, SOUTH, EAST, WEST, ATTACK = 1, 2, 3, 4, 5, 6
WEIGHTS = (0.45, 0.45, 0.1)
BOX = (2.0, 29.999, 2.0, 29.999)
SIGHT = {"marine": 9, "marauder": 10, "medivac": 11, "stalker": 10, "zealot": 9, "colossus": 10, "zergling": 8} | {
    "hydralisk": 9,
    "baneling": 8,
}
SHOOT = {"marine": 5, "marauder": 6, "medivac": 4, "stalker": 6, "zealot": 2, "colossus": 7, "zergling": 2} | {
    "hydralisk": 5,
    "baneling": 2,
}


def random_actions(step: TimeStep, seed: int) -> Tensor:
    mask = step.action_mask
    assert mask is not None
    draws = row_uniform([seed], 7, mask.numel()).view(mask.shape)
    return draws.masked_fill(~mask, -1.0).argmax(-1)


def waiting(step: TimeStep) -> Tensor:
    assert step.action_mask is not None
    return torch.where(step.action_mask[..., 0], 0, STOP)


def names(env: SmacV2Env, row: int = 0) -> list[str]:
    return [TYPES[unit_type] for unit_type in env.army.types[:, row].tolist()]


def env_with(task: str, fits: Callable[[list[str]], bool], *, conic_fov: bool = False) -> SmacV2Env:
    """One battle of the first seed whose teams fit."""
    env = SmacV2Env(f"smacv2/{task}", 1, conic_fov=conic_fov)
    for seed in range(2000):
        env.reset([seed])
        if fits(names(env)):
            return env
    raise AssertionError("no such team among 2000")


def restored(env: SmacV2Env, positions: dict[int, tuple[float, float]], **values: dict[int, float]) -> TimeStep:
    """The units at their places, all others dead; further fields of the battle by unit."""
    battle = env.battle_state.battle
    x, y = (OFF_MAP + 10.0 * torch.arange(len(battle.x), dtype=torch.float32)[:, None] for _ in range(2))
    health = torch.zeros_like(x)
    for unit, (to_x, to_y) in positions.items():
        x[unit], y[unit], health[unit] = to_x, to_y, env.army.max_health[unit]
    fields = {"x": x, "y": y, "health": health, "goal_x": x.clone(), "goal_y": y.clone()}
    fields["shield"] = torch.where(health > 0, env.army.max_shield, 0.0)
    for name, column in values.items():
        fields.setdefault(name, getattr(battle, name).clone())
        for unit, value in column.items():
            fields[name][unit] = value
    nobody = torch.full_like(env.battle_state.last_actions, -1)
    return env.set_state(
        dataclasses.replace(
            env.battle_state, battle=dataclasses.replace(battle, **fields), last_actions=nobody, steps=nobody[0] * 0
        )
    )


def choose(env: SmacV2Env, step: TimeStep, **choices: int) -> Tensor:
    """`agent_3=ATTACK`; the others wait."""
    actions = waiting(step)
    for name, action in choices.items():
        actions[0, int(name.removeprefix("agent_"))] = action
    return actions


# What the task is


def test_the_two_suites_describe_a_scenario_alike() -> None:
    """Catches a size, a limit or a scenario in which the embedded simulator is another task than the game."""
    ours = [task for task in envs.TASKS if task.startswith("smacv2/")]
    assert ours == [f"smacv2/{name}" for name in SCENARIOS] and len(ours) == 15
    for task in ours:
        real = starcraft2.spec(task.replace("smacv2/", "smacv2-sc2/"))
        assert envs.spec(task) == dataclasses.replace(real, task_id=task)
        step = SmacV2Env(task, 2).reset([0, 1])
        assert step.observations.shape[1:] == (real.num_agents, real.observation_size)
        assert step.state is not None and step.state.shape[1] == real.state_size
    published = {"terran_5_vs_5": 82, "terran_10_vs_10": 162, "protoss_5_vs_5": 92}  # cards of OG-MARL; smac.md
    assert {name: envs.spec(f"smacv2/{name}").observation_size for name in published} == published


def test_teams_are_drawn_as_published() -> None:
    """Catches a weight, type or exception unlike SMACv2's published settings, and one-hot bits in another order."""
    assert UNIT_TYPES == {
        "terran": ("marine", "marauder", "medivac"),
        "protoss": ("stalker", "zealot", "colossus"),
        "zerg": ("zergling", "hydralisk", "baneling"),
    }
    for race, types in UNIT_TYPES.items():
        assert [tasks.SMACV2_TEAMS[race].units[name] for name in types] == list(WEIGHTS)
    assert [teams.never_alone for teams in tasks.SMACV2_TEAMS.values()] == [("medivac",), (), ("baneling",)]


def test_refusals() -> None:
    """Catches unknown scenarios, options that would be ignored, states without teams, and data that are believed to be
    checked: a state does not tell the reward's scale."""
    with pytest.raises(UserError, match=r"unknown SMACv2 scenario 'terran_5_vs_6'.*terran_5_vs_5"):
        SmacV2Env("smacv2/terran_5_vs_6", 1)
    with pytest.raises(UserError, match=r"leave `opponent` out"):
        envs.make("smacv2/terran_5_vs_5", 1, opponent=object())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"expected dtype float32, got torch\.float64"):
        envs.make("smacv2/terran_5_vs_5", 1, dtype=torch.float64)
    env = SmacV2Env("smacv2/terran_5_vs_5", 1, conic_fov=True)
    assert not isinstance(env, TransitionChecker)
    other = SmacV2Env("smacv2/terran_5_vs_5", 1)
    other.reset([0])
    with pytest.raises(UserError, match="call reset"):
        env.set_state(other.battle_state)
    env.reset([0])
    with pytest.raises(UserError, match=r"state.facing as integers of shape .5, 1. from 0 to 11, got .*12, 12"):
        env.set_state(dataclasses.replace(env.battle_state, facing=torch.full((5, 1), 12)))


@pytest.mark.parametrize(("task", "conic_fov"), [("zerg_5_vs_5", False), ("terran_5_vs_5", True)])
def test_contract(task: str, conic_fov: bool) -> None:
    """Catches draws across rows or between instances, changed inputs and broken shapes: see `check_vector_env`."""
    check_vector_env(lambda num_envs: SmacV2Env(f"smacv2/{task}", num_envs, conic_fov=conic_fov))


# What is drawn


def fraction(types: Tensor, name: str) -> float:
    return float((types == TYPES.index(name)).double().mean())


@pytest.mark.parametrize("race", UNIT_TYPES)
def test_teams(race: str) -> None:
    """Catches other weights, bits of the draws used twice, an enemy team of its own, and a surplus that may be a lone
    medivac: with n = 10 and m = 11 it is one unit, which is drawn again until it is none."""
    types = draw_teams(torch.arange(20000), race, 10, 11)
    ours, theirs, surplus = types[:10], types[10:20], types[20]
    assert torch.equal(ours, theirs)
    common, _, rare = UNIT_TYPES[race]
    lonely = rare in tasks.SMACV2_TEAMS[race].never_alone
    for name, weight in zip(UNIT_TYPES[race], WEIGHTS, strict=True):
        assert fraction(ours, name) == pytest.approx(weight, abs=0.005)
        expected = (0.0 if name == rare else 0.5) if lonely else weight
        assert fraction(surplus, name) == pytest.approx(expected, abs=0.015)
    same = (ours[:-1] == ours[1:]).double().mean()
    assert float(same) == pytest.approx(sum(weight**2 for weight in WEIGHTS), abs=0.005)
    pairs = draw_teams(torch.arange(20000), race, 2, 2)[:2]
    both = float((pairs == TYPES.index(rare)).all(0).double().mean())
    assert both == 0.0 if lonely else both == pytest.approx(0.01, abs=0.004)
    assert float((pairs == TYPES.index(common)).all(0).double().mean()) == pytest.approx(0.2025, abs=0.015)


def test_places() -> None:
    """Catches a share of mirrored starts, a half or a buffer that is off, groups on one diagonal or at several places,
    and enemies next to the centre: 20,000 draws of 5 against 8."""
    agents, enemies = 5, 8
    x, y = draw_positions(torch.arange(20000), agents, enemies)
    surrounded = (x[:agents] == 16.0).all(0) & (y[:agents] == 16.0).all(0)
    assert float(surrounded.double().mean()) == pytest.approx(0.5, abs=0.015)
    # reflect
    ax, ay, ex, ey = x[:agents, ~surrounded], y[:agents, ~surrounded], x[agents:, ~surrounded], y[agents:, ~surrounded]
    assert torch.equal(ex[:agents], 32.0 - ax) and torch.equal(ey[:agents], ay)
    for values, low, high in ((ax, 0, 15), (ay, 0, 32), (ex[agents:], 16, 32), (ey[agents:], 0, 32)):
        assert low <= float(values.min()) < low + 0.01 and high - 0.01 < float(values.max()) <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.15)
    # surrounded
    ex, ey = x[agents:, surrounded] - 16.0, y[agents:, surrounded] - 16.0
    assert torch.allclose(ex.abs(), ey.abs()) and float(ex.abs().min()) >= 2.0 and float(ex.abs().max()) <= 16.0
    assert float(ex.abs().mean()) == pytest.approx(9.0, abs=0.2)
    quarter = 2 * (ex > 0).long() + (ey > 0).long()
    used = torch.stack([(quarter == index).any(0) for index in range(4)]).sum(0)
    # of g groups each stays empty with (1 - 1/g)**8; the mean number of used quarters over g = 1..4
    expected = sum(g * (1 - (1 - 1 / g) ** enemies) for g in range(1, 5)) / 4
    assert float(used.double().mean()) == pytest.approx(expected, abs=0.03)
    assert torch.stack([(quarter == index).double().mean() for index in range(4)]).tolist() == pytest.approx(
        [0.25] * 4, abs=0.02
    )
    for index in range(4):  # a group stands on one point
        spread = ex.masked_fill(quarter != index, -torch.inf).max(0).values
        least = ex.masked_fill(quarter != index, torch.inf).min(0).values
        assert bool((spread <= least)[(quarter == index).any(0)].all())


def test_everybody_finds_a_free_place() -> None:
    """Catches units inside each other or outside, who is moved though its place is free, whole groups moved, and a
    mirror that the crowd breaks."""
    seeds = torch.arange(300)
    for race in UNIT_TYPES:
        types = draw_teams(seeds, race, 10, 10)
        wanted = draw_positions(seeds, 10, 10)
        x, y = place_teams(types, *wanted, 10, BOX)
        for position in (x, y):
            assert bool(((position >= 2.0) & (position <= 29.999)).all())
        separation = torch.tensor([UNITS[name].separation for name in TYPES])[types]
        layer = torch.tensor([2 * UNITS[name].air + UNITS[name].walks_over for name in TYPES])[types]
        gap = (x[:, None] - x[None]).hypot(y[:, None] - y[None])
        limit = LATTICE * (separation[:, None] + separation[None]) - 1e-5
        other = ~torch.eye(20, dtype=torch.bool)[..., None] & (layer[:, None] == layer[None])
        assert bool((gap > limit)[other].all())
        moved = (x - wanted[0].clamp(2.0, 29.999)).hypot(y - wanted[1].clamp(2.0, 29.999))
        earlier = torch.ones(20, 20, dtype=torch.bool).tril(-1)[..., None]
        crowd = ((moved[:, None] + limit + 1.0 > gap) & earlier).any(1)  # somebody earlier is about
        assert float(moved[~crowd].max()) == 0.0 and float(moved.max()) < 7.0
        reflects = (wanted[0][:10] != 16.0).any(0)
        reflects &= ((x - 16.0).abs() > 1.0).all(0)  # both crowds meet in the middle: one of 158
        assert int(reflects.sum()) > 130
        assert float((x[:10] + x[10:] - 32.0).abs()[:, reflects].max()) < 2e-3  # the box ends 0.001 below 30
        assert torch.equal(y[:10, reflects], y[10:, reflects])


def test_agents_are_numbered_as_in_the_package() -> None:
    """Catches agents in the order of the draw or of our own table, and units whose type or place is another's: the
    multiset of types is the enemy's."""
    for race in UNIT_TYPES:
        env = SmacV2Env(f"smacv2/{race}_10_vs_10", 50)
        step = env.reset(range(50))
        battle = env.battle_state.battle
        for row in range(50):
            team = names(env, row)
            keys = [
                (team[unit], float(battle.x[unit, row]), float(battle.y[unit, row])) for unit in range(len(team) // 2)
            ]
            assert keys == sorted(keys) and sorted(team[:10]) == sorted(team[10:])
        own = step.observations[:, :, -5:]  # x, y and three bits
        assert torch.allclose(own[..., 0].t() * 32.0, battle.x[:10]) and bool((own[..., 2:].sum(-1) == 1).all())
        bits = [[UNIT_TYPES[race].index(name) for name in names(env, row)[:10]] for row in range(50)]
        assert own[..., 2:].argmax(-1).tolist() == bits


def test_a_row_depends_on_its_own_seed() -> None:
    """Catches teams or places redrawn for a whole batch where one row needs it; seeds that share their draws."""
    seeds = torch.arange(400)
    for draw in (lambda s: (draw_teams(s, "terran", 1, 2),), lambda s: draw_positions(s, 5, 8)):
        together = draw(seeds)
        for one in (3, 77, 399):
            alone = draw(seeds[one : one + 1])
            assert all(torch.equal(a[:, one], b[:, 0]) for a, b in zip(together, alone, strict=True))
    assert len({tuple(column) for column in draw_positions(seeds, 5, 8)[1][5:].t().tolist()}) == 400


# Who sees and reaches what


@pytest.mark.parametrize("name", SIGHT)
def test_ranges(name: str) -> None:
    """Catches SMAC's ranges 9 and 6 for all, melee without its minimum of 2, an edge on the wrong side (sight is
    open, reach is closed), and distances divided by another range. A medivac heals who is in 4, no medivac."""
    race = UNITS[name].race
    env = env_with(f"{race}_5_vs_5", lambda team: name in team[:5])
    agent = names(env).index(name)
    other = next(unit for unit in range(5) if names(env)[unit] not in (name, "medivac"))
    slot, width = ATTACK, 8 + (race == "protoss")
    enemy, target = (4, 5) if name != "medivac" else (4, other)
    if name == "medivac":
        slot += other
    for range_, inside, outside in ((SHOOT[name], 0.0, 0.01), (SIGHT[name], -0.01, 0.0)):
        for gap, is_in in ((range_ + inside, True), (range_ + outside, False)):
            positions = {agent: (10.0, 10.0), target: (10.0 + gap, 10.0), 9: (29.0, 29.0)}
            step = restored(env, positions | ({5: (10.0 + gap, 10.0)} if target != 5 else {}))
            assert step.action_mask is not None
            if range_ == SHOOT[name]:
                assert bool(step.action_mask[0, agent, slot]) is is_in
            else:
                row = step.observations[0, agent, enemy : enemy + width]
                assert float(row[1]) == (pytest.approx(gap / SIGHT[name]) if is_in else 0.0)
                assert float(row[4]) == float(is_in)
    assert max(2.0, SHOOT_RANGES[name]) == SHOOT[name]


def test_nobody_is_walked_into_range() -> None:
    """Catches v1's rule, in which a zealot told to attack from six cells away walks there: from beyond two it is
    refused, from two it walks the rest of the way and strikes."""
    env = env_with("protoss_5_vs_5", lambda team: "zealot" in team[:5] and team[5] == "stalker")
    agent = names(env).index("zealot")
    step = restored(env, {agent: (10.0, 10.0), 5: (12.01, 10.0)})
    with pytest.raises(UserError, match="expected one of the legal actions"):
        env.step(choose(env, step, **{f"agent_{agent}": ATTACK}))
    step = restored(env, {agent: (10.0, 10.0), 5: (12.0, 10.0)}, windup={5: 1e5})
    step = env.step(choose(env, step, **{f"agent_{agent}": ATTACK}))
    after = env.battle_state.battle
    assert float(after.x[agent, 0]) == pytest.approx(12.0 - 0.1 - 0.5 - 0.625, abs=1e-3)
    assert float(after.shield[5, 0]) == 80.0 - 8.0


def test_enemies_always_come() -> None:
    """Catches enemies that wait for somebody to come near, or go to a fixed point: allies that never move are found
    and beaten in every episode, long before the limit of 200 steps."""
    for race in UNIT_TYPES:
        env = SmacV2Env(f"smacv2/{race}_5_vs_5", 16)
        step = env.reset(range(16))
        while not bool(step.finished.all()):
            step = env.step(waiting(step))
        assert step.won is not None
        assert not bool(step.truncated.any()) and float((~step.won).double().mean()) > 0.9
        assert int(env.battle_state.steps.max()) < 100


def test_enemies_go_to_the_nearest_they_can_hit() -> None:
    """Catches a march to the nearest of all (marauders cannot hit a medivac, marines and medivacs go to it), medivacs
    that stay behind, and an order that is not renewed when the nearest has changed."""
    env = env_with("terran_5_vs_5", lambda team: "medivac" in team[:5] and {"marine", "marauder"} <= set(team[:5]))
    team = names(env)
    medivac, far = team.index("medivac"), next(unit for unit in range(5) if team[unit] != "medivac")
    here = {unit: (16.0 + index, 16.0) for index, unit in enumerate(range(5, 10))}
    for x, y in ((2.0, 30.0), (30.0, 2.0)):
        step = restored(env, here | {medivac: (16.0, 23.5), far: (x, y)})
        env.step(waiting(step))
        goals = env.battle_state.battle
        for enemy in range(5, 10):
            to = (x, y) if team[enemy] == "marauder" else (16.0, 23.5)
            assert (float(goals.goal_x[enemy, 0]), float(goals.goal_y[enemy, 0])) == to


# What is paid, who has won


@pytest.mark.parametrize("race", UNIT_TYPES)
def test_rewards(race: str) -> None:
    """Catches SMAC's absolute value, a scale that is another row's, the map's or an earlier episode's, a win that is
    not paid or pays other than 20, and battles that are decided before they begin: a scripted team wins some, never
    all. Every step is compared with the states before and after it."""
    rows = 64
    env = SmacV2Env(f"smacv2/{race}_5_vs_5", rows)
    script = ScriptedTeam(env, "focus")
    env.reset(range(1000, 1000 + rows))
    step = env.reset(range(rows))
    most = (env.army.max_health + env.army.max_shield)[5:].sum(0) + 5 * 10 + 200
    assert len(set(most.tolist())) > 10
    total, regained = torch.zeros(rows), torch.zeros(rows)
    while not bool(step.finished.all()):
        before, was = env.battle_state.battle, step
        step = env.step(script.act(step.observations, step.action_mask, step.rewards))
        after = env.battle_state.battle
        assert step.won is not None
        life, left = (b.health + torch.where(b.health > 0, b.shield, 0.0) for b in (before, after))
        kills = ((before.health > 0) & (after.health == 0))[5:].sum(0)
        dealt = (life - left)[5:].sum(0) + 10.0 * kills
        expected = torch.where(was.finished, 0.0, (dealt.clamp_min(0.0) + 200.0 * step.won) * 20.0 / most)
        assert torch.allclose(step.rewards, expected[:, None].expand(-1, 5), atol=1e-4)
        total += step.rewards[:, 0]
        regained += (left - life)[5:].clamp_min(0.0).sum(0) * ~was.finished
    assert float(regained.sum()) > 0.0
    assert step.won is not None and 0.03 < float(step.won.double().mean()) < 0.8
    clean = step.won & (regained == 0.0) & ~env.battle_state.battle.alive[5:].any(0)
    assert race == "zerg" or int(clean.sum()) > 2
    assert torch.allclose(total[clean], torch.full_like(total[clean], 20.0), atol=1e-3)


def test_medivacs_alone_are_beaten() -> None:
    """Catches v1's rule (exactly one medivac may be left), a win where both sides have only medivacs, and rules of
    terran battles only where a medivac was drawn."""
    env = env_with("terran_5_vs_5", lambda team: team[:5].count("medivac") == 2)
    team = names(env)
    ours = [unit for unit in range(5) if team[unit] == "medivac"]
    theirs = [unit for unit in range(5, 10) if team[unit] == "medivac"]
    fighter, foe = (next(u for u in side if team[u] != "medivac") for side in (range(5), range(5, 10)))
    cases = (
        ([fighter], [foe], False, False),
        ([fighter], [foe, *theirs], False, False),
        ([fighter], theirs, True, True),
        ([fighter], theirs[:1], True, True),
        (ours, [foe], True, False),
        (ours, theirs, True, False),
        ([], [], True, False),
        ([fighter], [], True, True),
    )
    for allies, enemies, ended, won in cases:
        step = restored(env, {unit: (4.0 + 2.0 * unit, 16.0) for unit in (*allies, *enemies)})
        assert (bool(step.terminated[0]), bool(step.won[0])) == (ended, won)  # type: ignore[index]


# Cones of view


def test_cones() -> None:
    """Catches another angle (30 degrees in all), turns that go the other way round or start elsewhere, cones that do
    not bind attacks or friends, and the package's fault of seeing behind one's back."""
    env = env_with("zerg_5_vs_5", lambda team: team[0] == "hydralisk", conic_fov=True)
    assert (env.spec.action.size, env.spec.observation_size, env.spec.state_size) == (23, 84, 45 + 30 + 115)
    for turn in range(12):
        for degrees, inside in (
            (0.0, True),
            (14.5, True),
            (-14.5, True),
            (15.5, False),
            (-15.5, False),
            (180.0, False),
        ):
            angle = math.radians(30.0 * turn + degrees)
            position = (16.0 + 4.0 * math.cos(angle), 16.0 + 4.0 * math.sin(angle))
            restored(env, {0: (16.0, 16.0), 1: position, 5: position})
            step = env.set_state(dataclasses.replace(env.battle_state, facing=torch.full((5, 1), turn)))
            assert step.action_mask is not None and step.state is not None
            assert bool(step.action_mask[0, 0, 18]) is inside and bool(step.action_mask[0, 0, 6:18].all())
            assert bool(step.observations[0, 0, 5] > 0) is inside  # distance of the first enemy
            assert bool(step.observations[0, 0, 4 + 40]) is inside  # the first friend
            direction = pytest.approx([math.cos(math.radians(30 * turn)), math.sin(math.radians(30 * turn))], abs=1e-6)
            assert step.observations[0, 0, -5:-3].tolist() == direction and step.state[0, 4:6].tolist() == direction
    assert not bool(step.action_mask[0, 2, 6:18].any())  # the dead do not turn


def test_a_turn_leaves_the_order_in_force() -> None:
    """Catches a turn that stops who walks or attacks, turns everybody, or is forgotten after the step."""
    env = env_with("zerg_5_vs_5", lambda team: team[:2] == ["hydralisk"] * 2, conic_fov=True)
    step = restored(env, {0: (10.0, 10.0), 1: (28.0, 20.0), 5: (29.0, 29.0)})
    step = env.step(choose(env, step, agent_0=EAST))
    step = env.step(choose(env, step, agent_0=6 + 3))
    state = env.battle_state
    assert state.facing is not None and state.facing[:, 0].tolist() == [3, 0, 0, 0, 0]
    assert float(state.battle.x[0, 0]) == pytest.approx(12.0, abs=1e-4)  # two cells east, two steps
    assert env.step(choose(env, step, agent_0=STOP)).observations[0, 0, -5:-3].tolist() == pytest.approx(
        [0, 1], abs=1e-6
    )
    step = restored(env, {0: (10.0, 10.0), 5: (14.0, 10.0)}, health={5: 1e4}, cooldown={0: 0.0})
    env.set_state(dataclasses.replace(env.battle_state, facing=torch.zeros(5, 1, dtype=torch.int64)))
    step = env.step(choose(env, step, agent_0=18))
    dealt = float(env.battle_state.battle.health[5, 0])
    for _ in range(3):
        step = env.step(choose(env, step, agent_0=6))
    assert float(env.battle_state.battle.health[5, 0]) < dealt - 10.0  # the next shot


@pytest.mark.parametrize("conic_fov", [False, True])
def test_a_state_is_continued(conic_fov: bool) -> None:
    """Catches a part of the state that is left out: facing, teams' tables."""
    env = SmacV2Env("smacv2/terran_5_vs_5", 6, conic_fov=conic_fov)
    step = env.reset(range(6))
    for index in range(8):
        step = env.step(random_actions(step, index))
    state: BattleState = env.battle_state
    again = env.set_state(state)
    for name in ("observations", "action_mask", "state"):
        assert torch.equal(getattr(step, name), getattr(again, name))
