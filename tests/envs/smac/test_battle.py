"""Battles of the embedded SMAC against hand calculation, to the game loop; then what holds in every battle.

Weapons work out like this: an attack begins in the first loop in reach with a loaded weapon, damage is taken after the
damage point (loops later, rounded up), and the next attack begins one period (plus jitter) after the last one began.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from marl_flow.envs.smac.battle import OFF_MAP, TYPES, Battle, Ground, begin, build_army, order_allies
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.envs.smac.maps import MAPS, walkable
from marl_flow.envs.smac.step import advance
from marl_flow.envs.smac.terrain import build_ground
from marl_flow.envs.smac.units import LOOPS_PER_STEP, UNITS

STOP, NORTH, SOUTH, EAST, WEST, ATTACK = 1, 2, 3, 4, 5, 6
NO_JITTER = 1 / 3  # of draws uniform in [0, 1), which become -1 to +2 loops
OPEN = build_ground(MAPS["3s_vs_3z"], torch.device("cpu"))

Placed = tuple[str, float, float]


class Fight:
    """One battle, played loop by loop. Without jitter and in the order of the units' numbers unless told otherwise.

    Enemies stand where they are placed until they find a target; `goals` sends them elsewhere."""

    def __init__(
        self,
        allies: Sequence[Placed],
        enemies: Sequence[Placed],
        *,
        goals: Sequence[tuple[float, float]] = (),
        ground: Ground = OPEN,
        heal: bool = False,
        jitter: float = NO_JITTER,
    ) -> None:
        units = [*allies, *enemies]
        self.count, self.ground, self.heal, self.jitter = len(allies), ground, heal, jitter
        types = torch.tensor([[TYPES.index(name)] for name, _, _ in units])
        self.army = build_army(types, len(allies), frozenset(name for name, _, _ in units))
        x, y = (torch.tensor([[unit[axis]] for unit in units], dtype=torch.float32) for axis in (1, 2))
        goal_x, goal_y = x.clone(), y.clone()
        for index, (to_x, to_y) in enumerate(goals, self.count):
            goal_x[index], goal_y[index] = to_x, to_y
        self.battle = begin(self.army, x, y, goal_x, goal_y)
        self.priority = torch.linspace(0.1, 0.9, len(units))[:, None]
        self.loops = 0

    def restore(self, **values: Sequence[float]) -> Fight:
        """Sets columns of the state; shields then wait as after damage."""
        columns = {name: torch.tensor(column, dtype=torch.float32)[:, None] for name, column in values.items()}
        self.battle = replace(self.battle, **columns)
        self.battle.since_damage.zero_()
        return self

    def kill(self, unit: int) -> Fight:
        self.battle.health[unit] = self.battle.shield[unit] = 0.0
        self.battle.x[unit] = self.battle.y[unit] = OFF_MAP + unit
        return self

    def order(self, *actions: int) -> Fight:
        order_allies(self.battle, self.army, torch.tensor(actions)[:, None], self.heal)
        return self

    def play(self, loops: int) -> Fight:
        """That many loops as one call (at most a step): friends' calls for help are heard between calls."""
        draws = torch.cat([torch.full_like(self.priority, self.jitter)[None], self.priority.expand(loops, -1, -1)])
        advance(self.battle, self.army, self.ground, draws)
        self.loops += loops
        return self

    def loop(self) -> Fight:
        return self.play(1)

    def step(self, *actions: int) -> Fight:
        return self.order(*actions).play(LOOPS_PER_STEP)

    def of(self, name: str) -> list[float]:
        return [round(value, 4) for value in getattr(self.battle, name)[:, 0].tolist()]

    @property
    def life(self) -> list[float]:
        return [round(value, 4) for value in (self.battle.health + self.battle.shield)[:, 0].tolist()]

    def damage_log(self, loops: int) -> list[tuple[int, int, float]]:
        """(loop, unit, life lost) of everything that hurts in the next loops, counted from 1; orders stay."""
        log = []
        for _ in range(loops):
            before = self.life
            self.loop()
            lost = [round(old - new, 3) for old, new in zip(before, self.life, strict=True)]
            log += [(self.loops, unit, value) for unit, value in enumerate(lost) if value > 0]
        return log


def shots(log: list[tuple[int, int, float]], unit: int) -> list[int]:
    """Loops in which a unit is hurt."""
    return [loop for loop, hurt, _ in log if hurt == unit]


# Single weapons


def test_marines_shoot_by_the_table() -> None:
    """Catches another damage point (0.8 loops: the hit falls one loop after the start), multiplayer periods (10 loops),
    a reload that starts with the damage, and whole-loop rounding that adds up. Attacks begin at 1 + 13.7728 n."""
    fight = Fight([("marine", 10, 16)], [("marine", 15, 16)]).order(ATTACK)
    log = fight.damage_log(110)
    expected = [2, 16, 30, 44, 58, 71, 85, 99]  # one loop after 1, 14.8, 28.5, 42.3, 56.1, 69.9, 83.6, 97.4
    assert shots(log, 1) == expected
    assert {value for _, _, value in log} == {6.0, 3.0}
    # the enemy, whose turn comes later, is dead when its eighth shot is due
    assert shots(log, 0) == expected[:-1]
    assert fight.of("health") == [3.0, 0.0]


