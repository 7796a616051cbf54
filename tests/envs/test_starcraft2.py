"""The adapter to StarCraft II, without the game: what is missing and how it is said, the adapter over a stub, and over
the real packages' own Python above a fake game where they can be imported (they are not in CI)."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from marl_flow import tasks
from marl_flow.envs import starcraft2
from marl_flow.envs.process_pool import Frame
from marl_flow.interfaces import UserError, VectorEnv

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def fakes() -> Iterator[ModuleType]:
    sys.path.insert(0, str(HERE))
    import starcraft_fakes

    yield starcraft_fakes
    sys.path.remove(str(HERE))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Game` sets this in its worker; here it is taken back."""
    monkeypatch.setenv(starcraft2.PROTOBUF, "python")


# The table


@pytest.mark.parametrize(
    ("name", "actions", "observation", "state"),
    [
        ("3m", 9, 30, 48),
        ("8m", 14, 80, 168),
        ("25m", 31, 250, 950),
        ("5m_vs_6m", 12, 55, 98),
        ("8m_vs_9m", 15, 85, 179),
        ("10m_vs_11m", 17, 105, 243),
        ("27m_vs_30m", 36, 285, 1170),
        ("2s3z", 11, 80, 120),
        ("3s5z", 14, 128, 216),
        ("3s5z_vs_3s6z", 15, 136, 230),
        ("3s_vs_3z", 9, 36, 54),
        ("3s_vs_4z", 10, 42, 61),
        ("3s_vs_5z", 11, 48, 68),
        ("2m_vs_1z", 7, 16, 26),
        ("2s_vs_1sc", 7, 17, 27),
        ("so_many_baneling", 38, 202, 397),
        ("MMM", 16, 160, 290),
        ("MMM2", 18, 176, 322),
        ("1c3s5z", 15, 162, 270),
        ("6h_vs_8z", 14, 78, 140),
        ("corridor", 30, 156, 282),
        ("bane_vs_bane", 30, 336, 984),
        ("2c_vs_64zg", 70, 332, 342),
    ],
)
def test_sizes_of_smac(name: str, actions: int, observation: int, state: int) -> None:
    """Catches a wrong number in the table or a part of a vector forgotten (sizes of published datasets and cards)."""
    spec = starcraft2.spec(f"smac-sc2/{name}")
    assert (spec.action.size, spec.observation_size, spec.state_size) == (actions, observation, state)
    assert spec.agents[0] == "agent_0" and spec.team_reward == "shared" and spec.action.is_discrete


@pytest.mark.parametrize(
    ("name", "observation"), [("terran_5_vs_5", 82), ("terran_10_vs_10", 162), ("protoss_5_vs_5", 92)]
)
def test_sizes_of_smacv2(name: str, observation: int) -> None:
    """Catches the own position or a shield forgotten (sizes of the published datasets)."""
    spec = starcraft2.spec(f"smacv2-sc2/{name}")
    assert spec.observation_size == observation and spec.max_steps == 200


def test_unknown_tasks_list_near_ones() -> None:
    """Catches a misspelt map met with a stack trace, or with all 38 names."""
    with pytest.raises(UserError, match=r"unknown task 'smac-sc2/5m_v_6m'; nearest: smac-sc2/5m_vs_6m, "):
        starcraft2.spec("smac-sc2/5m_v_6m")
    with pytest.raises(UserError, match=r"unknown task 'smacv2-sc2/terran_5_vs_6'; nearest: smacv2-sc2/terran_5_vs_5"):
        starcraft2.StarCraftEnv("smacv2-sc2/terran_5_vs_6", 1)
    assert len(set(starcraft2.TASKS)) == 23 + 15


# What is missing


