"""The embedded SMAC under scripted teams, beside what is known of the real game and of SMAClite.

    python -m marl_flow.benchmarks.studies.smac_simulator --out FOLDER [--episodes N] [--insert docs/smac.md] [maps...]

Writes FOLDER/smac_study.md and .json, for every embedded map or those named; `--insert` also replaces what stands
between the two marks in a document. A killed study continues with the same command: finished maps are kept in
FOLDER/cells.json until the number of episodes or the simulator's source changes. Episodes are seeded for the purpose
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

from marl_flow import envs, seeding
from marl_flow.benchmarks.scores import wilson_interval
from marl_flow.benchmarks.studies.smac_references import PUBLISHED, SMACLITE, SMACV2, regression
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.envs.smac.maps import MAPS, find_map
from marl_flow.envs.smac.scripted import SCRIPTS, ScriptedTeam
from marl_flow.files import write_atomically
from marl_flow.interfaces import UserError

log = logging.getLogger(__name__)

TEAMS = ("random", *SCRIPTS)
EPISODES = 1000
ACTION_STREAM = 1_000_000
"""Random actions of step t are the seeds' stream ACTION_STREAM + t: the battles' own streams are the steps."""
MARKS = ("<!-- smac_study: begin -->", "<!-- smac_study: end -->")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One team on one map; rates in [0, 1], the win rate with its 95 % Wilson interval, the sample's deviation."""

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
    upto = mask.cumsum(-1)
    chosen = (uniform * upto[..., -1]).floor()
    return (upto <= chosen[..., None]).sum(-1)


def play(env: SmacEnv, team: str) -> Cell:
    """One episode of each of the environment's rows."""
    seeds = torch.tensor(seeding.environment_seeds("behaviour", 0, env.num_envs))
    step = env.reset(seeds.tolist())
    script = None if team == "random" else ScriptedTeam(env, team)
    returns, lengths = torch.zeros(len(seeds), dtype=torch.float64), torch.zeros(len(seeds))
    for tick in range(env.spec.max_steps):
        assert step.action_mask is not None
        if script is None:
            uniform = seeding.row_uniform(seeds, ACTION_STREAM + tick, env.spec.num_agents)
            actions = random_legal(step.action_mask, uniform)
        else:
            actions = script.act(step.observations, step.action_mask, step.rewards)
        lengths += ~step.finished
        step = env.step(actions)
        returns += step.rewards[:, 0]
        if bool(step.finished.all()):
            break
    assert step.won is not None
    left = env.battle_state.battle.alive[env.spec.num_agents :].sum(0)
    wins = int(step.won.sum())
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
        mean_length=float(lengths.mean()),
        time_outs=float(step.truncated.double().mean()),
        enemies_left=float(left.double().mean()),
    )


# The report


def study(maps: Sequence[str], episodes: int, kept: Path | None = None) -> dict[str, Any]:
    """cells of the maps (none named: all), regression values, and SMACv2's random cell where it is embedded.

    kept: where finished maps are remembered."""
    if episodes < 2:
        raise UserError(f"expected at least 2 episodes (a deviation is worked out), got {episodes}; ask for more")
    names = [find_map(name).name for name in maps] or list(MAPS)
    with seeding.one_thread():
        known, sign = recall(kept, episodes), fingerprint()
        for name in names:
            if name not in known:
                env = SmacEnv(f"smac/{name}", episodes)
                known[name] = [asdict(play(env, team)) for team in TEAMS]
                if kept is not None:
                    text = json.dumps({"simulator": sign, "episodes": episodes, "maps": known}, indent=1)
                    write_atomically(kept, f"{text}\n".encode())
            log.info("%s: %s", name, "; ".join(f"{cell['team']} {shown(Cell(**cell))}" for cell in known[name]))
        cells = [cell for name in names for cell in known[name]]
        generated = None
        if SMACV2[0] in envs.TASKS:
            drawn = envs.make(SMACV2[0], episodes)
            assert isinstance(drawn, SmacEnv)
            generated = asdict(play(drawn, "random"))
        rows = regression(episodes)
    return {"episodes": episodes, "simulator": sign, "cells": cells, "smacv2": generated, "regression": rows}


def fingerprint() -> str:
    """Changes with the source of the simulator, the teams or this file."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    sources = sorted((Path(envs.__file__).parent / "smac").glob("*.py"))
    assert len(sources) > 10, f"expected the simulator's source beside {envs.__file__}, found {len(sources)} files"
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def recall(kept: Path | None, episodes: int) -> dict[str, list[dict[str, Any]]]:
    """Map to cells of an earlier call with as many episodes of the same simulator; empty where there was none."""
    if kept is None or not kept.is_file():
        return {}
    record = json.loads(kept.read_text(encoding="utf-8"))
    same = record["simulator"] == fingerprint() and record["episodes"] == episodes
    return record["maps"] if same else {}


def shown(cell: Cell) -> str:
    return f"{cell.return_mean:.2f} ({cell.mean_length:.1f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A Markdown table; with `numbers`, all columns but the first two are aligned to the right."""
    rule = ["---:" if numbers and column > 1 else "---" for column in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows)) + "\n"