def test_a_second_marine_halves_the_duel() -> None:
    """Catches enemies that split their fire or change a living target, and shots that are lost when two aim alike."""
    fight = Fight([("marine", 10, 16), ("marine", 10, 17)], [("marine", 15, 16.2)]).order(ATTACK, ATTACK)
    log = fight.damage_log(60)
    assert shots(log, 2) == [2, 16, 30, 44]
    assert shots(log, 0) == [2, 16, 30] and shots(log, 1) == []  # the nearer one; dead before its fourth shot
    assert fight.of("health") == [27.0, 45.0, 0.0]


def test_instant_weapons_do_not_overkill() -> None:
    """Catches shots spent on a target that died earlier in the same loop: the third marine keeps its shot and hits
    the next target one step later, the other two reload."""
    allies = [("marine", 10.0, 15.0), ("marine", 10.0, 16.0), ("marine", 10.0, 17.0)]
    fight = Fight(allies, [("marine", 15, 16), ("zealot", 15.4, 17)])
    fight.restore(health=[45, 45, 45, 12, 100]).step(ATTACK, ATTACK, ATTACK)
    assert fight.of("health")[3] == 0 and fight.life[4] == 150
    assert [value > 0 for value in fight.of("cooldown")[:3]] == [True, True, False]
    log = fight.order(ATTACK + 1, ATTACK + 1, ATTACK + 1).damage_log(3)
    assert [(loop, unit) for loop, unit, _ in log if unit == 4] == [(10, 4)]


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_mutual_killers_one_survives(first: int) -> None:
    """Catches simultaneous fire: of two shots due in one loop the first in turn kills the other shooter."""
    fight = Fight([("marine", 10, 16)], [("marine", 15, 16)]).restore(health=[6.0, 6.0])
    fight.priority = torch.tensor([[0.4], [0.4]])
    fight.priority[first] = 0.1
    fight.order(ATTACK).play(2)
    assert [value > 0 for value in fight.of("health")] == [first == 0, first == 1]


def test_turns_are_drawn_anew_in_every_loop() -> None:
    """Catches one order of turns for a whole step: the second row of priorities belongs to the second loop, in which
    the marines' damage falls."""
    fight = Fight([("marine", 10, 16)], [("marine", 15, 16)]).restore(health=[6.0, 6.0]).order(ATTACK)
    draws = torch.full((9, 2, 1), NO_JITTER)
    draws[1], draws[2] = torch.tensor([[0.1], [0.9]]), torch.tensor([[0.9], [0.1]])
    advance(fight.battle, fight.army, OPEN, draws)
    assert fight.of("health") == [0.0, 6.0]


def test_two_projectiles_kill_each_other() -> None:
    """Catches projectiles that vanish with their shooter: two stalkers' last shots are both in the air."""
    fight = Fight([("stalker", 10, 16)], [("stalker", 16, 16)]).restore(health=[13.0, 13.0], shield=[0.0, 0.0])
    fight.order(ATTACK).damage_log(12)
    assert fight.of("health") == [0.0, 0.0]


def test_stalker_shots_fly() -> None:
    """Catches a shot that lands at once, a damage point not waited for (2.67 loops: fired in the fourth loop), and
    another way (18.75 cells a second = 1.17 a loop; six cells between centres are 4.75 between edges: 4.05 loops)."""
    fight = Fight([("stalker", 10, 16)], [("stalker", 16, 16)]).order(ATTACK)
    assert [entry for entry in fight.damage_log(40) if entry[1] == 1] == [(9, 1, 14.0), (33, 1, 14.0)]
    near = Fight([("stalker", 10, 16)], [("stalker", 12, 16)]).order(ATTACK)
    assert shots(near.damage_log(12), 1) == [5]


def test_projectiles_overkill() -> None:
    """Catches a stalker that knows of the shot already in the air: both fire, one kills, both reload."""
    fight = Fight([("stalker", 10, 16), ("stalker", 10, 18)], [("zealot", 15, 17)])
    fight.restore(health=[80, 80, 5.0], shield=[80, 80, 0.0]).order(ATTACK, ATTACK)
    log = fight.damage_log(16)
    assert log == [(log[0][0], 2, 5.0)] and fight.of("health")[2] == 0
    assert min(fight.of("cooldown")[:2]) > 0


def test_a_homing_shot_follows_who_runs() -> None:
    """Catches projectiles aimed at a place: the target walks out of reach while the shot is in the air."""
    fight = Fight([("zealot", 10, 16)], [("stalker", 17.1, 16)]).order(WEST)
    fight.play(8).order(WEST)
    assert [value for loop, unit, value in fight.damage_log(8) if unit == 0] == [10.0]


def test_marauders_shoot_at_once_and_their_grenades_fly() -> None:
    """Catches a default damage point (0 here) and the wrong bonus: 20 on armoured less 1 of armour; 4.875
    cells between the edges at 1.25 a loop make 3.9 loops."""
    fight = Fight([("marauder", 10, 16)], [("marauder", 16, 16)]).order(ATTACK)
    assert [entry for entry in fight.damage_log(32) if entry[1] == 1] == [(5, 1, 19.0), (29, 1, 19.0)]


def test_zealots_strike_twice() -> None:
    """Catches both blows at once, a lost or endless second one (0.28 s = 4.48 loops later) and 16 in one hit."""
    fight = Fight([("zealot", 10, 16)], [("stalker", 11, 16)]).order(ATTACK)
    assert [entry for entry in fight.damage_log(30) if entry[1] == 1] == [
        (1, 1, 8.0),
        (6, 1, 8.0),
        (21, 1, 8.0),
        (26, 1, 8.0),
    ]


