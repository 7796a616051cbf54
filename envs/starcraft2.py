"""StarCraft II itself: `smac-sc2/<map>` through the package smac, `smacv2-sc2/<race>_<n>_vs_<m>` through smacv2.

Nothing here is installed with this package. `StarCraftEnv` looks for what it needs first and says how to get the rest.
Observations, states, legal actions and rewards are the packages' own, unchanged: SMAC's default observation without
agent ids, as in the published offline datasets.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marl_flow.config import nearest
from marl_flow.envs.process_pool import Frame, Outcome, ProcessPool
from marl_flow.interfaces import ActionSpec, Policy, TaskSpec, UserError

MAPS = {  # name: agents, enemies, step limit, races of both sides, bits of the unit type (smac: maps/smac_maps.py)
    "3m": (3, 3, 60, "TT", 0),
    "8m": (8, 8, 120, "TT", 0),
    "25m": (25, 25, 150, "TT", 0),
    "5m_vs_6m": (5, 6, 70, "TT", 0),
    "8m_vs_9m": (8, 9, 120, "TT", 0),
    "10m_vs_11m": (10, 11, 150, "TT", 0),
    "27m_vs_30m": (27, 30, 180, "TT", 0),
    "2s3z": (5, 5, 120, "PP", 2),
    "3s5z": (8, 8, 150, "PP", 2),
    "3s5z_vs_3s6z": (8, 9, 170, "PP", 2),
    "3s_vs_3z": (3, 3, 150, "PP", 0),
    "3s_vs_4z": (3, 4, 200, "PP", 0),
    "3s_vs_5z": (3, 5, 250, "PP", 0),
    "2m_vs_1z": (2, 1, 150, "TP", 0),
    "2s_vs_1sc": (2, 1, 300, "PZ", 0),
    "so_many_baneling": (7, 32, 100, "PZ", 0),
    "MMM": (10, 10, 150, "TT", 3),
    "MMM2": (10, 12, 180, "TT", 3),
    "1c3s5z": (9, 9, 180, "PP", 3),
    "6h_vs_8z": (6, 8, 150, "ZP", 0),
    "corridor": (6, 24, 400, "PZ", 0),
    "bane_vs_bane": (24, 24, 200, "ZZ", 2),
    "2c_vs_64zg": (2, 64, 400, "PZ", 0),
}
TEAMS = {  # race: what its teams are drawn from and how often, and which types never make up a whole team
    "terran": ({"marine": 0.45, "marauder": 0.45, "medivac": 0.1}, ["medivac"]),
    "protoss": ({"stalker": 0.45, "zealot": 0.45, "colossus": 0.1}, []),
    "zerg": ({"zergling": 0.45, "baneling": 0.1, "hydralisk": 0.45}, ["baneling"]),
}
SIZES = ((5, 5), (10, 10), (20, 20), (10, 11), (20, 23))
NEEDED = {  # what a worker imports besides the package itself: module -> its distribution
    "pysc2": "pysc2",
    "s2clientprotocol": "s2clientprotocol",
    "portpicker": "portpicker",
    "websocket": "websocket-client",
    "absl": "absl-py",
}
PROTOBUF = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
TASKS = (
    *(f"smac-sc2/{name}" for name in MAPS),
    *(f"smacv2-sc2/{race}_{agents}_vs_{enemies}" for race in TEAMS for agents, enemies in SIZES),
)


@dataclass(frozen=True)
class Battle:
    """One task: who fights, for how long, and the names of its map. `race` names the drawn teams, v2 only."""

    package: str
    map_name: str
    map_file: str
    agents: int
    enemies: int
    limit: int
    races: str
    type_bits: int
    race: str | None = None


def battle(task_id: str) -> Battle:
    if task_id not in TASKS:
        raise UserError(f"unknown task {task_id!r}; {nearest(task_id, TASKS)}")
    suite, _, name = task_id.partition("/")
    if suite == "smac-sc2":
        return Battle("smac", name, f"{name}.SC2Map", *MAPS[name])
    race, agents, _, enemies = name.split("_")
    return Battle(
        "smacv2", f"10gen_{race}", "32x32_flat.SC2Map", int(agents), int(enemies), 200, race[0].upper() * 2, 3, race
    )


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec`, known without the packages; a worker compares it with what its package says."""
    fight = battle(task_id)
    mine, theirs = (int(race == "P") + fight.type_bits for race in fight.races)  # shield and type of one unit
    num_actions = 6 + fight.enemies
    own = 1 + mine + (2 if fight.race else 0)  # v2 shows an agent where it stands
    return TaskSpec(
        task_id=task_id,
        agents=tuple(f"agent_{index}" for index in range(fight.agents)),
        observation_size=4 + fight.enemies * (5 + theirs) + (fight.agents - 1) * (5 + mine) + own,
        state_size=fight.agents * (4 + mine + num_actions) + fight.enemies * (3 + theirs),
        action=ActionSpec(kind="discrete", size=num_actions),
        max_steps=fight.limit,
        team_reward="shared",
    )


