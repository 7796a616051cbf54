"""StarCraft II itself: `smac-sc2/<map>` through the package smac, `smacv2-sc2/<race>_<n>_vs_<m>` through smacv2.

The game and its packages are not installed with this one. `StarCraftEnv` first checks what is missing and says how to
get it. Observations, states, legal actions and rewards are the packages' own, unchanged: SMAC's default
observation without agent ids, as in the published offline datasets.
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

from marl_flow import tasks
from marl_flow.config import nearest
from marl_flow.envs.base import refuse_opponent
from marl_flow.envs.process_pool import Frame, Outcome, ProcessPool
from marl_flow.files import user_path
from marl_flow.interfaces import Policy, TaskSpec, UserError

REQUIRED_MODULES = {  # what a worker imports besides the package itself: module -> its distribution
    "pysc2": "pysc2",
    "s2clientprotocol": "s2clientprotocol",
    "portpicker": "portpicker",
    "websocket": "websocket-client",
    "absl": "absl-py",
}
PROTOBUF = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
TASKS = tuple(task_id for task_id, card in tasks.CARDS.items() if card.suite in ("smac-sc2", "smacv2-sc2"))


@dataclass(frozen=True)
class GameMap:
    """How a task's map is called by its package and on the disk. race: of the drawn teams, v2 only."""

    package: str
    map_name: str
    map_file: str
    battle: tasks.Battle
    race: tasks.Race | None = None


def find_map(task_id: str) -> GameMap:
    if task_id not in TASKS:
        raise UserError(f"unknown task {task_id!r}; {nearest(task_id, TASKS)}")
    suite, _, name = task_id.partition("/")
    if suite == "smac-sc2":
        return GameMap("smac", name, f"{name}.SC2Map", tasks.SMAC_MAPS[name].battle)
    battle = tasks.SMACV2_BATTLES[name]
    race = battle.races[0]
    return GameMap("smacv2", f"10gen_{race}", "32x32_flat.SC2Map", battle, race)


def spec(task_id: str) -> TaskSpec:
    """The `TaskSpec`, known without the packages; a worker compares it with its package's description."""
    find_map(task_id)
    return tasks.find_card(task_id).spec


class StarCraftEnv(ProcessPool):
    """E games of StarCraft II, each in a process of its own, behind `VectorEnv`.

    **Episodes are not determined by seeds.** The packages seed a game only when it is launched: a row's first seed is
    its game's, later ones do nothing, and smacv2 draws its teams and positions from generators that it never seeds.
    rewards [E, N] repeat the team's reward. terminated: win, defeat or both sides dead; truncated: undecided at the
    step limit; won: the enemy was defeated. A game that crashes is a UserError, never the end of an episode.

    Scale of the reward: killing every enemy once and winning is a return of 20 in smac; smacv2 sets each row's scale by
    the row's first enemy team, so that returns of different rows are on slightly different scales: compare win rates.

    smacv2's observations have a known defect, passed on unchanged: while no agent has seen enemy k yet, or once it is
    dead and no agent is near its last position, the entries of all enemies numbered below k are zero for every agent.

    game_version: e.g. "4.10.0", on which the published datasets were collected; None means the newest installed.
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
    game and count the enemies' health twice in the reward's scale. In that case a new game replaces this one.
    """

    def __init__(self, task_id: str, game_version: str | None = None) -> None:
        self._map, self._version = find_map(task_id), game_version
        self._env: Any = None
        self._has_ended = False
        self._steps = 0

    def describe(self) -> Mapping[str, Any]:
        """From the package's constructor, which launches no game."""
        info = self._build(None).get_env_info()
        names = {
            "num_agents": "n_agents",
            "observation_size": "obs_shape",
            "state_size": "state_shape",
            "num_actions": "n_actions",
            "max_steps": "episode_limit",
        }
        return {ours: int(info[theirs]) for ours, theirs in names.items()}

    def reset(self, seed: int) -> Frame:
        for _ in range(2):
            if self._env is not None and not self._has_ended:
                self.close()
            if self._env is None:
                self._env, self._has_ended = self._build(seed), False
            relaunches = self._env.force_restarts
            self._env.reset()  # smacv2 returns None if it had to place its units twice
            if self._env.force_restarts == relaunches:
                self._fix_reward_scale()
                self._steps = 0
                return self._frame()
            self.close()  # crashed and relaunched within reset: its units may belong to the former game
        raise UserError(f"the game crashed twice while a battle on {self._map.map_name} was prepared; {_CRASH_ADVICE}")

    def step(self, actions: Sequence[int]) -> Outcome:
        self._steps += 1
        reward, ended, info = self._env.step([int(action) for action in actions])
        if "battle_won" not in info:  # how the packages report a crash: zero reward, the end, an empty info
            raise UserError(f"the game crashed in step {self._steps} of an episode; {_CRASH_ADVICE}")
        truncated = bool(info.get("episode_limit", False))  # set by the packages when the limit, not a side, decided
        self._has_ended |= bool(ended)
        return Outcome(
            frame=self._frame(),
            reward=float(reward),
            terminated=bool(ended) and not truncated,
            truncated=truncated,
            won=bool(info["battle_won"]),
        )

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _frame(self) -> Frame:
        """Reads observations once a step, and once more after `reset`: smacv2's change with every reading (which agents
        have seen which units), and its own training code reads them this way."""
        return Frame(
            observations=np.asarray(self._env.get_obs(), dtype=np.float32),
            mask=np.asarray(self._env.get_avail_actions(), dtype=bool),
            state=np.asarray(self._env.get_state(), dtype=np.float32),
        )

    def _fix_reward_scale(self) -> None:
        """While its first battle is prepared, a package adds the enemies' health to the scale in every frame, more than
        once if units appear late. This counts it once."""
        inner = self._env.env if self._map.race else self._env
        if not self._has_ended:
            health = sum(unit.health_max + unit.shield_max for unit in inner.enemies.values())
            inner.max_reward = inner.n_enemies * inner.reward_death_value + inner.reward_win + health

    def _build(self, seed: int | None) -> Any:
        """The package's environment. continuing_episode only tells time-outs from decided battles.

        The game's protocol was generated for protobuf below 3.21, with which TensorBoard no longer works; newer ones
        read it with their implementation in Python, which is also the only one that 3.20 has for our Python versions.
        """
        os.environ.setdefault(PROTOBUF, "python")
        options: dict[str, Any] = {
            "map_name": self._map.map_name,
            "continuing_episode": True,
            "game_version": self._version,
            "seed": None if seed is None else seed % (2**32 - 1) + 1,  # 32 bits in the game's protocol
        }
        if self._map.race is None:
            from smac.env import StarCraft2Env  # pyright: ignore  # where smac is absent, pyright takes our folder for it

            return StarCraft2Env(**options)
        from smacv2.env import StarCraftCapabilityEnvWrapper  # pyright: ignore[reportMissingImports]

        return StarCraftCapabilityEnvWrapper(
            **options,
            capability_config=capability_config(self._map),  # a new one: the wrapper writes into it
            use_unit_ranges=True,
            min_attack_range=2,
            obs_own_pos=True,
        )