def test_the_second_blow_needs_a_living_zealot() -> None:
    """Catches blows from the dead: the zealot hits once, dies of the second loop's shot, and hits no more."""
    fight = Fight([("marine", 11, 16)], [("zealot", 10.1, 16)]).restore(health=[45, 3.0], shield=[0.0, 0.0])
    assert fight.order(ATTACK).damage_log(12) == [(1, 0, 8.0), (2, 1, 3.0)]


def test_a_second_blow_at_the_dead_does_nothing() -> None:
    """Catches damage to a corpse, which would count or bring it back."""
    fight = Fight([("zealot", 10, 16)], [("marine", 10.9, 16)]).restore(health=[100.0, 8.0]).order(ATTACK)
    assert [entry for entry in fight.damage_log(12) if entry[1] == 1] == [(1, 1, 8.0)]
    assert fight.of("health")[1] == 0


# Damage of one volley after armour: smac.md 7. Shields have no armour; a volley is all blows of one attack.

VOLLEYS = [
    ("marine", "marine", False, 6),
    ("marine", "zealot", False, 5),
    ("marine", "zealot", True, 6),
    ("marine", "stalker", False, 5),
    ("marine", "medivac", False, 5),
    ("stalker", "zealot", True, 10),
    ("stalker", "zealot", False, 9),
    ("stalker", "stalker", True, 14),
    ("stalker", "stalker", False, 13),
    ("stalker", "marine", False, 10),
    ("stalker", "spine_crawler", False, 12),
    ("zealot", "zealot", True, 16),
    ("zealot", "zealot", False, 14),
    ("zealot", "stalker", False, 14),
    ("zealot", "marine", False, 16),
    ("zergling", "zealot", False, 4),
    ("zergling", "zergling", False, 5),
    ("spine_crawler", "stalker", True, 30),
    ("spine_crawler", "stalker", False, 29),
    ("marauder", "marauder", False, 19),
    ("marauder", "marine", False, 10),
    ("marauder", "medivac", False, 0),
    ("hydralisk", "zealot", True, 12),
    ("hydralisk", "zealot", False, 11),
    ("baneling", "zealot", True, 35),
    ("baneling", "zergling", False, 35),
    ("baneling", "stalker", False, 19),
    ("baneling", "spine_crawler", False, 0),
    ("colossus", "zealot", True, 40),
    ("colossus", "stalker", False, 38),
]


@pytest.mark.parametrize(("shooter", "target", "shielded", "damage"), VOLLEYS)
def test_damage_of_a_volley(shooter: str, target: str, shielded: bool, damage: float) -> None:
    """Catches multiplayer damage, a bonus on the wrong attribute, armour off shields, armour taken once per volley
    instead of once per blow, and weapons that hit what they cannot."""
    gap = 0.9 * (UNITS[shooter].separation + UNITS[target].separation) + 0.05
    fight = Fight([(shooter, 10, 16)], [(target, 10 + gap, 16)])
    fight.restore(shield=[UNITS[shooter].shield, UNITS[target].shield * shielded])
    lost = [
        value for _, unit, value in fight.order(ATTACK).damage_log(16 if shooter == "colossus" else 11) if unit == 1
    ]
    assert sum(lost) == pytest.approx(damage, abs=0.02)  # zerg regain 0.017 in that loop


def test_what_breaks_a_shield_meets_armour() -> None:
    """Catches armour taken from the whole hit or not at all: a stalker's 14 on 4 shield are 4 and 10 - 1."""
    fight = Fight([("stalker", 10, 16)], [("stalker", 12, 16)]).restore(shield=[80, 4.0])
    fight.order(ATTACK).damage_log(8)
    assert fight.of("shield")[1] == 0 and fight.of("health")[1] == 71.0


def test_the_least_damage_of_a_hit() -> None:
    """Catches hits that armour swallows whole: at least 0.5 goes through, but only where something is left over."""
    for shield, left in ((9.75, 99.5), (10.0, 100.0)):
        fight = Fight([("stalker", 10, 16)], [("zealot", 12, 16)]).restore(shield=[80, shield])
        fight.order(ATTACK).damage_log(7)
        assert fight.of("shield")[1] == 0 and fight.of("health")[1] == left


# Orders and weapons


def test_a_new_order_frees_a_wound_up_weapon() -> None:
    """Catches a shot that happens although its shooter was sent away, and a weapon that then has to reload for a shot
    never taken. The stalker's damage point is 2.67 loops."""
    fight = Fight([("stalker", 10, 16)], [("spine_crawler", 16, 16)]).order(ATTACK).play(2)
    assert fight.of("windup")[0] < 3 and fight.of("cooldown")[0] > 20
    fight.order(WEST)
    assert fight.of("cooldown")[0] == 0
    assert shots(fight.damage_log(16), 1) == []
    fight.order(ATTACK)
    assert shots(fight.damage_log(16), 1) == [31]  # half a cell back takes until loop 21; begun in 22, fired in 25


def test_the_same_order_again_does_not_disturb_a_windup() -> None:
    """Catches a windup restarted by every decision: the shot of a stalker ordered twice falls when it was due."""
    fight = Fight([("stalker", 10, 16)], [("stalker", 16, 16)]).order(ATTACK).play(2).order(ATTACK)
    assert shots(fight.damage_log(12), 1) == [9]


