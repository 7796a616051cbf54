"""`smac/<map>` against recorded outputs of SMAC's own feature code, its table of sizes, hand-made ends, the contract,
and what must hold in every battle.

Random play is a few hundred battles a map here; SMAC_TEST_EPISODES=10000 in the environment makes it that many (about
three minutes on one core for the four maps).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from marl_flow import envs, seeding
from marl_flow.envs.checks import check_vector_env
from marl_flow.envs.smac.battle import TYPES, Battle, build_army
from marl_flow.envs.smac.env import BLOCK_SIZE, BattleState, SmacEnv
from marl_flow.envs.smac.features import damage_reward
from marl_flow.envs.smac.maps import MAPS
from marl_flow.interfaces import TimeStep, UserError

STOP, NORTH, SOUTH, EAST, WEST, ATTACK = 1, 2, 3, 4, 5, 6
EPISODES = os.environ.get("SMAC_TEST_EPISODES")
BATCH = 2048


def begun(name: str, num_envs: int) -> SmacEnv:
    env = SmacEnv(f"smac/{name}", num_envs)
    env.reset(range(num_envs))
    return env


def restored(env: SmacEnv, *, steps: int | None = None, last: Tensor | None = None, **values: Tensor) -> TimeStep:
    """Continues from the present state with some of the battle's columns [U, E] replaced."""
    state = env.battle_state
    battle = dataclasses.replace(state.battle, **{name: value.float() for name, value in values.items()})
    made = state.steps if steps is None else torch.full_like(state.steps, steps)
    return env.set_state(
        BattleState(battle=battle, steps=made, last_actions=state.last_actions if last is None else last)
    )


def mask_of(step: TimeStep) -> Tensor:
    assert step.action_mask is not None
    return step.action_mask


def won_of(step: TimeStep) -> Tensor:
    assert step.won is not None
    return step.won


# Features


@pytest.mark.parametrize("name", ["3m", "8m", "5m_vs_6m", "2s3z"])
def test_recorded_features(recorded: Callable[[str], dict[str, np.ndarray]], name: str) -> None:
    """Catches any entry of observation, state or mask in another place, scale or order, and rewards paid otherwise:
    restored states of SMAC's own code, on open ground up to the border."""
    arrays = recorded("smac_features")
    golden = {key.partition("/")[2]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith(f"{name}/")}
    samples, agents = golden["last_action"].shape
    env = begun(name, samples)
    env._features.grid = torch.ones(32 * 32, dtype=torch.bool)
    if name == "2s3z":  # the recording's enemies are not sorted by type
        types = env.army.types.expand(-1, samples).clone()
        stalkers = golden["enemy_type_is_stalker"].t()
        types[agents:] = torch.where(stalkers, TYPES.index("stalker"), TYPES.index("zealot"))
        env._army = build_army(types, agents, frozenset(("stalker", "zealot")))

    def both(quantity: str) -> Tensor:
        return torch.cat([golden[f"ally_{quantity}"], golden[f"enemy_{quantity}"]], 1).t().float()

    x, y = torch.cat([golden["ally_position"], golden["enemy_position"]], 1).float().unbind(-1)
    cooldown = torch.zeros(env.army.num_units, samples)
    cooldown[:agents] = golden["ally_cooldown"].t()
    step = restored(
        env,
        steps=1,
        last=golden["last_action"].t().long(),
        x=x.t(),
        y=y.t(),
        health=both("health"),
        shield=both("shield"),
        cooldown=cooldown,
    )
    assert torch.equal(mask_of(step).long(), golden["available_actions"].long())
    assert step.state is not None
    assert float((step.observations - golden["obs"]).abs().max()) <= 1e-6
    assert float((step.state - golden["state"]).abs().max()) <= 1e-6

    health = torch.cat([golden["next_ally_health"], golden["next_enemy_health"]], 1).t().float()
    shield = torch.cat([golden["next_ally_shield"], golden["next_enemy_shield"]], 1).t().float()
    after = dataclasses.replace(env.battle_state.battle, health=health, shield=shield)
    received = damage_reward(
        both("health"), both("shield"), after, agents
    )  # the recording leaves the bonus of a win out
    assert float((received - golden["reward_unscaled"]).abs().max()) <= 1e-3
    assert float((received * env._scale - golden["reward"]).abs().max()) <= 1e-4
    assert 20.0 / env._scale == pytest.approx(int(golden["max_reward"]))


