"""The embedded SMAC under scripted teams, beside what is known of the real game and of SMAClite.

    python -m marl_flow.benchmarks.studies.smac_simulator --out FOLDER [--episodes N] [maps...]

Writes the CSV files behind docs/smac.md into FOLDER, for every embedded map or those named; `python -m
marl_flow.benchmarks.tables add` publishes them. A killed study resumes with the same command: finished maps are kept
in FOLDER/cells.json until the number of episodes or the simulator's source changes. Episodes are seeded for the purpose
"behaviour", never for evaluation, and are the same for every team: two runs on one machine give the same results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marl_flow import envs, seeding, tasks
from marl_flow.benchmarks.report import csv_text
from marl_flow.benchmarks.scores import wilson_interval
from marl_flow.benchmarks.studies.smac_references import PUBLISHED, SMACLITE, SMACV2, regression
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.envs.smac.maps import MAPS, find_map
from marl_flow.envs.smac.scripted import SCRIPTS, ScriptedTeam
from marl_flow.files import write_atomically
from marl_flow.interfaces import TimeStep, UserError
from marl_flow.rollout import rollout

log = logging.getLogger(__name__)

SMACLITE_COLUMNS = ("smaclite_return", "smaclite_won", "smaclite_length", "smaclite_left")
TEAMS = ("random", *SCRIPTS)
EPISODES = 1000
ACTION_STREAM = 1_000_000
"""Random actions of step t are stream ACTION_STREAM + t of the episodes' seeds: the battles use streams from 0 on."""
SIMULATOR = Path(envs.__file__).parent / "smac"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One team on one map; rates in [0, 1], the win rate with its 95 % Wilson interval, sample standard deviation."""

    task: str
    team: str
    episodes: int
    return_mean: float
    return_sd: float
    return_max: float
    win_rate: float
    win_low: float
    win_high: float
    mean_length: float
    time_outs: float
    enemies_left: float


def random_legal(mask: Tensor, uniform: Tensor) -> Tensor:
    """Actions [E, N], each uniform over the legal ones of mask [E, N, A], by numbers in [0, 1) [E, N]."""
    num_legal_upto = mask.cumsum(-1)
    rank = (uniform * num_legal_upto[..., -1]).floor()
    return (num_legal_upto <= rank[..., None]).sum(-1)


class RandomTeam:
    """Uniform legal actions, each episode's drawn from its own seed."""

    network_passes = 0

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds, self.step = torch.tensor(seeds), 0

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.step = 0

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        assert action_mask is not None
        uniform = seeding.row_uniform(self.seeds, ACTION_STREAM + self.step, action_mask.shape[1])
        self.step += 1
        return random_legal(action_mask, uniform)


def play(env: SmacEnv, team: str) -> Cell:
    """One episode of each of the environment's rows."""
    seeds = seeding.environment_seeds("behaviour", 0, env.num_envs)
    truncated = torch.zeros(len(seeds))

    def keep_truncated(step: TimeStep, actions: Tensor | None) -> None:
        truncated.copy_(step.truncated)

    policy = RandomTeam(seeds) if team == "random" else ScriptedTeam(env, team)
    episodes = rollout(env, policy, seeds, keep_truncated)
    assert episodes.won is not None
    returns = episodes.agent_returns[:, 0]
    left = env.battle_state.battle.alive[env.spec.num_agents :].sum(0)
    wins = int(episodes.won.sum())
    low, high = wilson_interval(wins, len(seeds))
    return Cell(
        task=env.spec.task_id,
        team=team,
        episodes=len(seeds),
        return_mean=float(returns.mean()),
        return_sd=float(returns.std()),
        return_max=float(returns.max()),
        win_rate=wins / len(seeds),
        win_low=low,
        win_high=high,
        mean_length=float(episodes.lengths.float().mean()),
        time_outs=float(truncated.double().mean()),
        enemies_left=float(left.double().mean()),
    )


# The study