def mean_attack_interval(unit: str, loops: int) -> float:
    """Loops between the attacks of a unit that is told to attack in every step, in 64 battles with random draws."""
    source = torch.Generator().manual_seed(0)
    fight = Fight([(unit, 10, 16)], [("spine_crawler", 15, 16)])
    battle = fight.battle.columns(torch.zeros(64, dtype=torch.int64))
    first, last, count = torch.zeros(64), torch.zeros(64), torch.zeros(64)
    for loop in range(1, loops + 1):
        battle.health[:] = battle.shield[0] = 80.0
        if loop % LOOPS_PER_STEP == 1:
            order_allies(battle, fight.army, torch.full((1, 64), ATTACK), False)
        before = battle.cooldown[0].clone()
        advance(battle, fight.army, OPEN, torch.rand(2, 2, 64, generator=source))
        begun = battle.cooldown[0] > before
        first = torch.where(begun & (count == 0), loop, first)
        last = torch.where(begun, loop, last)
        count += begun
    return float(((last - first) / (count - 1)).mean())


@pytest.mark.parametrize(("unit", "period"), [("marine", 13.77), ("stalker", 23.04)])
def test_repeated_orders_do_not_slow_a_weapon(unit: str, period: float) -> None:
    """Catches reloading that waits for the next decision, jitter of another range, and multiplayer periods: the mean
    is the period and half a loop (about 14.3 loops for marines, as in a real episode)."""
    assert mean_attack_interval(unit, 400) == pytest.approx(period + 0.5, abs=0.1)


@pytest.mark.parametrize(("draw", "loops"), [(0.0, 13), (0.5, 15), (0.999, 16)])
def test_jitter(draw: float, loops: int) -> None:
    """Catches jitter on another scale: -1 to +2 loops, so that 12.8, 14.3 and 15.8 loops pass between two attacks."""
    fight = Fight([("marine", 10, 16)], [("spine_crawler", 15, 16)], jitter=draw).order(ATTACK)
    first, second = shots(fight.damage_log(22), 1)[:2]
    assert second - first == loops


def test_range_slop() -> None:
    """Catches attacks cancelled by a target that drifts: within one cell beyond reach a begun shot is still taken;
    farther out it is not, and the weapon stays loaded."""
    for drift, hit in ((0.9, True), (1.2, False)):
        fight = Fight([("stalker", 10, 16)], [("zealot", 17.0, 16)], goals=[(17.0, 16.0)]).order(ATTACK).loop()
        fight.battle.x[1] += drift
        fight.army = replace(fight.army, speed=torch.zeros_like(fight.army.speed))
        log = fight.damage_log(3)
        assert (fight.of("flight")[0] < 1e5) == hit and log == []
        assert (fight.of("cooldown")[0] > 0) == hit


def test_who_is_told_to_attack_walks_there() -> None:
    """Catches an order that only counts in reach: the mask opens at 6 for zealots too, who then walk to 1.1."""
    fight = Fight([("zealot", 10, 16)], [("spine_crawler", 15.9, 16)])
    for _ in range(5):
        fight.step(ATTACK)
    assert fight.of("x")[0] == pytest.approx(15.9 - 0.1 - 0.5 - 0.875, abs=1e-3)
    assert 250 < fight.of("health")[1] < 295


def test_medivacs_orders_mean_friends() -> None:
    """Catches heals that attack, and attacks that heal: choice 6 + k is ally k for a medivac, enemy k for others."""
    fight = Fight([("marine", 10, 16), ("medivac", 10, 15)], [("marine", 14, 16)], heal=True)
    fight.restore(health=[20, 150, 45]).order(ATTACK, ATTACK)
    assert fight.battle.target[:2, 0].tolist() == [2, 0]


# Walking


@pytest.mark.parametrize(
    ("unit", "length"), [("marine", 1.125), ("zealot", 1.125), ("stalker", 1.4766), ("colossus", 1.125)]
)
def test_a_step_is_as_long_as_in_the_game(unit: str, length: float) -> None:
    """Catches "Faster" speeds (1.575), a direction mixed up, and a step that ends at the order's two cells."""
    for action, dx, dy in ((NORTH, 0, 1), (SOUTH, 0, -1), (EAST, 1, 0), (WEST, -1, 0)):
        fight = Fight([(unit, 10, 16)], [("spine_crawler", 25, 25)])
        fight.step(action).step(action)
        assert fight.of("x")[0] == pytest.approx(10 + 2 * dx * length, abs=2e-4)
        assert fight.of("y")[0] == pytest.approx(16 + 2 * dy * length, abs=2e-4)
    assert Fight([(unit, 10, 16)], [("spine_crawler", 25, 25)]).step(STOP).of("x")[0] == 10


def test_walls_stop_the_part_of_a_step_that_enters_them() -> None:
    """Catches walking through walls, and walls that hold who walks along them: at an octagon's corner a marine walks
    west into the wall, then north-west along it and into the next row of cells, which is wider."""
    ground, grid = build_ground(MAPS["2m_vs_1z"], torch.device("cpu")), walkable("octagon")
    fight = Fight([("marine", 8.5, 8.3)], [("spine_crawler", 1.0, 20.0)], ground=ground)
    assert grid[8, 8] and not grid[7, 8] and not grid[7, 9] and grid[7, 10]
    for _ in range(3):
        fight.step(WEST)
    assert 8.0 <= fight.of("x")[0] < 8.15 and fight.of("y")[0] == pytest.approx(8.3)
    for _ in range(4):
        fight.step(ATTACK)
        x, y = fight.of("x")[0], fight.of("y")[0]
        assert grid[int(x), int(y)]
    assert y > 11 and x < 8