SIZES = """
3m 3 3 60 9 30 48 135 365
8m 8 8 120 14 80 168 360 640
25m 25 25 150 31 250 950 1125 1575
5m_vs_6m 5 6 70 12 55 98 270 530
8m_vs_9m 8 9 120 15 85 179 405 695
10m_vs_11m 10 11 150 17 105 243 495 805
27m_vs_30m 27 30 180 36 285 1170 1350 1850
2s3z 5 5 120 11 80 120 770 1020
3s5z 8 8 150 14 128 216 1230 1510
3s5z_vs_3s6z 8 9 170 15 136 230 1380 1670
3s_vs_3z 3 3 150 9 36 54 450 680
3s_vs_4z 3 4 200 10 42 61 600 840
3s_vs_5z 3 5 250 11 48 68 750 1000
2m_vs_1z 2 1 150 7 16 26 150 360
2s_vs_1sc 2 1 300 7 17 27 300 510
so_many_baneling 7 32 100 38 202 397 960 1480
MMM 10 10 150 16 160 290 715 1015
MMM2 10 12 180 18 176 322 885 1205
1c3s5z 9 9 180 15 162 270 1580 1870
6h_vs_8z 6 8 150 14 78 140 1200 1480
corridor 6 24 400 30 156 282 840 1280
bane_vs_bane 24 24 200 30 336 984 820 1260
"""
"""Map, agents, enemies, limit, actions, observation, state, the enemies' health and shields, the largest reward."""


@pytest.mark.parametrize("row", SIZES.split("\n")[1:-1])
def test_sizes(row: str) -> None:
    """Catches an army, a limit, a unit's health or a size that differs from SMAC's."""
    name, *numbers = row.split()
    agents, enemies, limit, actions, observation, state, life, most = map(int, numbers)
    env = SmacEnv(f"smac/{name}", 1)
    step, spec = env.reset([0]), env.spec
    assert (spec.num_agents, spec.max_steps, spec.action.size) == (agents, limit, actions)
    assert (spec.observation_size, spec.state_size) == (observation, state)
    assert step.observations.shape == (1, agents, observation) and step.state is not None
    assert step.state.shape == (1, state) and mask_of(step).shape == (1, agents, actions)
    assert env.army.num_units - agents == enemies
    assert float((env.army.max_health + env.army.max_shield)[agents:].sum()) == life
    assert 20.0 / env._scale == pytest.approx(most)
    assert spec.team_reward == "shared"


def test_every_map_is_in_the_table() -> None:
    """Catches maps that the sizes are not checked for. (2c_vs_64zg is left out: colossi on cliffs.)"""
    assert [row.split()[0] for row in SIZES.split("\n")[1:-1]] == list(MAPS)
    assert envs.SUITES["smac"].tasks == tuple(MAPS)


def test_tasks_are_made_by_name() -> None:
    """Catches a suite that builds something else under its name, and misspelt maps answered without others."""
    env = envs.make("smac/2s3z", 2)
    assert isinstance(env, SmacEnv) and env.num_envs == 2 and env.map is MAPS["2s3z"]
    assert env.spec == envs.spec("smac/2s3z") and env.spec.task_id == "smac/2s3z"
    with pytest.raises(UserError, match=r"unknown task 'smac/2s3s'.*smac/2s3z"):
        envs.make("smac/2s3s", 1)


def test_last_actions_are_part_of_the_state() -> None:
    """Catches last actions from the wrong step, of living agents only, or not zero at first."""
    env = SmacEnv("smac/3m", 2)
    first = env.reset([0, 1])
    assert first.state is not None and not bool(first.state[:, 21:].any())
    step = env.step(torch.tensor([[EAST, STOP, NORTH], [STOP, STOP, SOUTH]]))
    assert step.state is not None
    assert step.state[:, 21:].unflatten(1, (3, 9)).argmax(-1).tolist() == [[4, 1, 2], [1, 1, 3]]
    assert step.state[:, 21:].sum(1).tolist() == [3.0, 3.0]