class Machine:
    """A made-up machine: which modules are there (name -> folder), and where the game should be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.modules: dict[str, Path] = {}
        self.folder, self.patch = folder, monkeypatch
        monkeypatch.setattr(importlib.util, "find_spec", self.find_spec)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setenv("SC2PATH", str(folder))
        monkeypatch.setattr(multiprocessing, "get_context", lambda _: pytest.fail("a worker is started"))

    def find_spec(self, name: str) -> Any:
        folders = [str(self.modules[name])] if name in self.modules else None
        return folders and SimpleNamespace(submodule_search_locations=folders)

    def complete(self, package: str = "smac", map_name: str = "3m") -> Machine:
        for path in (
            self.folder.parent / package / "env" / "starcraft2" / "starcraft2.py",
            self.folder / "Versions" / "Base75689" / "SC2_x64",
            self.folder / "Maps" / "SMAC_Maps" / f"{map_name}.SC2Map",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        self.modules |= {**dict.fromkeys(starcraft2.REQUIRED_MODULES, Path()), package: self.folder.parent / package}
        return self


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "StarCraftII")


def refusal(task_id: str) -> str:
    with pytest.raises(UserError) as caught:
        starcraft2.StarCraftEnv(task_id, 1)
    return str(caught.value)


def test_a_bare_machine_is_told_everything_at_once(machine: Machine) -> None:
    """Catches a list that comes one item per try, a place looked at but not named, and `pip install smac`."""
    text = refusal("smac-sc2/3m")
    for part in (
        "smac-sc2/3m runs StarCraft II itself, which is not completely installed here:\n  - Python packages: ",
        "looked for the modules smac, pysc2, s2clientprotocol, portpicker, websocket, absl, did not find smac, pysc2, ",
        "pip install --no-deps git+https://github.com/oxwhirl/smac.git pysc2 s2clientprotocol portpicker websocket-cl",
        f"the game: looked for the folder {machine.folder} (SC2PATH), found none; get the Linux package 4.10 from "
        "https://github.com/Blizzard/s2client-proto#downloads",
    ):
        assert part in text
    assert not re.search(r"pip install smac\b", text)
    assert "git+https://github.com/oxwhirl/smacv2.git" in refusal("smacv2-sc2/zerg_10_vs_11")
    machine.patch.delenv("SC2PATH")
    machine.patch.setenv("HOME", str(machine.folder.parent))
    assert f"{machine.folder} (the default, as SC2PATH is not set), found none" in refusal("smac-sc2/3m")


def test_each_missing_part(machine: Machine) -> None:
    """Catches the other project named smac taken for this one, a folder without the game, and maps unpacked at another
    place."""
    machine.complete()
    starcraft2.check_installed("smac-sc2/3m")
    assert (
        f"looked for {machine.folder}/Maps/SMAC_Maps/8m.SC2Map, found 1 other maps; get SMAC_Maps.zip from "
        f"https://github.com/oxwhirl/smac/releases and unpack it into {machine.folder}/Maps" in refusal("smac-sc2/8m")
    )
    del machine.modules["websocket"]
    assert ", did not find websocket; pip install --no-deps git+" in refusal("smac-sc2/3m")
    (machine.folder.parent / "smac" / "env" / "starcraft2" / "starcraft2.py").unlink()
    assert "found another project of the same name in" in refusal("smac-sc2/3m")

    v2 = machine.complete("smacv2", "32x32_flat")
    starcraft2.check_installed("smacv2-sc2/protoss_20_vs_23")
    (v2.folder / "Maps" / "SMAC_Maps").rename(v2.folder / "SMAC_Maps")
    (v2.folder / "Versions" / "Base75689" / "SC2_x64").unlink()
    text = refusal("smacv2-sc2/protoss_20_vs_23")
    assert f"looked for Versions/Base*/SC2_x64 in {v2.folder} (SC2PATH), found no such file but Maps, SMAC_Maps" in text
    assert (
        "32x32_flat.SC2Map, found no such folder; get SMAC_Maps.zip from https://github.com/oxwhirl/smacv2/rel" in text
    )


# The adapter over a stub


def test_what_the_packages_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches another observation than the datasets', time-outs that cannot be told, seeds too large for the game, a
    capability config shared between two environments (the wrapper writes into it), and a protobuf that fails."""
    monkeypatch.delenv(starcraft2.PROTOBUF)
    calls: list[dict[str, Any]] = []
    for name, kind in (("smac", "StarCraft2Env"), ("smacv2", "StarCraftCapabilityEnvWrapper")):
        module = ModuleType(f"{name}.env")
        setattr(module, kind, lambda **options: calls.append(options))
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, f"{name}.env", module)
    starcraft2.Game("smac-sc2/3m", "4.10.0")._build(2**63 - 1)
    assert calls[0].keys() == {"map_name", "continuing_episode", "game_version", "seed"}
    assert 0 < calls[0].pop("seed") < 2**32 and os.environ[starcraft2.PROTOBUF] == "python"
    assert calls[0] == {"map_name": "3m", "continuing_episode": True, "game_version": "4.10.0"}

    game = starcraft2.Game("smacv2-sc2/zerg_10_vs_11")
    for _ in range(2):
        game._build(None)
    assert calls[1] == calls[2] and calls[1]["capability_config"] is not calls[2]["capability_config"]
    assert calls[1]["capability_config"]["team_gen"] is not calls[2]["capability_config"]["team_gen"]
    assert calls[1] == {
        "map_name": "10gen_zerg",
        "continuing_episode": True,
        "game_version": None,
        "seed": None,
        "use_unit_ranges": True,
        "min_attack_range": 2,
        "obs_own_pos": True,
        "capability_config": {
            "n_units": 10,
            "n_enemies": 11,
            "team_gen": {
                "dist_type": "weighted_teams",
                "unit_types": ["zergling", "baneling", "hydralisk"],
                "weights": [0.45, 0.1, 0.45],
                "exception_unit_types": ["baneling"],
                "observe": True,
            },
            "start_positions": {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32},
        },
    }
    assert (
        "exception_unit_types"
        not in starcraft2.capability_config(starcraft2.find_map("smacv2-sc2/protoss_5_vs_5"))["team_gen"]
    )