def test_kiting() -> None:
    """Catches stalkers that cannot run from zealots (multiplayer charge, equal speeds) or that reload while standing
    only: one decision of shooting and three of walking keep the distance and are never punished."""
    fight = Fight([("stalker", 8, 16)], [("zealot", 2.1, 16)], goals=[(29.0, 16.0)])
    distances = []
    for index in range(16):
        fight.step(ATTACK if index % 4 == 0 else EAST)
        distances.append(fight.of("x")[0] - fight.of("x")[1])
    assert min(distances) > 4.5 and fight.life[0] == 160
    assert fight.life[1] == 150 - 4 * 10


# Recovery


def test_shields_come_back_after_ten_calm_seconds() -> None:
    """Catches regeneration under fire, another delay (160 loops) and another rate (2 a second = 1 a step)."""
    fight = Fight([("zealot", 10, 16)], [("marine", 15.9, 16)]).restore(shield=[50.0, 0.0], health=[100.0, 45.0])
    fight.battle.target[1] = 0
    fight.battle.windup[1] = 8.0  # the shot falls in the last loop of the first step
    fight.order(STOP).play(8)
    assert fight.of("shield")[0] == 44.0
    fight.kill(1)
    shields = [fight.play(8).of("shield")[0] for _ in range(24)]
    assert shields[18] == 44.0 and shields[19] <= 44.125
    assert [round(b - a, 3) for a, b in itertools.pairwise(shields[19:])] == [1.0] * 4
    fight.battle.shield[0] = 49.9
    assert fight.play(8).of("shield")[0] == 50.0


def test_zerg_heal_and_the_others_do_not() -> None:
    """Catches terran or protoss health that grows, and zerg that heal at the "Faster" rate: 0.2734 a second."""
    types = ["zergling", "hydralisk", "marine", "zealot"]
    fight = Fight([(kind, 5.0 + 3 * index, 5.0) for index, kind in enumerate(types)], [("spine_crawler", 25, 25)])
    fight.restore(health=[10.0, 79.95, 10.0, 10.0, 100.0], shield=[0, 0, 0, 50.0, 0])
    fight.step(STOP, STOP, STOP, STOP)
    assert fight.of("health") == pytest.approx([10.1367, 80.0, 10.0, 10.0, 100.1367], abs=1e-3)


def test_medivacs_heal() -> None:
    """Catches another rate (9 a second = 4.5 a step) or price (a third of an energy point), healing beyond 4 cells
    plus the radii, of machines, or past full health, and energy that does not come back (0.28 a step)."""
    near, far = 10 + 4 + 0.75 + 0.375 - 0.01, 10 + 4 + 0.75 + 0.375 + 2.0
    fight = Fight([("medivac", 10, 16), ("marine", near, 16)], [("marine", 28, 28)], heal=True)
    fight.restore(health=[150, 20, 45]).step(ATTACK + 1, STOP)
    assert fight.of("health")[1] == pytest.approx(24.5, abs=1e-3)
    assert fight.of("energy")[0] == pytest.approx(50 - 1.5 + 0.28125, abs=1e-3)
    fight.restore(health=[150, 43, 45]).step(ATTACK + 1, STOP)
    assert fight.of("health")[1] == 45.0
    fight = Fight([("medivac", 10, 16), ("marine", far, 16)], [("marine", 28, 28)], heal=True)
    fight.restore(health=[150, 20, 45]).step(ATTACK + 1, STOP)
    assert fight.of("health")[1] == 20.0 and fight.of("x")[0] == pytest.approx(10 + 1.375, abs=1e-3)
    fight = Fight([("medivac", 10, 16), ("marine", 12, 16)], [("marine", 28, 28)], heal=True)
    fight.restore(health=[150, 20, 45], energy=[0.5, 0, 0]).step(ATTACK + 1, STOP)
    assert 21.4 < fight.of("health")[1] < 22.6 and 0 <= fight.of("energy")[0] < 0.1


def test_enemy_medivacs_choose_the_worst_hurt() -> None:
    """Catches healers that heal the full, the nearest, or the other side."""
    enemies = [("medivac", 20, 16), ("marine", 21, 16), ("marine", 20, 18), ("marauder", 22, 18)]
    fight = Fight([("marine", 5, 16)], enemies).restore(health=[10, 150, 30, 20, 125]).step(STOP)
    assert fight.of("health") == pytest.approx([10, 150, 30, 24.5, 125], abs=1e-3)


# Blasts


def test_banelings_blast_once_around_themselves() -> None:
    """Catches splash at the target instead of the baneling, another radius (2.2 and the victim's own), friendly fire,
    and dead banelings that burst again (in any later loop)."""
    edge = 2.2 + 0.5
    allies = [("zealot", 10, 16), ("zealot", 11 + edge - 0.02, 16), ("zealot", 11, 16 + edge + 0.02)]
    fight = Fight(allies, [("baneling", 11, 16), ("baneling", 12.5, 14.5)]).order(STOP, STOP, STOP)
    fight.battle.health[4] = 5.0
    fight.play(1)
    assert fight.life[:4] == [115.0, 115.0, 150.0, 0.0] and fight.life[4] > 0