# Beginnings and ends


def test_episodes_begin_alike_but_for_one_loop() -> None:
    """Catches a random start, which SMAC has not: only how far the enemy has come differs, by one or two loops."""
    env = begun("3m", 64)
    battle, map_ = env.battle_state.battle, env.map
    for index, (_, (x, y)) in enumerate(map_.agents):
        assert battle.x[index].tolist() == pytest.approx([x] * 64) and battle.y[index].tolist() == pytest.approx(
            [y] * 64
        )
    walked = torch.tensor([x for _, (x, _) in map_.opponents])[:, None] - battle.x[3:]
    loops = (walked[0] / (2.25 / 16)).tolist()
    assert sorted({round(value, 2) for value in loops}) == [1.0, 2.0]
    assert bool((battle.goal_x[3:] == 9.0).all() & (battle.goal_y[3:] == 16.0).all())


def test_2m_vs_1z_draws_where_the_enemy_is_sent() -> None:
    """Catches one goal for all battles: it is uniform between the two marines."""
    battle = begun("2m_vs_1z", 256).battle_state.battle
    assert bool((battle.goal_y[2] == 12.0).all())
    assert float(battle.goal_x[2].min()) < 13.2 and float(battle.goal_x[2].max()) > 18.8
    assert float(battle.goal_x[2].mean()) == pytest.approx(16.0, abs=0.4)


@pytest.mark.parametrize(
    ("name", "living", "terminated", "won"),
    [
        ("3m", "all", False, False),
        ("3m", "0", True, True),
        ("3m", "4", True, False),
        ("3m", "", True, False),
        ("MMM", "0 1 9 18 19", False, False),
        ("MMM", "9 18 19", True, False),  # our medivac alone does not count
        ("MMM", "0 19", True, True),  # nor theirs
        ("MMM", "9 19", True, False),  # ours first
        ("MMM", "0 18", False, False),
        ("MMM", "", True, False),
        ("MMM", "0 9", True, True),
    ],
)
def test_who_has_won(name: str, living: str, terminated: bool, won: bool) -> None:
    """Catches a mutual kill that counts as a victory (SMAClite), and battles of medivacs that never end."""
    env = begun(name, 1)
    units = env.army.num_units
    alive = torch.zeros(units, 1)
    alive[range(units) if living == "all" else [int(unit) for unit in living.split()]] = 1.0
    step = restored(env, health=env.army.max_health * alive)
    assert bool(step.terminated) == terminated and bool(won_of(step)) == won and not bool(step.truncated)
    assert not bool(step.rewards.any())


def test_the_mmm_unit_numbers_of_this_file() -> None:
    """Catches a changed order of units, which would make the cases above test something else."""
    names = [unit.name for unit, _ in MAPS["MMM"].agents + MAPS["MMM"].opponents]
    assert [names[unit] for unit in (0, 1, 2, 9, 18, 19)] == [
        "marauder",
        "marauder",
        "marine",
        "medivac",
        "marauder",
        "medivac",
    ]


def test_the_limit_truncates() -> None:
    """Catches a time-out that counts as a defeat (terminated), a limit one off, and a decided last step that counts as
    a time-out."""
    env = begun("3m", 2)
    step = restored(env, steps=59)
    assert not bool(step.finished.any())
    health = env.battle_state.battle.health.clone()
    health[3:, 1] = torch.tensor([6.0, 0.0, 0.0])
    x = env.battle_state.battle.x.clone()
    x[3, 1] = 13.0
    restored(env, health=health, x=x)
    step = env.step(torch.tensor([[STOP] * 3, [STOP, ATTACK, STOP]]))
    assert step.truncated.tolist() == [True, False] and step.terminated.tolist() == [False, True]
    assert won_of(step).tolist() == [False, True]