@pytest.mark.parametrize(
    ("info", "ends"),
    [
        ({"battle_won": True}, (True, False, True)),
        ({"battle_won": False}, (True, False, False)),
        ({"battle_won": False, "episode_limit": True}, (False, True, False)),
    ],
)
def test_ends(fakes: ModuleType, info: dict[str, bool], ends: tuple[bool, bool, bool]) -> None:
    """Catches a time-out taken for a defeat, and a defeat in the last step for a time-out."""
    game = fakes.StubGame("smac-sc2/3m")
    game.answers = [(2.5, True, info)]
    game.reset(0)
    outcome = game.step([1, 1, 1])
    assert (outcome.terminated, outcome.truncated, outcome.won) == ends and outcome.reward == 2.5


def test_a_crash_is_an_error(fakes: ModuleType) -> None:
    """Catches the packages' crash report, (0, True, {}), taken for a battle that ended."""
    game = fakes.StubGame("smac-sc2/3m")
    game.answers = [(1.0, False, {"battle_won": False}), (0, True, {})]
    game.reset(0)
    game.step([1, 1, 1])
    with pytest.raises(UserError, match=r"the game crashed in step 2 of an episode; .* use fewer environments"):
        game.step([1, 1, 1])


def test_resets(fakes: ModuleType) -> None:
    """Catches a second game launched beside the first, seeds lost, and enemies counted twice in the reward's scale."""
    game = fakes.StubGame("smac-sc2/3m")
    game.reset(11)
    game.reset(12)  # the first episode has not ended
    assert [seed for _, seed in game.built] == [11, 12] and [stub.is_closed for stub, _ in game.built] == [True, False]
    assert game.built[1][0].max_reward == 10 * 3 + 200 + 3 * 50
    for _ in range(2):
        game.step([1, 1, 1])
    game.reset(13)
    game.reset(14)
    assert len(game.built) == 2 and game.built[1][0].resets == 3
    game.close()
    game.close()
    assert game.built[1][0].is_closed


def test_smacv2_behind_its_wrapper(fakes: ModuleType) -> None:
    """Catches the nothing that its reset may return, and a reward scale written onto the wrapper only."""
    game = fakes.StubGame("smacv2-sc2/terran_5_vs_5")
    frame = game.reset(0)
    assert frame.observations.shape == (5, 82) and game.built[0][0].max_reward == 10 * 5 + 200 + 5 * 50


