"""Games for the tests of the StarCraft adapter: `Stub` stands for a whole package, `FakeGame` only for the running game
beneath the real package's code. Workers import this file by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from marl_flow.envs import starcraft2

FIRST_OWN_TYPE = (
    1970  # of the ally copies that a map carries, numbered alphabetically; any number beyond the stock ones
)
UNITS = {  # name: stock type number, health, shield
    "baneling": (9, 30, 0),
    "colossus": (4, 200, 150),
    "hydralisk": (107, 80, 0),
    "marauder": (51, 125, 0),
    "marine": (48, 45, 0),
    "medivac": (54, 150, 0),
    "spine": (98, 300, 0),
    "stalker": (74, 80, 80),
    "zealot": (73, 100, 50),
    "zergling": (105, 35, 0),
}
LETTERS = {"m": "marine", "s": "stalker", "z": "zealot", "c": "colossus", "h": "hydralisk", "sc": "spine"}
ODD_ONES = {
    "so_many_baneling": ({"zealot": 7}, {"baneling": 32}),
    "MMM": ({"marauder": 2, "marine": 7, "medivac": 1}, {"marauder": 2, "marine": 7, "medivac": 1}),
    "MMM2": ({"marauder": 2, "marine": 7, "medivac": 1}, {"marauder": 3, "marine": 8, "medivac": 1}),
    "corridor": ({"zealot": 6}, {"zergling": 24}),
    "bane_vs_bane": ({"baneling": 4, "zergling": 20}, {"baneling": 4, "zergling": 20}),
    "2c_vs_64zg": ({"colossus": 2}, {"zergling": 64}),
}


def armies(map_name: str) -> tuple[dict[str, int], dict[str, int]]:
    """Who fights on a map of SMAC: unit names and their number, of both sides."""
    if map_name in ODD_ONES:
        return ODD_ONES[map_name]
    sides = []
    for side in map_name.split("_vs_"):
        army: dict[str, int] = {}
        number = ""
        for letter in side.replace("sc", "S"):
            if letter.isdigit():
                number += letter
            else:
                army[LETTERS[letter if letter != "S" else "sc"]] = int(number)
                number = ""
        sides.append(army)
    return sides[0], sides[-1]


class FakeGame:
    """A running game, as much of it as smac and smacv2 speak to: units that walk, lose health and die at random.

    fates: step of the episode -> what happens to the units then, a function of this game. failing: names of calls that
    raise pysc2's ConnectionError, each once. late: how often the first units come in two parts.
    """

    def __init__(
        self, map_name: str, seed: int, fates: dict[int, Callable[[FakeGame], None]], failing: list[str], late: int = 0
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.pathing = self.random.uniform(size=(32, 32)) < 0.8
        self.fates, self.failing, self.late = fates, failing, late
        self.sides = None if map_name.startswith("10gen") else armies(map_name)
        self.units: list[Any] = []
        self.turn, self.tags, self.is_over = 0, 100, False
        self.sent: list[Any] = []
        if self.sides is not None:
            self.spawn()

    def spawn(self) -> None:
        self.turn = 0
        for owner, army in zip((1, 2), self.sides or (), strict=False):
            for index, name in enumerate(sorted(army)):
                kind = FIRST_OWN_TYPE + index if owner == 1 else UNITS[name][0]
                for _ in range(army[name]):
                    x, y = self.random.uniform(6, 26, size=2)
                    self.add(owner, kind, name, x, y)

    def add(self, owner: int, kind: int, name: str, x: float, y: float) -> None:
        from s2clientprotocol import raw_pb2

        self.tags += 1
        unit = raw_pb2.Unit(tag=self.tags, owner=owner, unit_type=kind, alliance=1 if owner == 1 else 4)
        unit.pos.x, unit.pos.y = x, y
        unit.health_max, unit.shield_max = UNITS[name][1:]
        unit.health, unit.shield, unit.energy = unit.health_max, unit.shield_max, 50
        unit.weapon_cooldown = float(self.random.uniform(0, 10))
        self.units.append(unit)

    def observe(self) -> Any:
        self.may_fail("observe")
        units = [type(unit).FromString(unit.SerializeToString()) for unit in self.units]
        if self.late:
            self.late -= 1
            units = units[:-1]
        return SimpleNamespace(observation=SimpleNamespace(raw_data=SimpleNamespace(units=units)))

    def step(self, loops: int) -> None:
        self.may_fail("step")
        if loops == 8:
            self.turn += 1
            self.fates.get(self.turn, FakeGame.stir)(self)
        elif not self.units and self.sides is not None:
            self.spawn()
        self.units = [unit for unit in self.units if unit.health > 0]

    def stir(self) -> None:
        for unit in self.units:
            unit.pos.x += self.random.uniform(-2, 2)
            unit.pos.y += self.random.uniform(-2, 2)
            unit.health = min(unit.health_max, max(1.0, unit.health - self.random.uniform(-1, 6)))
            unit.shield = min(unit.shield_max, max(0.0, unit.shield - self.random.uniform(-2, 6)))
            unit.weapon_cooldown = float(self.random.uniform(0, 20))
        if self.random.uniform() < 0.3:
            for owner in (1, 2):
                living = [unit for unit in self.units if unit.owner == owner]
                if len(living) > 1:
                    living[int(self.random.integers(len(living)))].health = 0

    def kill(self, *owners: int) -> None:
        for unit in self.units:
            unit.health = 0 if unit.owner in owners else unit.health

    def actions(self, request: Any) -> None:
        self.may_fail("actions")
        self.sent.append(request)

    def debug(self, commands: Sequence[Any]) -> None:
        for command in commands:
            killed = set(command.kill_unit.tag)
            self.turn = 0 if killed else self.turn
            self.units = [unit for unit in self.units if unit.tag not in killed]
            if command.HasField("create_unit"):
                made, names = command.create_unit, sorted(set(UNITS) - {"spine"})
                stock = {number: name for name, (number, _, _) in UNITS.items()}
                name = stock.get(made.unit_type) or names[made.unit_type - FIRST_OWN_TYPE]
                self.add(made.owner, made.unit_type, name, made.pos.x, made.pos.y)

    def data(self) -> Any:
        return SimpleNamespace(units=[None] * (FIRST_OWN_TYPE + 9))

    def may_fail(self, call: str) -> None:
        if call in self.failing:
            from pysc2.lib import protocol

            self.failing.remove(call)
            raise protocol.ConnectionError("the websocket closed")


class RestoredGame(starcraft2.Game):
    """The adapter's `Game` over the real package, whose launch gives a `FakeGame`. `games`: all launched so far."""

    def __init__(self, task_id: str, version: str | None = None, **game: Any) -> None:
        super().__init__(task_id, version)
        self.games: list[FakeGame] = []
        self.options = {"fates": {}, "failing": [], **game}

    def _build(self, seed: int | None) -> Any:
        env = super()._build(seed)
        restore(getattr(env, "env", env), self.games, self.options)
        return env