def test_a_win_is_paid_once() -> None:
    """Catches a bonus paid again in frozen rows or on restoring, and a scale other than 20 for 365."""
    env = begun("3m", 1)
    health, x = env.battle_state.battle.health.clone(), env.battle_state.battle.x.clone()
    health[3:, 0], x[3, 0] = torch.tensor([6.0, 0.0, 0.0]), 13.0
    restored(env, health=health, x=x)
    step = env.step(torch.tensor([[STOP, ATTACK, STOP]]))
    assert step.rewards[0].tolist() == pytest.approx([216 * 20 / 365] * 3)
    again = env.step(torch.tensor([[STOP, STOP, STOP]]))
    assert not bool(again.rewards.any()) and bool(won_of(again))
    assert torch.equal(again.observations, step.observations)


def test_regained_shields_pay() -> None:
    """Catches a clamp where SMAC takes the absolute value: enemies that regain 1 shield each in a step pay 5."""
    env = begun("2s3z", 1)
    battle = env.battle_state.battle
    shield = battle.shield.clone()
    shield[5:] = 10.0
    restored(env, shield=shield)
    step = env.step(torch.full((1, 5), STOP))
    assert step.rewards[0].tolist() == pytest.approx([5 * 20 / 1020] * 5, rel=1e-4)


# Random play


@dataclass
class Played:
    """What a batch of episodes came to: returns [E], won [E], steps [E]."""

    returns: Tensor
    won: Tensor
    lengths: Tensor


def random_actions(step: TimeStep, aggressive: Tensor, source: torch.Generator) -> Tensor:
    """Uniform legal actions; rows that are `aggressive` attack where they may and tend east."""
    mask = mask_of(step)
    weights = torch.rand(mask.shape, generator=source)
    weights[aggressive, :, ATTACK:] += 1.0
    weights[aggressive, :, EAST] += 0.5
    return weights.masked_fill(~mask, -1.0).argmax(-1)


def play(env: SmacEnv, seeds: range, watch: Callable[[BattleState, TimeStep, Tensor, TimeStep], None]) -> Played:
    """One episode per row, half of them aggressive; `watch(state before, step before, actions, step after)`."""
    source, rows = torch.Generator().manual_seed(seeds.start), torch.arange(env.num_envs)
    step = env.reset(seeds)
    returns, lengths = torch.zeros(env.num_envs), torch.zeros(env.num_envs)
    while not bool(step.finished.all()):
        before, state = step, env.battle_state
        actions = random_actions(before, rows % 2 == 0, source)
        step = env.step(actions)
        watch(state, before, actions, step)
        returns += step.rewards[:, 0]
        lengths += ~before.finished
    return Played(returns, won_of(step), lengths)


class Conservation:
    """Checks every step: health falls but for the rules of regeneration, the dead stay dead and see nothing, rewards
    are what the enemies lost, finished rows stand still."""

    def __init__(self, env: SmacEnv) -> None:
        self.env, self.agents = env, env.spec.num_agents
        units = [unit for unit, _ in env.map.agents + env.map.opponents]
        zerg = torch.tensor([0.1367 * (unit.race == "zerg") for unit in units])
        healed = torch.tensor([4.5 * unit.biological for unit in units]) * ("medivac" in {unit.name for unit in units})
        self.health_gain = (zerg + healed)[:, None] + 1e-3
        self.shield_gain = torch.tensor([1.0 * (unit.shield > 0) for unit in units])[:, None] + 1e-4
        self.life = sum(unit.health + unit.shield for unit in units[self.agents :])
        self.scale = 20.0 / (10 * (len(units) - self.agents) + 200 + self.life)

    def __call__(self, state: BattleState, before: TimeStep, actions: Tensor, step: TimeStep) -> None:
        old, new, agents = state.battle, self.env.battle_state.battle, self.agents
        assert bool((new.health - old.health <= self.health_gain).all()), "health rose"
        assert bool((new.shield - old.shield <= self.shield_gain).all()), "shields rose"
        assert bool((new.health >= 0).all() & (new.health <= self.env.army.max_health).all())
        assert bool((new.shield >= 0).all() & (new.shield <= self.env.army.max_shield).all())
        assert not bool((new.alive & ~old.alive).any()), "the dead rose"
        self.rewards(old, new, before, step)
        dead = ~new.alive[:agents].t()
        mask = mask_of(step)
        assert bool(mask[..., 0].eq(dead).all()) and not bool(mask[..., 1:][dead].any())
        assert not bool(step.observations[dead].any())
        assert bool(mask.any(-1).all())
        ended = before.finished
        for name in ("x", "y", "health", "shield", "energy", "cooldown"):
            assert torch.equal(getattr(new, name)[:, ended], getattr(old, name)[:, ended]), f"{name} of a finished row"
        assert not bool(step.rewards[ended].any()) and torch.equal(step.observations[ended], before.observations[ended])
        assert torch.equal(won_of(step)[ended], won_of(before)[ended])

    def rewards(self, old: Battle, new: Battle, before: TimeStep, step: TimeStep) -> None:
        """Reward = |lost health and shields of enemies that lived + 10 per kill| and 200 for a win, scaled."""
        lived, lives = old.alive[self.agents :], new.alive[self.agents :]
        had = (old.health + old.shield)[self.agents :].double()
        has = torch.where(lives, (new.health + new.shield)[self.agents :], 0.0).double()
        raw = (torch.where(lived, had - has, 0.0).sum(0) + 10.0 * (lived & ~lives).sum(0)).abs()
        raw += 200.0 * (won_of(step) & ~won_of(before))
        assert torch.allclose(step.rewards[:, 0].double(), raw * self.scale, atol=2e-5), "rewards"
        assert torch.equal(step.rewards, step.rewards[:, :1].expand_as(step.rewards))