def test_the_dead_do_not_burst_again() -> None:
    """Catches banelings that go on bursting from where the dead are kept, in the corners of the ground too."""
    corners = [(x, y) for x in (2.5, 29.5) for y in (2.5, 29.5)]
    fight = Fight([("zealot", x, y) for x, y in corners], [("baneling", 16, 16), ("zergling", 16, 10)])
    fight.kill(4).order(STOP, STOP, STOP, STOP).play(8)
    assert fight.life[:4] == [150.0] * 4


def test_banelings_burst_when_killed_and_set_off_the_next() -> None:
    """Catches a killed baneling that does not burst, and a chain that ends at its first link: a shot one takes the
    zergling-sized enemy banelings with it, and those take ours."""
    allies = [("marine", 5.0, 16.0), ("baneling", 12.0, 16.0)]
    enemies = [("baneling", 10.0, 16.0), ("baneling", 13.5, 17.0)]
    fight = Fight(allies, enemies).restore(health=[45.0, 15.0, 5.0, 15.0]).order(ATTACK, STOP)
    fight.play(2)
    assert [value > 0 for value in fight.of("health")] == [True, False, False, False]


def test_the_colossus_sweeps_a_line() -> None:
    """Catches a circle, a line along the fire, a beam of another width (1.25 and 0.15 and the victim's radius) and
    beams that burn friends. The shot falls in the third loop, the sweeps 4 and 9.46 loops later."""
    off = 1.25 + 0.15 + 0.5
    enemies = [
        ("zealot", 15.0, 16.0),
        ("zealot", 15.0, 16.0 + off - 0.02),
        ("zealot", 15.0, 16.0 - off - 0.02),
        ("zealot", 16.5, 16.0),
    ]
    fight = Fight([("colossus", 10, 16), ("zealot", 14.8, 15.0)], enemies)
    fight.restore(cooldown=[0.0, *[1e3] * 5])
    fight.army = replace(fight.army, speed=torch.zeros_like(fight.army.speed), pushes=0.0 * fight.army.pushes)
    log = fight.order(ATTACK, STOP).damage_log(20)
    assert log == [(7, 2, 20.0), (7, 3, 20.0), (13, 2, 20.0), (13, 3, 20.0)]


# Enemies


def test_acquisition() -> None:
    """Catches another scan range: max(5, weapon) and both radii, so 5.75 between marines, 7 for stalker and marine."""
    for enemy, reach in (("marine", 5.75), ("stalker", 7.0), ("zealot", 5.875), ("zergling", 5.75)):
        for gap, states in ((-0.02, True), (0.02, False)):
            fight = Fight([("marine", 10, 16)], [(enemy, 10 + reach + gap, 16)]).order(STOP).loop()
            assert (fight.battle.target[1, 0] == 0) == states, f"{enemy} at {reach + gap}"


def test_targets_are_kept_then_the_nearest_is_next() -> None:
    """Catches enemies that turn to whoever comes nearer, and those that stay with what they cannot reach."""
    allies = [("marine", 11, 16), ("marine", 6, 16), ("marine", 15, 11.5)]
    fight = Fight(allies, [("marine", 15, 16)]).order(STOP, STOP, STOP).loop()
    assert fight.battle.target[3, 0] == 0
    fight.battle.x[1] = 12.5  # nearer now
    assert fight.loop().battle.target[3, 0] == 0
    fight.battle.x[0] = 9.2  # out of reach with no shot begun
    fight.battle.windup[3] = 1e6
    assert fight.loop().battle.target[3, 0] == 1
    assert fight.kill(1).loop().battle.target[3, 0] == 2


def test_who_cannot_fight_back_comes_last() -> None:
    """Catches enemies that shoot at the nearer medivac while a marine stands in their scan range, or never at it."""
    fight = Fight([("medivac", 12, 16), ("marine", 10.5, 16)], [("marine", 15, 16)], heal=True).order(STOP, STOP).loop()
    assert fight.battle.target[2, 0] == 1
    assert fight.kill(1).loop().battle.target[2, 0] == 0


def test_an_enemy_answers_whoever_hits_it() -> None:
    """Catches enemies that stand and die: a stalker hits a marine from 6.9, out of its sight to choose (6), and it
    comes."""
    fight = Fight([("stalker", 10, 16)], [("marine", 16.9, 16)])
    for _ in range(3):
        fight.step(ATTACK)
    assert fight.battle.target[1, 0] == 0 and fight.of("x")[1] < 16.5
    assert fight.life[0] < 160  # it came into its range


def test_a_call_for_help_reaches_four_cells() -> None:
    """Catches friends who watch, and calls that are heard everywhere."""
    enemies = [("marine", 16.9, 16), ("marine", 18.5, 16), ("marine", 17.5, 20.5)]
    fight = Fight([("stalker", 10, 16)], enemies)
    fight.restore(health=[80, 1000.0, 45, 45]).step(ATTACK).step(ATTACK)
    fight.step(ATTACK)
    assert fight.battle.target[1:, 0].tolist() == [0, 0, -1]


def test_an_attack_move_goes_on_after_the_fight() -> None:
    """Catches enemies that stay where their last target died, and those that walk past a fight."""
    fight = Fight([("marine", 14, 16)], [("marine", 19, 16)], goals=[(9.0, 16.0)])
    fight.restore(health=[6.0, 45.0]).step(STOP)
    assert fight.of("health")[0] == 0
    assert fight.of("x")[1] == pytest.approx(19 - 6 * 0.140625, abs=1e-3)  # six loops after the kill
    for _ in range(10):
        fight.play(8)
    assert fight.of("x")[1] == pytest.approx(9.0, abs=1e-3)