def test_crashes_while_a_battle_is_prepared(fakes: ModuleType) -> None:
    """Catches units of the game that is gone shown as the new one's, and tries without end."""
    game = fakes.StubGame("smac-sc2/3m", restarts=[1, 0])
    assert isinstance(game.reset(3), Frame)
    assert [(stub.is_closed, seed) for stub, seed in game.built] == [(True, 3), (False, 3)]
    game = fakes.StubGame("smac-sc2/3m", restarts=[1, 1, 0])
    with pytest.raises(UserError, match="the game crashed twice while a battle on 3m was prepared"):
        game.reset(3)
    assert all(stub.is_closed for stub, _ in game.built)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that start at once."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pytest", "marl_flow.envs.process_pool"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: server)
    monkeypatch.setattr(starcraft2, "check_installed", lambda _: None)


@pytest.mark.usefixtures("forked")
def test_the_whole_environment(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a task, a reward or a flag lost between the game and the `VectorEnv`, and a crash without its row."""
    monkeypatch.setattr(starcraft2, "Game", fakes.StubGame)
    with starcraft2.StarCraftEnv("smac-sc2/3m", 1) as env:
        assert isinstance(env, VectorEnv) and env.spec == starcraft2.spec("smac-sc2/3m")
        assert env.reset([5]).observations[0, :, 0].tolist() == [0, 1, 2]
        stop = torch.ones(1, 3, dtype=torch.int64)
        assert env.step(stop).rewards.tolist() == [[0.5, 0.5, 0.5]]
        step = env.step(stop)
        assert step.rewards.tolist() == [[1.5, 1.5, 1.5]] and step.won.tolist() == step.terminated.tolist() == [True]
        env.reset([6])
        with pytest.raises(UserError, match="smac-sc2/3m: row 0, at step 1: IndexError: pop from empty list"):
            env.step(stop)


# Over the real packages, above a fake game


def needs(package: str) -> None:
    if missing := list(starcraft2._missing_packages(package)):
        pytest.skip(f"needs the real package, not the game; {missing[0]}")


def legal(frame: Frame, source: np.random.Generator) -> list[int]:
    return [int(source.choice(np.flatnonzero(row))) for row in frame.mask]


@pytest.mark.parametrize("task_id", starcraft2.TASKS)
def test_the_package_agrees_with_the_table(fakes: ModuleType, task_id: str) -> None:
    """Catches sizes or limits that another version of the package changed."""
    game_map, spec = starcraft2.find_map(task_id), starcraft2.spec(task_id)
    needs(game_map.package)
    assert starcraft2.Game(task_id).describe() == {
        "num_agents": spec.num_agents,
        "observation_size": spec.observation_size,
        "state_size": spec.state_size,
        "num_actions": spec.action.size,
        "max_steps": spec.max_steps,
    }


@pytest.mark.parametrize("name", tasks.SMAC_MAPS)
def test_everything_of_smac_passes_unchanged(fakes: ModuleType, name: str) -> None:
    """Catches any number that the adapter changes: its game beside the package used as the datasets' authors did."""
    needs("smac")
    from smac.env import StarCraft2Env

    source, game, theirs = (
        np.random.default_rng(0),
        fakes.RestoredGame(f"smac-sc2/{name}"),
        StarCraft2Env(map_name=name),
    )
    games: list[Any] = []
    fakes.restore(theirs, games, game.options)
    for episode in range(2):
        frame = game.reset(episode)
        observations, state = theirs.reset()
        rewards = []
        for _ in range(tasks.SMAC_MAPS[name].max_steps):
            assert np.array_equal(frame.observations, observations)
            assert np.array_equal(frame.state, state) and np.array_equal(frame.mask, theirs.get_avail_actions())
            actions = legal(frame, source)
            outcome = game.step(actions)
            reward, ended, info = theirs.step(actions)
            frame, observations, state = outcome.frame, theirs.get_obs(), theirs.get_state()
            assert outcome.reward == reward and outcome.won == info["battle_won"]
            assert (outcome.terminated or outcome.truncated) == ended
            rewards.append(reward)
            if ended:
                break
        assert outcome.truncated == (theirs.timeouts == episode + 1)
        assert ended and max(rewards) > 0
    assert [str(sent) for sent in game.games[0].sent] == [str(sent) for sent in games[0].sent]
    assert len(game.games) == len(games) == 1


@pytest.mark.parametrize(
    ("name", "fates", "ends"),
    [
        ("3m", {2: lambda game: game.kill(2)}, (2, True, False, True)),
        ("3m", {3: lambda game: game.kill(1)}, (3, True, False, False)),
        ("3m", {3: lambda game: game.kill(1, 2)}, (3, True, False, False)),
        ("3m", {}, (60, False, True, False)),
        ("3m", {60: lambda game: game.kill(2)}, (60, True, False, True)),
        ("3m", {60: lambda game: game.kill(1)}, (60, True, False, False)),
        ("3m", {60: lambda game: game.kill(1, 2)}, (60, True, False, False)),
        ("MMM", {4: lambda game: game.kill(1, 2)}, (4, True, False, False)),
    ],
)
def test_real_ends(
    fakes: ModuleType, name: str, fates: dict[int, Callable], ends: tuple[int, bool, bool, bool]
) -> None:
    """Catches a decision in the last step taken for a time-out, and the death of both sides for a victory."""
    needs("smac")
    source, game = np.random.default_rng(0), fakes.RestoredGame(f"smac-sc2/{name}", fates=fates)
    frame, steps = game.reset(0), 0
    while True:
        outcome = game.step(legal(frame, source))
        frame, steps = outcome.frame, steps + 1
        if outcome.terminated or outcome.truncated:
            break
    assert (steps, outcome.terminated, outcome.truncated, outcome.won) == ends


@pytest.mark.parametrize("call", ["actions", "step", "observe"])
def test_real_crash_in_a_step(fakes: ModuleType, call: str) -> None:
    """Catches a crash that the package hides behind the end of an episode."""
    needs("smac")
    source, game = np.random.default_rng(0), fakes.RestoredGame("smac-sc2/3m")
    frame = game.step(legal(game.reset(0), source)).frame
    game.games[0].failing.append(call)
    with pytest.raises(UserError, match="the game crashed in step 2 of an episode"):
        game.step(legal(frame, source))
    game.close()
    assert [launched.is_over for launched in game.games] == [True, True]


def test_real_crash_in_a_reset(fakes: ModuleType) -> None:
    """Catches the dead units of a game that is gone shown as the first frame of an episode."""
    needs("smac")
    game = fakes.RestoredGame("smac-sc2/3m", fates={2: lambda game: game.kill(2)})
    source, frame = np.random.default_rng(0), game.reset(0)
    for _ in range(2):
        frame = game.step(legal(frame, source)).frame
    game.games[0].failing.append("observe")
    frame = game.reset(1)
    assert (frame.observations[:, -1] == 1).all() and not frame.mask[:, 0].any()
    assert [launched.is_over for launched in game.games] == [True, True, False]


def test_real_reward_scale(fakes: ModuleType) -> None:
    """Catches a win worth less than 20 because a first battle was prepared twice or its units came late."""
    needs("smac")
    for late in (0, 2):
        game = fakes.RestoredGame("smac-sc2/2s3z", fates={1: lambda game: game.kill(2)}, late=late)
        game.reset(0)
        game.reset(1)
        assert game.step([1] * 5).reward == pytest.approx(20.0)
        assert [launched.is_over for launched in game.games] == [True, False]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("task_id", ["smac-sc2/2s3z", "smacv2-sc2/protoss_5_vs_5"])
def test_real_packages_in_workers(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, task_id: str) -> None:
    """Catches a package that works in this process only, and rows that disturb each other at their different ends."""
    needs(starcraft2.find_map(task_id).package)
    monkeypatch.setattr(starcraft2, "Game", fakes.RestoredGame)
    with starcraft2.StarCraftEnv(task_id, 2, dtype=torch.float64) as env:
        for episode in range(2):
            step = env.reset([episode, episode + 10])
            returns = torch.zeros(2, env.spec.num_agents, dtype=torch.float64)
            while not step.finished.all():
                before = step
                step = env.step(step.action_mask.to(torch.int64).argmax(-1))  # stop, or nothing once dead
                returns += step.rewards
                assert torch.equal(step.observations[before.finished], before.observations[before.finished])
            assert (returns > 0).all() and (returns[:, :1] == returns).all()


@pytest.mark.parametrize("task_id", [task for task in starcraft2.TASKS if task.startswith("smacv2")])
def test_smacv2_plays(fakes: ModuleType, task_id: str) -> None:
    """Catches teams or places that the package refuses, and what it shows changed or cut on the way."""
    needs("smacv2")
    source, game = np.random.default_rng(0), fakes.RestoredGame(task_id, fates={6: lambda game: game.kill(2)})
    spec, game_map = starcraft2.spec(task_id), starcraft2.find_map(task_id)
    for episode in range(2):
        frame = game.reset(episode)
        for _ in range(6):
            inner = game._env.env
            assert frame.observations.shape == (spec.num_agents, spec.observation_size)
            assert np.array_equal(frame.state, game._env.get_state())
            assert np.array_equal(frame.mask, game._env.get_avail_actions())
            for agent, unit in inner.agents.items():
                place = [unit.pos.x / 32, unit.pos.y / 32] if unit.health > 0 else [0, 0]
                assert frame.observations[agent, -5:-3] == pytest.approx(place)
            outcome = game.step(legal(frame, source))
            frame = outcome.frame
        assert outcome.won and outcome.terminated and outcome.reward > 0
        names = set(tasks.SMACV2_TEAMS[game_map.race].units)
        assert {inner.id_to_unit_name_map.get(unit.unit_type, "") for unit in inner.agents.values()} <= names | {""}
        if episode == 0:
            scale = (
                10 * game_map.battle.num_enemies
                + 200
                + sum(unit.health_max + unit.shield_max for unit in inner.enemies.values())
            )
            assert inner.max_reward == scale


def test_smacv2_shows_nothing_below_an_unseen_enemy(fakes: ModuleType) -> None:
    """Catches a package that no longer does what the docstring says of it."""
    needs("smacv2")
    game = fakes.RestoredGame("smacv2-sc2/zerg_5_vs_5")
    game.reset(0)
    inner = game._env.env
    for far in (None, 2, 4):
        inner.obs_enemies[:], inner.enemy_tags = 0, [None] * 5
        for unit in inner.agents.values():
            unit.pos.x, unit.pos.y = 10, 10
        for index, unit in inner.enemies.items():
            unit.pos.x = 30 if index == far else 12
            unit.pos.y = 10
        distances = game._frame().observations[:, 4 : 4 + 5 * 8].reshape(5, 5, 8)[:, :, 1]
        shown = [far is None or index > far for index in range(5)]
        assert (distances > 0).tolist() == [shown] * 5


def test_smacv2_tries_again(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a first frame of nothing, or a reward scale grown with every look, after units that did not appear."""
    needs("smacv2")
    from smacv2.env.starcraft2.starcraft2 import CannotResetException

    game = fakes.RestoredGame("smacv2-sc2/terran_5_vs_5", fates={1: lambda game: game.kill(2)})
    build, refusals = game._build, [1, 2]

    def reluctant(seed: int | None) -> Any:
        env = build(seed)
        reset = env.env.reset

        def refuse(config: dict[str, Any]) -> Any:
            result = reset(config)
            if refusals and refusals.pop():
                raise CannotResetException("waited for units to spawn and they didn't")
            return result

        env.env.reset = refuse
        return env

    game._build = reluctant
    frame = game.reset(0)
    assert frame.observations.any() and refusals == []
    inner = game._env.env
    assert inner.max_reward == 250 + sum(unit.health_max for unit in inner.enemies.values())
    assert game.step(legal(frame, np.random.default_rng(0))).reward == pytest.approx(20.0)