class StarCraftEnv(ProcessPool):
    """E games of StarCraft II, each in a process of its own, behind `VectorEnv`.

    **Episodes are not determined by seeds.** The packages seed a game when it is launched and only then: a row's first
    seed seeds its game, later ones do nothing, and smacv2 draws its teams and places from generators it never seeds.
    rewards [E, N] repeat the team's reward. terminated: win, defeat or both sides dead; truncated: undecided at the
    step limit; won: the enemy was defeated. A game that crashes is a UserError, never the end of an episode.

    Scale of the reward: a win of undamaged health is 20 in smac; smacv2 sets each row's scale by the first enemy team
    that the row meets, so returns of different rows are on slightly different scales and win rates compare better.

    smacv2's observations have a gap, passed on as it is: while nobody has seen enemy k yet, or once it is dead and
    nobody stands near its last place, the entries of all enemies numbered below k are zero for every agent.

    game_version: e.g. "4.10.0", which the published datasets were played on; None takes the newest installed.
    """

    def __init__(
        self,
        task_id: str,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        game_version: str | None = None,
        start_timeout_seconds: float = 600.0,
        step_timeout_seconds: float = 120.0,
    ) -> None:
        check_installed(task_id)
        super().__init__(
            partial(Game, task_id, game_version),
            spec(task_id),
            num_envs,
            won=True,
            device=device,
            dtype=dtype,
            start_timeout_seconds=start_timeout_seconds,
            step_timeout_seconds=step_timeout_seconds,
        )


class Game:
    """One game as the pool's `SingleEnv`. The game is launched by the first `reset`.

    The package's own `reset` must not be called before the first episode of a game has ended: it would launch a second
    game and count the enemies' health twice in the reward's scale. Such a game is replaced by a new one instead.
    """

    def __init__(self, task_id: str, game_version: str | None = None) -> None:
        self._battle, self._version = battle(task_id), game_version
        self._env: Any = None
        self._has_ended = False
        self._steps = 0

    def describe(self) -> Mapping[str, Any]:
        """From the package's constructor, which launches nothing."""
        found = self._build(None).get_env_info()
        names = {
            "num_agents": "n_agents",
            "observation_size": "obs_shape",
            "state_size": "state_shape",
            "num_actions": "n_actions",
            "max_steps": "episode_limit",
        }
        return {ours: int(found[theirs]) for ours, theirs in names.items()}

    def reset(self, seed: int) -> Frame:
        for _ in range(2):
            if self._env is not None and not self._has_ended:
                self.close()
            if self._env is None:
                self._env, self._has_ended = self._build(seed), False
            relaunches = self._env.force_restarts
            self._env.reset()  # smacv2 returns None where it had to place its units twice
            if self._env.force_restarts == relaunches:
                self._fix_reward_scale()
                self._steps = 0
                return self._frame()
            self.close()  # crashed and relaunched within reset: its units may be those of the game that is gone
        raise UserError(f"the game crashed twice while a battle on {self._battle.map_name} was prepared; {_ADVICE}")

    def step(self, actions: Sequence[int]) -> Outcome:
        self._steps += 1
        reward, over, info = self._env.step([int(action) for action in actions])
        if "battle_won" not in info:  # how the packages report a crash: no reward, the end, an empty info
            raise UserError(f"the game crashed in step {self._steps} of an episode; {_ADVICE}")
        truncated = bool(info.get("episode_limit", False))  # set by the packages when the limit, not a side, decided
        self._has_ended |= bool(over)
        return Outcome(
            frame=self._frame(),
            reward=float(reward),
            terminated=bool(over) and not truncated,
            truncated=truncated,
            won=bool(info["battle_won"]),
        )

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _frame(self) -> Frame:
        """Asks for observations once a step, after `reset` once more than it did itself: smacv2's change when asked
        again (who has seen whom), and this is how its own training code asks."""
        return Frame(
            observations=np.asarray(self._env.get_obs(), dtype=np.float32),
            mask=np.asarray(self._env.get_avail_actions(), dtype=bool),
            state=np.asarray(self._env.get_state(), dtype=np.float32),
        )

    def _fix_reward_scale(self) -> None:
        """While its first battle is prepared a package adds the enemies' health up in every frame it looks at, more
        than once if units appear late: here once."""
        inner = self._env.env if self._battle.race else self._env
        if not self._has_ended:
            health = sum(unit.health_max + unit.shield_max for unit in inner.enemies.values())
            inner.max_reward = inner.n_enemies * inner.reward_death_value + inner.reward_win + health

    def _build(self, seed: int | None) -> Any:
        """The package's environment. continuing_episode does nothing but tell time-outs from decided battles.

        The game's protocol was generated for protobuf below 3.21, which TensorBoard no longer works with; newer ones
        read it with their implementation in Python, which is also the only one that 3.20 has for our Pythons.
        """
        os.environ.setdefault(PROTOBUF, "python")
        options: dict[str, Any] = {
            "map_name": self._battle.map_name,
            "continuing_episode": True,
            "game_version": self._version,
            "seed": None if seed is None else seed % (2**32 - 1) + 1,  # 32 bits in the game's protocol
        }
        if self._battle.race is None:
            from smac.env import StarCraft2Env

            return StarCraft2Env(**options)
        from smacv2.env import StarCraftCapabilityEnvWrapper

        return StarCraftCapabilityEnvWrapper(
            **options,
            capability_config=capability_config(self._battle),  # made anew: the wrapper writes into it
            use_unit_ranges=True,
            min_attack_range=2,
            obs_own_pos=True,
        )