def test_allies_do_nothing_unasked() -> None:
    """Catches allies that shoot or move by themselves: their copies in the maps are passive."""
    fight = Fight([("marine", 10, 16)], [("marine", 15, 16)]).step(STOP).step(STOP)
    assert fight.of("health")[1] == 45 and fight.of("x")[0] == 10


def test_an_ally_whose_target_dies_stands() -> None:
    """Catches a walk back to where the order was given, within the step in which the target dies."""
    allies = [("zealot", 10, 16), ("marine", 15, 18)]
    fight = Fight(allies, [("marine", 15.5, 16)]).restore(health=[100, 45, 6.0]).order(ATTACK, ATTACK)
    fight.play(2)
    assert fight.of("health")[2] == 0
    there = fight.of("x")[0]
    assert there == pytest.approx(10 + 2 * 0.140625, abs=1e-3)
    assert fight.play(6).of("x")[0] == there


# Crowds


def contact_shares(battle: Battle, pushes: Tensor) -> Tensor:
    """Distances of pairs that meet as shares of their contact distance, [pairs, E]; infinite where one is dead."""
    one, other = torch.triu_indices(len(pushes), len(pushes), 1)
    gap = ((battle.x[one] - battle.x[other]) ** 2 + (battle.y[one] - battle.y[other]) ** 2).sqrt()
    limit = pushes[one, other]
    together = (limit > 0) & battle.alive[one] & battle.alive[other]
    return torch.where(together, gap / limit.clamp_min(1e-6), torch.inf)