def conserve(name: str, episodes: int) -> Played:
    parts = []
    for start in range(0, episodes, BATCH):
        env = SmacEnv(f"smac/{name}", min(BATCH, episodes - start))
        parts.append(play(env, range(start, start + env.num_envs), Conservation(env)))
    return Played(*(torch.cat([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(Played)))


@pytest.mark.parametrize(
    ("name", "episodes", "cap"),
    [
        ("3m", 2048, 8.49315),
        ("8m", 512, 13.4375),
        ("5m_vs_6m", 1024, 12.0755),
        ("2s3z", 512, float("inf")),
    ],
)
def test_what_every_battle_conserves(name: str, episodes: int, cap: float) -> None:
    """Catches health from nothing, unpaid or doubly paid damage, and returns no battle can have: below the cap
    without a win, 20 with one, where the enemy cannot regain what it lost."""
    played = conserve(name, int(EPISODES or episodes))
    assert bool(played.returns.max() > 0)
    assert int(played.lengths.max()) <= MAPS[name].battle.max_steps
    assert float(played.returns[~played.won].max()) < cap
    if name == "3m":
        assert bool(played.won.any())
    if cap < 20:
        assert torch.allclose(played.returns[played.won], torch.tensor(20.0), atol=1e-3)
    else:
        assert float(played.returns[played.won].sum()) >= 20.0 * int(played.won.sum()) - 1e-2


@pytest.mark.parametrize("name", sorted(set(MAPS) - {"3m", "8m", "5m_vs_6m", "2s3z", "corridor", "25m", "27m_vs_30m"}))
def test_the_other_maps_conserve_too(name: str) -> None:
    """Catches what only some units do: heals, blasts, sweeps, zerg regeneration."""
    env = SmacEnv(f"smac/{name}", 8)
    watch, source = Conservation(env), torch.Generator().manual_seed(1)
    step = env.reset(range(8))
    for _ in range(30):
        before, state = step, env.battle_state
        actions = random_actions(step, torch.arange(8) % 4 > 0, source)
        step = env.step(actions)
        watch(state, before, actions, step)


# The contract


@pytest.mark.parametrize("name", ["3m", "2s3z", pytest.param("so_many_baneling", marks=pytest.mark.slow)])
def test_the_contract_holds(name: str) -> None:
    """Catches every clause of `VectorEnv` that the checks know, to the last bit in batches of any size."""
    check_vector_env(
        lambda num_envs: SmacEnv(f"smac/{name}", num_envs), seeds_matter=False, tolerance=0.0, compared_steps=1000
    )


def own_actions(step: TimeStep, seeds: Tensor, index: int) -> Tensor:
    """Legal actions that depend on a row's seed and mask only."""
    mask = mask_of(step)
    draws = seeding.row_uniform(seeds, 1000 + index, mask[0].numel(), device="cpu").float().view(mask.shape)
    draws[:, :, EAST] += 0.3
    return draws.masked_fill(~mask, -1.0).argmax(-1)


def rolled(name: str, seeds: Tensor, steps: int) -> list[TimeStep]:
    env = SmacEnv(f"smac/{name}", len(seeds))
    done = [env.reset(seeds.tolist())]
    for index in range(steps):
        done.append(env.step(own_actions(done[-1], seeds, index)))
    return done


@pytest.mark.parametrize("name", ["3m", "2s3z", "MMM"])
def test_a_row_is_the_same_in_any_company(name: str) -> None:
    """Catches numbers drawn across rows, instructions that round with the batch, and a row's place that matters."""
    seeds = torch.tensor([5, 17, 2**62, 4, 90])
    few, steps = rolled(name, seeds, 25), 25
    many = rolled(name, torch.cat([torch.arange(100, 177), seeds.flip(0)]), steps)
    for one, other in zip(few, many, strict=True):
        for field in ("observations", "state", "rewards", "terminated", "action_mask", "won"):
            assert torch.equal(getattr(one, field), getattr(other, field)[-5:].flip(0)), field


def test_blocks_of_battles_do_not_mix() -> None:
    """Catches battles written back to another row where a batch is advanced in blocks, and rows that end early."""
    rows = BLOCK_SIZE + 37
    seeds = torch.arange(rows)
    many = rolled("3m", seeds, 18)
    chosen = torch.tensor([0, 63, 64, BLOCK_SIZE - 1, BLOCK_SIZE, rows - 1])
    few = rolled("3m", seeds[chosen], 18)
    assert bool(many[-1].finished.any()) and not bool(many[-1].finished.all())
    for one, other in zip(few, many, strict=True):
        assert torch.equal(one.observations, other.observations[chosen])
        assert torch.equal(one.rewards, other.rewards[chosen])


@pytest.mark.parametrize("name", ["3m", "2s3z", "MMM", "2m_vs_1z"])
def test_a_state_continues(name: str) -> None:
    """Catches anything that a battle goes on from and `battle_state` does not hold, and states that share memory."""
    env, seeds = SmacEnv(f"smac/{name}", 6), torch.arange(6)
    step = env.reset(seeds.tolist())
    for index in range(18):
        step = env.step(own_actions(step, seeds, index))
    state = env.battle_state
    copies = [getattr(state.battle, f.name).clone() for f in dataclasses.fields(state.battle)]
    env.step(own_actions(step, seeds, 18))  # must not touch what was handed out
    other = SmacEnv(f"smac/{name}", 6)
    other.reset(seeds.tolist())
    pair = [env.set_state(state), other.set_state(state)]
    assert torch.equal(pair[0].observations, step.observations) and torch.equal(mask_of(pair[0]), mask_of(step))
    for index in range(8):
        actions = own_actions(pair[0], seeds, 50 + index)
        pair = [env.step(actions), other.step(actions)]
        for field in ("observations", "state", "rewards", "terminated", "action_mask"):
            assert torch.equal(getattr(pair[0], field), getattr(pair[1], field)), field
    for field, copy in zip(dataclasses.fields(state.battle), copies, strict=True):
        assert torch.equal(getattr(state.battle, field.name), copy), f"{field.name} of a kept state changed"


def test_seeds_decide_the_battle() -> None:
    """Catches draws that ignore the seed: the same orders under other seeds end otherwise; the same seeds do not."""
    env = SmacEnv("smac/3m", 16)

    def rested(seeds: range) -> list[float]:
        """How far all weapons are from ready after eight steps of the same orders."""
        step = env.reset(seeds)
        for _ in range(8):
            step = env.step((mask_of(step) * torch.tensor([0.1, 1, 2, 2, 4, 2, 7, 6, 5])).argmax(-1))
        return env.battle_state.battle.cooldown.sum(0).tolist()

    first = rested(range(16))
    assert first == rested(range(16)) and len(set(first)) > 8
    assert first != rested(range(16, 32))


# Refusals


def test_no_illegal_action_is_accepted() -> None:
    """Catches a mask that binds nobody: every illegal choice of every agent is refused by name, and changes nothing."""
    env = begun("3m", 2)
    health = env.battle_state.battle.health.clone()
    health[1, 1] = 0.0
    step = restored(env, health=health)
    legal, state = mask_of(step), env.battle_state
    assert legal[1, 1].tolist() == [True] + [False] * 8
    good = legal.int().argmax(-1)
    for row, agent, action in (~legal).nonzero().tolist():
        actions = good.clone()
        actions[row, agent] = action
        allowed = legal[row, agent].nonzero()[:, 0].tolist()
        with pytest.raises(UserError) as error:
            env.step(actions)
        message = str(error.value)
        assert f"row {row}, agent_{agent}: " in message and f"actions {allowed}, got {action};" in message
    for action in (-1, 9):
        actions = good.clone()
        actions[0, 2] = action
        with pytest.raises(UserError, match=rf"row 0, agent_2: .*, got {action};"):
            env.step(actions)
    after = env.battle_state
    assert torch.equal(after.battle.x, state.battle.x) and torch.equal(after.steps, state.steps)


def test_other_refusals() -> None:
    """Catches bad input that is taken for something else, and messages that do not say what would be right."""
    with pytest.raises(UserError, match=r"unknown SMAC map '3n'.*3m"):
        SmacEnv("smac/3n", 1)
    with pytest.raises(UserError, match=r"unknown SMAC map '2s3s'.*2s3z"):
        SmacEnv("smac/2s3s", 1)
    with pytest.raises(UserError, match="at least one environment, got num_envs=0"):
        SmacEnv("smac/3m", 0)
    env = SmacEnv("smac/3m", 2)
    with pytest.raises(UserError, match=r"no episode has begun; call reset\(seeds\) first"):
        env.step(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(UserError, match="expected 2 seeds, one per environment, got 3"):
        env.reset([1, 2, 3])
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match=r"seeds must be in \[0, 2\*\*63\)"):
            env.reset([0, seed])
    env.reset([0, 1])
    stops = torch.full((2, 3), STOP)
    for actions in (stops.float(), stops.bool(), stops[:1], stops[:, :2], stops[..., None]):
        with pytest.raises(
            UserError, match=r"expected actions as integers of shape \(2, 3\) on cpu, got torch\.\w+ of"
        ):
            env.step(actions)
    with pytest.raises(UserError, match=r"expected actions as integers of shape .* on cpu, got .* on meta"):
        env.step(stops.to("meta"))
    env.step(stops.to(torch.int32))


def test_states_that_fit_no_battle_are_refused() -> None:
    """Catches states of another batch, of another map, or with numbers that are none."""
    env, state = begun("3m", 2), begun("3m", 3).battle_state
    with pytest.raises(
        UserError,
        match=r"expected finite battle.x, float32 or int64, of shape \(6, 2\), got torch.float32 of shape \(6, 3\)",
    ):
        env.set_state(state)
    own = env.battle_state
    broken = own.battle.health.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"expected finite battle\.health"):
        env.set_state(dataclasses.replace(own, battle=dataclasses.replace(own.battle, health=broken)))
    with pytest.raises(UserError, match=r"expected state.steps as int64 of shape \(2,\)"):
        env.set_state(dataclasses.replace(own, steps=torch.zeros(2)))
    with pytest.raises(UserError, match=r"expected state.last_actions as int64 of shape \(3, 2\)"):
        env.set_state(dataclasses.replace(own, last_actions=own.last_actions.t()))


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("last_actions", 99, r"last_actions from -1 to 8, got 99 to 99"),
        ("target", 77, r"battle.target from -1 to 5, got 77 to 77"),
    ],
)
def test_numbers_beyond_what_there_is_are_refused(part: str, value: int, says: str) -> None:
    """Catches an index that is taken here and breaks a step later; the refused state changes nothing."""
    env = SmacEnv("smac/3m", 2)
    env.reset([1, 2])
    state = env.battle_state
    if part == "target":
        wrong = dataclasses.replace(
            state, battle=dataclasses.replace(state.battle, target=torch.full_like(state.battle.target, value))
        )
    else:
        wrong = dataclasses.replace(state, last_actions=torch.full_like(state.last_actions, value))
    with pytest.raises(UserError, match=says):
        env.set_state(wrong)
    assert torch.equal(env.battle_state.battle.x, state.battle.x)