def study(maps: Sequence[str], episodes: int, cache: Path | None = None) -> dict[str, Any]:
    """Cells of the maps (none named: all), regression values, and SMACv2's random cell where it is embedded.

    cache: the file that finished maps are written to, and read from by `recall`."""
    if episodes < 2:
        raise UserError(f"expected at least 2 episodes, for a standard deviation, got {episodes}; raise --episodes")
    names = [find_map(name).name for name in maps] or list(MAPS)
    with seeding.one_thread():
        finished, simulator = recall(cache, episodes), fingerprint()
        for name in names:
            if name not in finished:
                env = SmacEnv(f"smac/{name}", episodes)
                finished[name] = [asdict(play(env, team)) for team in TEAMS]
                if cache is not None:
                    text = json.dumps({"simulator": simulator, "episodes": episodes, "maps": finished}, indent=1)
                    write_atomically(cache, f"{text}\n".encode())
            log.info("%s: %s", name, "; ".join(f"{cell['team']} {shown(Cell(**cell))}" for cell in finished[name]))
        cells = [cell for name in names for cell in finished[name]]
        generated = None
        if SMACV2[0] in envs.TASKS:
            drawn = envs.make(SMACV2[0], episodes)
            assert isinstance(drawn, SmacEnv)
            generated = asdict(play(drawn, "random"))
        rows = regression(episodes)
    return {"episodes": episodes, "simulator": simulator, "cells": cells, "smacv2": generated, "regression": rows}


def fingerprint(simulator: Path = SIMULATOR) -> str:
    """Changes with the source of the simulator, the teams or this file."""
    sources = sorted(simulator.glob("*.py"))
    if missing := {"battle.py", "env.py", "scripted.py", "step.py"} - {path.name for path in sources}:
        raise RuntimeError(
            f"expected the simulator's source in {simulator}, found no {', '.join(sorted(missing))} there: results of "
            "different simulators could not be told apart; name its present folder in smac_simulator.py"
        )
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in [*sources, Path(tasks.__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def recall(cache: Path | None, episodes: int) -> dict[str, list[dict[str, Any]]]:
    """Map to cells of an earlier call with as many episodes of the same simulator; empty where there was none."""
    if cache is None or not cache.is_file():
        return {}
    record = json.loads(cache.read_text(encoding="utf-8"))
    same = record["simulator"] == fingerprint() and record["episodes"] == episodes
    return record["maps"] if same else {}


def shown(cell: Cell) -> str:
    return f"{cell.return_mean:.2f} ({cell.mean_length:.1f})"


def files(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The study's CSV files, name to rows: `teams`, `scripts` (on which maps they win), `recorded_episode`, `published`
    figures of the real game beside ours, and `smaclite`'s beside ours."""
    cells = [Cell(**record) for record in result["cells"]]
    name = {cell.task: cell.task.partition("/")[2] for cell in cells}
    by_map = {task: [cell for cell in cells if cell.task == task] for task in name}
    wins: dict[str, list[str]] = {"sometimes": [], "always": [], "never": []}
    for task, row in by_map.items():
        rates = [cell.win_rate for cell in row if cell.team != "random"]
        how_often = "sometimes" if any(0 < rate < 1 for rate in rates) else "always" if max(rates) == 1 else "never"
        wins[how_often].append(name[task])
    published = [
        {
            "map": name[task],
            "real": PUBLISHED[name[task]],
            "here": "; ".join(f"{cell.team} {shown(cell)}" for cell in row) + f"; max {top(row):.2f}",
        }
        for task, row in by_map.items()
        if name[task] in PUBLISHED
    ]
    drawn = result["smacv2"]
    ours = f"random {shown(Cell(**drawn))}; max {drawn['return_max']:.2f}" if drawn else "not embedded"
    published.append({"map": SMACV2[0], "real": SMACV2[1], "here": ours})
    teams = [{"map": name[cell.task], **asdict(cell)} for cell in cells]
    smaclite = [
        {**dict(zip(SMACLITE_COLUMNS, peer, strict=True)), **team}
        for team in teams
        if (peer := SMACLITE.get((team["map"], team["team"]))) is not None
    ]
    return {
        "teams": teams,
        "scripts": [{"wins": how_often, "maps": ", ".join(maps) or "none"} for how_often, maps in wins.items()],
        "recorded_episode": list(result["regression"]),
        "published": published,
        "smaclite": smaclite,
    }


def top(row: Sequence[Cell]) -> float:
    return max(cell.return_max for cell in row)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", nargs="*", help="names of maps, e.g. 3m; none: all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV files")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="per map and team")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    result = study(options.maps, options.episodes, options.out / "cells.json")
    for name, rows in files(result).items():
        if rows:
            (options.out / f"{name}.csv").write_text(csv_text(rows), encoding="utf-8")
    log.info("the study's CSV files are in %s", options.out)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"smac_simulator: {error}")