def test_a_heap_comes_apart() -> None:
    """Catches units that stay inside each other, and a push that throws them across the map."""
    positions = [("marine", 15 + 0.11 * (i % 3), 15 + 0.13 * (i // 3)) for i in range(9)]
    fight = Fight(positions, [("spine_crawler", 28, 28)])
    for _ in range(8):
        fight.step(*[STOP] * 9)
    assert float(contact_shares(fight.battle, fight.army.pushes).min()) > 0.95
    assert max(abs(value - 15) for value in fight.of("x")[:9]) < 3


def test_colossi_and_medivacs_pass_over_others() -> None:
    """Catches collisions between air, striders and ground."""
    fight = Fight([("colossus", 10, 16), ("marine", 10.1, 16), ("medivac", 10.2, 16)], [("spine_crawler", 28, 28)])
    before = fight.of("x")
    assert fight.step(STOP, STOP, STOP).of("x") == before


def random_play(name: str, num_envs: int, steps: int, watch: Callable[[SmacEnv], None], seed: int = 0) -> None:
    env, source = SmacEnv(f"smac/{name}", num_envs), torch.Generator().manual_seed(seed)
    step = env.reset(range(num_envs))
    watch(env)
    for _ in range(min(steps, env.spec.max_steps)):
        assert step.action_mask is not None
        draws = torch.rand(step.action_mask.shape, generator=source)
        draws[:, :, 6:] *= 3.0  # mostly fights
        step = env.step(draws.masked_fill(~step.action_mask, -1.0).argmax(-1))
        watch(env)


@pytest.mark.parametrize("name", MAPS)
def test_nobody_leaves_the_ground(name: str) -> None:
    """Catches units pushed into or walking through walls, on every map's own terrain."""
    grid = torch.tensor(walkable(MAPS[name].terrain))

    def on_ground(env: SmacEnv) -> None:
        battle = env.battle_state.battle
        assert bool(torch.isfinite(battle.x).all() & torch.isfinite(battle.health).all())
        cells = grid[battle.x.long().clamp(0, 31), battle.y.long().clamp(0, 31)]
        assert bool((cells | ~battle.alive).all())

    random_play(name, 8, 30, on_ground)


@pytest.mark.parametrize("name", ["27m_vs_30m", "3s5z"])
def test_units_do_not_stay_inside_each_other(name: str) -> None:
    """Catches crowds that collapse into a point, which no one could fight in: a pair is closer than half its contact
    distance for three steps on end in fewer than one of a thousand cases."""
    states: list[Tensor] = []

    def keep(env: SmacEnv) -> None:
        states.append(contact_shares(env.battle_state.battle, env.army.pushes) < 0.5)

    random_play(name, 8, 30, keep)
    stuck = [a & b & c for a, b, c in zip(states, states[1:], states[2:], strict=False)]
    assert float(torch.stack(stuck).float().mean()) < 1e-3


def test_loops_make_steps() -> None:
    """Catches anything that happens once per call: a fight in reach is the same in one step and in eight loops."""
    allies = [("stalker", 10, 16), ("zealot", 14, 16)]
    one, other = (Fight(allies, [("zealot", 15, 16), ("stalker", 16, 17)]).order(ATTACK, ATTACK) for _ in range(2))
    one.play(8)
    for _ in range(8):
        other.loop()
    assert min(one.life) < 150
    for field in fields(one.battle):
        if field.name != "attacker":  # forgotten with every call
            assert one.of(field.name) == other.of(field.name), field.name


# A real episode on 3m (smac.md 12)


@dataclass
class Recorded:
    """The last decision of the real episode, on the game's grid of 1/4096 cells."""

    x: tuple[float, ...] = (60879 / 4096, 0.0, 58116 / 4096, 78157 / 4096, 0.0, 0.0)
    y: tuple[float, ...] = (71324 / 4096, 0.0, 65538 / 4096, 65823 / 4096, 0.0, 0.0)
    health: tuple[float, ...] = (9.0, 0.0, 9.0, 3.0, 0.0, 0.0)


def test_real_spawns() -> None:
    """Catches another lattice, other numbers for the same marines, or another start point."""
    agents = [point for _, point in MAPS["3m"].agents]
    assert agents == [pytest.approx(p, abs=1e-3) for p in ((9, 15.3115), (9, 16), (9.6885, 16))]


def test_real_steps_in_the_state() -> None:
    """Catches speeds and divisors (32, as SMAClite) that a real state contradicts: agent 0 walks east twice."""
    env = SmacEnv("smac/3m", 1)
    steps = [env.reset([0])]
    for actions in ((EAST, NORTH, EAST), (EAST, EAST, EAST)):
        steps.append(env.step(torch.tensor([actions])))
    states = [float(step.state[0, 2]) for step in steps if step.state is not None]
    assert states == pytest.approx([-0.25, -0.20982143, -0.16964285], abs=1e-6)


def test_real_first_damage() -> None:
    """Catches another closing speed or mask: attacks become legal after four steps, the first hits fall in the fifth,
    in sixes of 20/365 each."""
    env = SmacEnv("smac/3m", 64)
    step = env.reset(range(64))
    for index in range(4):
        assert step.action_mask is not None and not bool(step.action_mask[:, :, 6:].any()), f"attacks before {index}"
        step = env.step(torch.full((64, 3), EAST))
        assert not bool(step.rewards.any())
    assert step.action_mask is not None
    opened = step.action_mask[:, :, 6:].any(-1)
    assert bool(opened.any(1).all())
    choice = torch.where(opened, 6 + step.action_mask[:, :, 6:].int().argmax(-1), EAST)
    hits = env.step(choice).rewards[:, 0] * 365 / 20 / 6
    assert torch.allclose(hits, hits.round(), atol=1e-4) and int(hits.min()) >= 1 and int(hits.max()) <= 3


def test_real_rewards() -> None:
    """Catches any other damage, kill bonus or scale: per step 6 a + 13 b with a + b marines firing, and 200 on top."""
    env, source = SmacEnv("smac/3m", 256), torch.Generator().manual_seed(0)
    step, states = env.reset(range(256)), set()
    while not bool(step.finished.all()):
        assert step.action_mask is not None
        weights = torch.rand(step.action_mask.shape, generator=source)
        weights[:, :, 6:] += 1.0
        weights[:, :, EAST] += 0.5
        before = step
        step = env.step(weights.masked_fill(~step.action_mask, -1.0).argmax(-1))
        raw = step.rewards[~before.finished, 0] * 365 / 20
        assert step.won is not None
        damage = raw - 200.0 * step.won[~before.finished]
        assert torch.allclose(damage, damage.round(), atol=2e-3)
        states |= set(damage.round().int().tolist())
    assert states <= {6 * a + 13 * b for a in range(4) for b in range(4 - a)}
    assert {0, 6, 12, 13, 19} <= states


def test_the_real_last_decision() -> None:
    """Catches any difference in what a real agent saw: 30 numbers of agent 0, the dead agent 1's zeros, the masks."""
    env, recorded = SmacEnv("smac/3m", 1), Recorded()
    env.reset([0])
    state = env.battle_state
    columns = {name: torch.tensor(getattr(recorded, name))[:, None] for name in ("x", "y", "health")}
    last = torch.tensor([[6], [NORTH], [6]])
    step = env.set_state(
        replace(state, battle=replace(state.battle, **columns), last_actions=last, steps=torch.tensor([19]))
    )
    expected = torch.zeros(30)
    expected[:4] = 1.0
    expected[4:9] = torch.tensor([1, 0.4918776, 0.46869576, -0.14922418, 0.06666667])
    expected[24:29] = torch.tensor([1, 0.17393287, -0.07495117, -0.1569553, 0.2])
    expected[29] = 0.2
    assert torch.allclose(step.observations[0, 0], expected, atol=1e-6, rtol=0)
    assert not bool(step.observations[0, 1].any())
    assert step.action_mask is not None and step.action_mask[0, 1].tolist() == [True] + [False] * 8
    assert step.action_mask[0, 0].tolist() == [False, *[True] * 6, False, False]
    assert step.state is not None and step.state[0, 21:].reshape(3, 9).argmax(1).tolist() == [6, NORTH, 6]
    killing = env.step(torch.tensor([[6, 0, 6]]))
    assert bool(killing.won) and float(killing.rewards[0, 0]) == pytest.approx(213 * 20 / 365, abs=1e-5)


@pytest.mark.parametrize(("aimed_health", "colossus_lives"), [(45.0, True), (10.0, True), (45.0, False)])
def test_a_beam_goes_over_the_ground_it_was_aimed_at(aimed_health: float, colossus_lives: bool) -> None:
    """Catches sweeps that vanish with their target, and the beam of a colossus that has died laid across the way from
    where the dead lie: the marines beside the aimed one are hit twice all the same."""
    fight = Fight([("colossus", 10, 16)], [("marine", 15, 16), ("marine", 15, 17), ("marine", 15, 15)])
    fight.restore(health=[200.0, aimed_health, 45.0, 45.0]).order(ATTACK)
    while fight.of("flight")[0] > 100:
        fight.play(1)
    if not colossus_lives:
        fight.battle.health[0] = 0.0
    fight.play(16)
    assert fight.of("health")[2:] == [5.0, 5.0]
