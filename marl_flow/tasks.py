"""One card for each task of this suite: what it is, and what is published about its datasets. No simulator is needed.

Environments, datasets and benchmarks, which may not import each other, read the same facts here. Sources of sizes and
limits: `Guowei-Zou/coflow-release: diffuser/datasets/{mpe,mamujoco,smac_env}.py`, `oxwhirl/smac:
smac/env/starcraft2/{starcraft2.py,maps/smac_maps.py}`, `oxwhirl/smacv2: smacv2/examples/configs/sc2_gen_*.yaml`
(577ab5a).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from marl_flow.config import nearest
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

Race = Literal["terran", "protoss", "zerg"]
Army = tuple[tuple[str, int], ...]
"""Unit types with how many of each, in the order in which they are created."""

NUM_BASIC_ACTIONS = 6
"""In StarCraft: no-op, stop, north, south, east, west; then one attack (or heal) per target."""


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """One task.

    spec: without an opponent, which the environment adds. published_means: the mean team return (undiscounted) that was
    published for the data of each quality; empty where there are no published data. published_source: where.
    """

    spec: TaskSpec
    published_means: Mapping[str, float]
    published_source: str

    @property
    def suite(self) -> str:
        return self.spec.task_id.partition("/")[0]

    @property
    def name(self) -> str:
        return self.spec.task_id.partition("/")[2]


def find_card(task_id: str) -> TaskCard:
    """The card of a task, by its id such as `mamujoco/2ant`."""
    if task_id not in CARDS:
        raise UserError(f"unknown task {task_id!r}; {nearest(task_id, CARDS)}")
    return CARDS[task_id]


def task_names(suite: str) -> tuple[str, ...]:
    """Names of a suite's tasks, without the suite."""
    return tuple(card.name for card in CARDS.values() if card.suite == suite)


# StarCraft: who fights whom


@dataclass(frozen=True, kw_only=True)
class Battle:
    """The armies of a StarCraft task. A side's unit types are one-hot bits of its observations, if it has several.

    own_position: whether agents observe where they stand (SMACv2).
    """

    num_agents: int
    num_enemies: int
    races: tuple[Race, Race]
    num_types: tuple[int, int]
    max_steps: int
    own_position: bool = False

    def spec(self, task_id: str) -> TaskSpec:
        """The `TaskSpec`, with SMAC's default observations, which have no agent ids."""
        ally, enemy = (
            int(race == "protoss") + (types if types > 1 else 0)  # shield and type of one unit
            for race, types in zip(self.races, self.num_types, strict=True)
        )
        agents, enemies = self.num_agents, self.num_enemies
        actions = NUM_BASIC_ACTIONS + enemies
        own = 1 + ally + 2 * self.own_position
        return _spec(
            task_id,
            agents,
            observation_size=4 + enemies * (5 + enemy) + (agents - 1) * (5 + ally) + own,
            action=ActionSpec(kind="discrete", size=actions),
            max_steps=self.max_steps,
            state_size=agents * (4 + ally + actions) + enemies * (3 + enemy),
        )


@dataclass(frozen=True, kw_only=True)
class SmacMap:
    """One map of SMAC: both armies, their races and the step limit."""

    allies: Army
    enemies: Army
    races: tuple[Race, Race]
    max_steps: int

    @property
    def battle(self) -> Battle:
        return Battle(
            num_agents=sum(count for _, count in self.allies),
            num_enemies=sum(count for _, count in self.enemies),
            races=self.races,
            num_types=(len(self.allies), len(self.enemies)),
            max_steps=self.max_steps,
        )


def _map(allies: str, enemies: str, races: str, max_steps: int) -> SmacMap:
    """A map from its table row: "3 stalker, 5 zealot" is an army, "PZ" protoss against zerg."""
    names: dict[str, Race] = {"T": "terran", "P": "protoss", "Z": "zerg"}
    ours, theirs = (
        tuple((unit, int(count)) for count, unit in (entry.split() for entry in army.split(", ")))
        for army in (allies, enemies)
    )
    return SmacMap(allies=ours, enemies=theirs, races=(names[races[0]], names[races[1]]), max_steps=max_steps)