def markdown(result: Mapping[str, Any]) -> str:
    """The study's tables."""
    cells = [Cell(**record) for record in result["cells"]]
    name = {cell.task: cell.task.partition("/")[2] for cell in cells}
    by_map = {task: [cell for cell in cells if cell.task == task] for task in name}
    groups: dict[str, list[str]] = {"sometimes": [], "always": [], "never": []}
    for task, row in by_map.items():
        rates = [cell.win_rate for cell in row if cell.team != "random"]
        kind = "sometimes" if any(0 < rate < 1 for rate in rates) else "always" if max(rates) == 1 else "never"
        groups[kind].append(name[task])
    main = [
        (
            name[cell.task],
            cell.team,
            f"{cell.return_mean:.2f} ± {cell.return_sd:.2f}",
            f"{100 * cell.win_rate:.1f} [{100 * cell.win_low:.1f}, {100 * cell.win_high:.1f}]",
            f"{cell.mean_length:.1f}",
            f"{100 * cell.time_outs:.1f}",
            f"{cell.enemies_left:.2f}",
        )
        for cell in cells
    ]
    anchors = [
        (name[task], PUBLISHED[name[task]], "; ".join(f"{c.team} {shown(c)}" for c in row) + f"; max {top(row):.2f}")
        for task, row in by_map.items()
        if name[task] in PUBLISHED
    ]
    drawn = result["smacv2"]
    ours = f"random {shown(Cell(**drawn))}; max {drawn['return_max']:.2f}" if drawn else "not embedded"
    anchors.append((SMACV2[0], SMACV2[1], ours))
    peers = []
    for cell in cells:
        if (peer := SMACLITE.get((name[cell.task], cell.team))) is not None:
            here = f"{cell.return_mean:.2f} ± {cell.return_sd:.2f}"
            won = f"{peer[1]} / {100 * cell.win_rate:.1f}"
            rest = (f"{peer[2]} / {cell.mean_length:.1f}", f"{peer[3]} / {cell.enemies_left:.2f}")
            peers.append((name[cell.task], cell.team, f"{peer[0]} / {here}", won, *rest))
    readings = [(row["quantity"], row["real"], row["here"]) for row in result["regression"]]
    said = {kind: ", ".join(maps) or "none" for kind, maps in groups.items()}
    return "\n".join(
        (
            f"### Teams ({result['episodes']:,} episodes a row)\n",
            table(("Map", "Team", "Return", "Won, % [95 %]", "Length", "Time-outs, %", "Enemies left"), main, True),
            f"A script wins sometimes, but not always: {said['sometimes']}. One always wins: {said['always']}. None "
            f"ever wins: {said['never']}.\n",
            "### A recorded episode of the real game (3m, StarCraft II 4.10) and this simulator\n",
            table(("Quantity", "Real", "Here"), readings),
            "### Published figures of the real game: return (mean length)\n",
            table(("Map", "Real game", "Here"), anchors),
            "### SMAClite / here\n",
            table(("Map", "Team", "Return", "Won, %", "Length", "Enemies left"), peers, True),
        )
    )


def top(row: Sequence[Cell]) -> float:
    return max(cell.return_max for cell in row)


def inserted(document: str, text: str, path: Path) -> str:
    """A document with the text between its two marks."""
    before, begin, rest = document.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise UserError(f"{path}: expected the lines {MARKS[0]} and {MARKS[1]}, found not both; add them")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", nargs="*", help="names of maps, e.g. 3m; none: all")
    parser.add_argument("--out", type=Path, required=True, help="folder for smac_study.md and smac_study.json")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="per map and team")
    parser.add_argument("--insert", type=Path, help="a document whose marked part is replaced by the tables")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.insert is not None:
        if not options.insert.is_file():
            raise UserError(f"--insert: expected a document, found none at {options.insert}; create it with the marks")
        inserted(options.insert.read_text(encoding="utf-8"), "", options.insert)
    options.out.mkdir(parents=True, exist_ok=True)
    result = study(options.maps, options.episodes, options.out / "cells.json")
    text = markdown(result)
    (options.out / "smac_study.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.out / "smac_study.md").write_text(text, encoding="utf-8")
    if options.insert is not None:
        document = options.insert.read_text(encoding="utf-8")
        options.insert.write_text(inserted(document, text, options.insert), encoding="utf-8")
    log.info("%s", text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"smac_study: {error}")