def restore(env: Any, games: list[FakeGame], options: dict[str, Any]) -> None:
    """Replaces the launch of the real package's StarCraft2Env by that of a fake game."""

    def launch() -> None:
        game = FakeGame(env.map_name, 5, **options)
        games.append(game)

        def close() -> None:
            game.is_over = True

        env._controller, env._sc2_proc = game, SimpleNamespace(close=close)
        env.max_distance_x = env.max_distance_y = 28
        env.map_x = env.map_y = 32
        env.pathing_grid, env.terrain_height = game.pathing, np.zeros((32, 32))

    env._launch = launch


class Stub:
    """A package's environment of one task that answers what it is told to, an entry of `answers` per step."""

    def __init__(self, task_id: str, answers: list[tuple[float, bool, dict[str, Any]]], restarts: list[int]) -> None:
        self.spec, self.answers, self.restarts = starcraft2.spec(task_id), answers, restarts
        self.force_restarts, self.resets, self.is_closed = 0, 0, False
        self.n_enemies = self.spec.action.size - 6
        self.reward_death_value, self.reward_win = 10, 200
        self.max_reward = 10 * self.n_enemies + 200
        self.enemies: dict[int, Any] = {}

    def reset(self) -> None:
        """Like smacv2 after a retry it returns nothing; like both in a first battle it counts the enemies' health."""
        self.resets += 1
        self.force_restarts += self.restarts.pop(0) if self.restarts else 0
        self.enemies = {index: SimpleNamespace(health_max=45, shield_max=5) for index in range(self.n_enemies)}
        self.max_reward += 2 * 50 * self.n_enemies

    def step(self, actions: list[int]) -> tuple[float, bool, dict[str, Any]]:
        assert all(type(action) is int for action in actions)
        return self.answers.pop(0)

    def get_obs(self) -> list[np.ndarray]:
        return [np.full(self.spec.observation_size, agent) for agent in range(self.spec.num_agents)]

    def get_state(self) -> np.ndarray:
        return np.arange(self.spec.state_size or 0)

    def get_avail_actions(self) -> list[list[int]]:
        return [[0, 1] + [0] * (self.spec.action.size - 2)] * self.spec.num_agents

    def get_env_info(self) -> dict[str, int]:
        spec = self.spec
        return {
            "n_agents": spec.num_agents,
            "obs_shape": spec.observation_size,
            "state_shape": spec.state_size or 0,
            "n_actions": spec.action.size,
            "episode_limit": spec.max_steps,
        }

    def close(self) -> None:
        self.is_closed = True


ANSWERS = [(0.5, False, {"battle_won": False}), (1.5, True, {"battle_won": True})]


class StubGame(starcraft2.Game):
    """The adapter's `Game` over stubs; every one that it built is in `built`, with the seed it was given."""

    def __init__(self, task_id: str, version: str | None = None, restarts: Sequence[int] = ()) -> None:
        super().__init__(task_id, version)
        self.task_id, self.restarts, self.answers = task_id, list(restarts), ANSWERS
        self.built: list[tuple[Stub, int | None]] = []

    def _build(self, seed: int | None) -> Any:
        stub = Stub(self.task_id, list(self.answers), self.restarts)
        self.built.append((stub, seed))
        return SimpleWrapper(stub) if self._map.race else stub


class SimpleWrapper:
    """What smacv2 wraps its environment in: reads pass through, writes stay outside."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)