SMAC_MAPS: Mapping[str, SmacMap] = MappingProxyType(
    {
        "3m": _map("3 marine", "3 marine", "TT", 60),
        "8m": _map("8 marine", "8 marine", "TT", 120),
        "25m": _map("25 marine", "25 marine", "TT", 150),
        "5m_vs_6m": _map("5 marine", "6 marine", "TT", 70),
        "8m_vs_9m": _map("8 marine", "9 marine", "TT", 120),
        "10m_vs_11m": _map("10 marine", "11 marine", "TT", 150),
        "27m_vs_30m": _map("27 marine", "30 marine", "TT", 180),
        "2s3z": _map("2 stalker, 3 zealot", "2 stalker, 3 zealot", "PP", 120),
        "3s5z": _map("3 stalker, 5 zealot", "3 stalker, 5 zealot", "PP", 150),
        "3s5z_vs_3s6z": _map("3 stalker, 5 zealot", "3 stalker, 6 zealot", "PP", 170),
        "3s_vs_3z": _map("3 stalker", "3 zealot", "PP", 150),
        "3s_vs_4z": _map("3 stalker", "4 zealot", "PP", 200),
        "3s_vs_5z": _map("3 stalker", "5 zealot", "PP", 250),
        "2m_vs_1z": _map("2 marine", "1 zealot", "TP", 150),
        "2s_vs_1sc": _map("2 stalker", "1 spine_crawler", "PZ", 300),
        "so_many_baneling": _map("7 zealot", "32 baneling", "PZ", 100),
        "MMM": _map("7 marine, 2 marauder, 1 medivac", "7 marine, 2 marauder, 1 medivac", "TT", 150),
        "MMM2": _map("7 marine, 2 marauder, 1 medivac", "8 marine, 3 marauder, 1 medivac", "TT", 180),
        "1c3s5z": _map("1 colossus, 3 stalker, 5 zealot", "1 colossus, 3 stalker, 5 zealot", "PP", 180),
        "6h_vs_8z": _map("6 hydralisk", "8 zealot", "ZP", 150),
        "corridor": _map("6 zealot", "24 zergling", "PZ", 400),
        "bane_vs_bane": _map("20 zergling, 4 baneling", "20 zergling, 4 baneling", "ZZ", 200),
        "2c_vs_64zg": _map("2 colossus", "64 zergling", "PZ", 400),
    }
)
NOT_EMBEDDED = ("2c_vs_64zg",)
"""Maps that only the real game has: colossi walking up cliffs are not modelled."""


@dataclass(frozen=True, kw_only=True)
class DrawnTeams:
    """What SMACv2 draws a race's teams from: the probability of each unit type, in the order of the package's own
    files, and the types that never make up a whole team."""

    units: Mapping[str, float]
    never_alone: tuple[str, ...]


SMACV2_TEAMS: Mapping[Race, DrawnTeams] = MappingProxyType(
    {
        "terran": DrawnTeams(
            units=MappingProxyType({"marine": 0.45, "marauder": 0.45, "medivac": 0.1}), never_alone=("medivac",)
        ),
        "protoss": DrawnTeams(
            units=MappingProxyType({"stalker": 0.45, "zealot": 0.45, "colossus": 0.1}), never_alone=()
        ),
        "zerg": DrawnTeams(
            units=MappingProxyType({"zergling": 0.45, "baneling": 0.1, "hydralisk": 0.45}), never_alone=("baneling",)
        ),
    }
)
SMACV2_BATTLES: Mapping[str, Battle] = MappingProxyType(
    {
        f"{race}_{agents}_vs_{enemies}": Battle(
            num_agents=agents,
            num_enemies=enemies,
            races=(race, race),
            num_types=(len(teams.units), len(teams.units)),
            max_steps=200,
            own_position=True,
        )
        for race, teams in SMACV2_TEAMS.items()
        for agents, enemies in ((5, 5), (10, 10), (20, 20), (10, 11), (20, 23))
    }
)


# What is published of the datasets: mean team return per quality