_CRASH_ADVICE = "StarCraft II does this sometimes, mostly when memory is short: use fewer environments"


def capability_config(game_map: GameMap) -> dict[str, Any]:
    """How SMACv2 draws an episode: both teams, the larger one's additional units included, and all start positions."""
    assert game_map.race is not None
    drawn = tasks.SMACV2_TEAMS[game_map.race]
    team: dict[str, Any] = {"dist_type": "weighted_teams", "unit_types": [*drawn.units]}
    team |= {"weights": [*drawn.units.values()], "observe": True}
    if drawn.never_alone:
        team["exception_unit_types"] = [*drawn.never_alone]
    return {
        "n_units": game_map.battle.num_agents,
        "n_enemies": game_map.battle.num_enemies,
        "team_gen": team,
        "start_positions": {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32},
    }


def check_installed(task_id: str) -> None:
    """Raises a UserError that lists everything that a task needs and this machine lacks, and how to get it."""
    game_map = find_map(task_id)
    missing = [*_missing_packages(game_map.package), *_missing_game(game_map.map_file)]
    if missing:
        listed = "\n".join(f"  - {line}" for line in missing)
        raise UserError(
            f"{task_id} runs StarCraft II itself, which is not completely installed here:\n{listed}\n"
            "The embedded simulator needs none of this"
        )


def _missing_packages(package: str) -> Iterator[str]:
    install = (
        f"pip install --no-deps git+https://github.com/oxwhirl/{package}.git {' '.join(REQUIRED_MODULES.values())}"
    )
    module = importlib.util.find_spec(package)
    folders = [Path(folder) for folder in (module.submodule_search_locations or [])] if module else []
    if module and not any((folder / "env" / "starcraft2" / "starcraft2.py").is_file() for folder in folders):
        yield (
            f"module {package}: looked for its folder env/starcraft2, found another project of the same name in "
            f"{', '.join(map(str, folders))} (plain `pip install smac` installs it); pip uninstall {package}, {install}"
        )
    missing = [name for name in (package, *REQUIRED_MODULES) if importlib.util.find_spec(name) is None]
    if missing:
        yield (
            f"Python packages: looked for the modules {', '.join((package, *REQUIRED_MODULES))}, did not find "
            f"{', '.join(missing)}; {install} (without --no-deps it brings a protobuf that breaks TensorBoard)"
        )


def _missing_game(map_file: str) -> Iterator[str]:
    """What pysc2 would not find, on Linux; on other systems its own search and its own message are used."""
    if not sys.platform.startswith("linux"):
        return
    chosen = os.environ.get("SC2PATH")
    folder = user_path(chosen if chosen is not None else "~/StarCraftII")
    source = "SC2PATH" if chosen is not None else "the default, as SC2PATH is not set"
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
    refuse_opponent(task_id, opponent)
    return StarCraftEnv(task_id, num_envs, device=device, dtype=dtype or torch.float32)