_ADVICE = "StarCraft II does so now and then, for want of memory above all: use fewer environments"


def capability_config(fight: Battle) -> dict[str, Any]:
    """How SMACv2 draws an episode: both teams, the larger one's surplus included, and where everybody starts."""
    assert fight.race is not None
    weights, exceptions = TEAMS[fight.race]
    team = {"dist_type": "weighted_teams", "unit_types": [*weights], "weights": [*weights.values()], "observe": True}
    if exceptions:
        team["exception_unit_types"] = exceptions
    return {
        "n_units": fight.agents,
        "n_enemies": fight.enemies,
        "team_gen": team,
        "start_positions": {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32},
    }


def check_installed(task_id: str) -> None:
    """Raises a UserError that lists everything a task lacks on this machine, and how to get it. Starts nothing."""
    fight = battle(task_id)
    missing = [*_missing_packages(fight.package), *_missing_game(fight.map_file)]
    if missing:
        listed = "\n".join(f"  - {line}" for line in missing)
        raise UserError(
            f"{task_id} is played by StarCraft II itself, which is not (wholly) installed here:\n{listed}\n"
            "The embedded simulator needs none of this"
        )


def _missing_packages(package: str) -> Iterator[str]:
    install = f"pip install --no-deps git+https://github.com/oxwhirl/{package}.git {' '.join(NEEDED.values())}"
    found = importlib.util.find_spec(package)
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    if found and not any((folder / "env" / "starcraft2" / "starcraft2.py").is_file() for folder in folders):
        yield (
            f"module {package}: looked for its folder env/starcraft2, found another project of the same name in "
            f"{', '.join(map(str, folders))} (plain `pip install smac` gets one); pip uninstall {package}, {install}"
        )
    missing = [name for name in (package, *NEEDED) if importlib.util.find_spec(name) is None]
    if missing:
        yield (
            f"Python packages: looked for the modules {', '.join((package, *NEEDED))}, did not find "
            f"{', '.join(missing)}; {install} (without --no-deps it brings a protobuf that breaks TensorBoard)"
        )


def _missing_game(map_file: str) -> Iterator[str]:
    """What pysc2 would not find, on Linux; elsewhere its own search is longer, and its own complaint is passed on."""
    if not sys.platform.startswith("linux"):
        return
    given = os.environ.get("SC2PATH")
    folder = Path(given if given is not None else "~/StarCraftII").expanduser()
    source = "SC2PATH" if given is not None else "its usual place, SC2PATH is not set"
    download = (
        "get the Linux package 4.10 from https://github.com/Blizzard/s2client-proto#downloads (under its licence), "
        "unpack it and set SC2PATH to the folder StarCraftII"
    )
    if not folder.is_dir():
        yield f"the game: looked for the folder {folder} ({source}), found none; {download}"
        return
    if not list(folder.glob("Versions/Base*/SC2_x64")):
        content = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        yield (
            f"the game: looked for Versions/Base*/SC2_x64 in {folder} ({source}), found no such file but {content}; "
            f"{download}"
        )
    maps = folder / "Maps" / "SMAC_Maps"
    if not (maps / map_file).is_file():
        content = f"{len(list(maps.glob('*.SC2Map')))} other maps" if maps.is_dir() else "no such folder"
        yield (
            f"the map: looked for {maps / map_file}, found {content}; get SMAC_Maps.zip from "
            f"https://github.com/oxwhirl/{'smacv2' if map_file.startswith('32x32') else 'smac'}/releases and unpack "
            f"it into {maps.parent}"
        )


def make(
    task_id: str, num_envs: int, device: torch.device | str, dtype: torch.dtype | None, opponent: Policy | None
) -> StarCraftEnv:
    """The environment of a task; arguments as in `marl_flow.envs.make`."""
    if opponent is not None:
        raise UserError(f"{task_id}: the enemy is the game's own; leave `opponent` out")
    return StarCraftEnv(task_id, num_envs, device=device, dtype=dtype or torch.float32)