_COFLOW = "CoFlow (arXiv 2605.01457), dataset column"
_OMAR = f"{_COFLOW}: mean over five seeds of OMAR's data (arXiv 2111.11188)"
_OG_MARL = f"{_COFLOW}, of OG-MARL's data (arXiv 2302.00521)"
_OG_MARL_CARD = "OG-MARL dataset card (instadeepai/og-marl: docs/dataset_cards/datacard_info.json)"
"""For the two tasks that CoFlow's table leaves out."""

_PUBLISHED: Mapping[str, tuple[str, Mapping[str, float]]] = MappingProxyType(
    {
        "mpe/simple_spread": (_OMAR, {"expert": 516.8, "medium-replay": 194.2, "medium": 259.9, "random": 159.8}),
        "mpe/simple_tag": (_OMAR, {"expert": 185.6, "medium-replay": 14.2, "medium": 88.7, "random": -4.1}),
        "mpe/simple_world": (_OMAR, {"expert": 79.5, "medium-replay": 3.5, "medium": 43.3, "random": -6.8}),
        "mamujoco/2ant": (_OG_MARL, {"good": 2556.0, "medium": 1061.3, "poor": 393.6}),
        "mamujoco/4ant": (_OG_MARL, {"good": 2754.3, "medium": 1457.7, "poor": 416.0}),
        "mamujoco/2halfcheetah": (_OG_MARL_CARD, {"good": 6924.1, "medium": 1485.0, "poor": 400.5}),
        "smac/3m": (_OG_MARL, {"good": 16.5, "medium": 10.0, "poor": 4.7}),
        "smac/8m": (_OG_MARL_CARD, {"good": 16.86, "medium": 10.14, "poor": 5.28}),
        "smac/2s3z": (_OG_MARL, {"good": 18.3, "medium": 12.6, "poor": 6.9}),
        "smac/5m_vs_6m": (_OG_MARL, {"good": 16.6, "medium": 12.6, "poor": 7.5}),
    }
)


# The cards


def _spec(
    task_id: str,
    agents: int,
    observation_size: int,
    action: ActionSpec,
    max_steps: int,
    team_reward: Literal["shared", "mean"] = "shared",
    state_size: int | None = None,
) -> TaskSpec:
    return TaskSpec(
        task_id=task_id,
        agents=tuple(f"agent_{index}" for index in range(agents)),
        observation_size=observation_size,
        action=action,
        max_steps=max_steps,
        team_reward=team_reward,
        state_size=state_size,
    )


def _box(size: int) -> ActionSpec:
    return ActionSpec(kind="continuous", size=size, low=(-1.0,) * size, high=(1.0,) * size)


def _specs() -> Iterator[TaskSpec]:
    yield _spec("mpe/simple_spread", 3, 18, _box(2), 25, "mean")
    yield _spec("mpe/simple_tag", 3, 16, _box(2), 25)
    yield _spec("mpe/simple_world", 3, 24, _box(2), 25)
    yield _spec("mamujoco/2ant", 2, 56, _box(4), 1000)
    yield _spec("mamujoco/4ant", 4, 37, _box(2), 1000)
    yield _spec("mamujoco/2halfcheetah", 2, 15, _box(3), 1000)
    for name, smac_map in SMAC_MAPS.items():
        if name not in NOT_EMBEDDED:
            yield smac_map.battle.spec(f"smac/{name}")
    for name, smac_map in SMAC_MAPS.items():
        yield smac_map.battle.spec(f"smac-sc2/{name}")
    for suite in ("smacv2", "smacv2-sc2"):
        for name, battle in SMACV2_BATTLES.items():
            yield battle.spec(f"{suite}/{name}")


def _card(spec: TaskSpec) -> TaskCard:
    """SMAC's published data are of the real game; the native ones of the embedded simulator aim at the same means."""
    source, means = _PUBLISHED.get(spec.task_id.replace("smac-sc2/", "smac/"), ("", {}))
    return TaskCard(spec=spec, published_means=MappingProxyType(means), published_source=source)


CARDS: Mapping[str, TaskCard] = MappingProxyType({spec.task_id: _card(spec) for spec in _specs()})
"""Every task by its id, suite by suite. `smac` and `smacv2` are the embedded simulator's, `-sc2` StarCraft II's."""
