"""The study of the embedded SMAC: its numbers, its refusals, and that its teams meet maps they neither own nor lose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from marl_flow import seeding
from marl_flow.benchmarks.speed import smac
from marl_flow.benchmarks.studies import smac_simulator
from marl_flow.benchmarks.studies.smac_references import loops_per_shot, regression
from marl_flow.benchmarks.tables.definitions import SMAC_SIMULATOR
from marl_flow.benchmarks.tables.folders import RESULTS, read_rows
from marl_flow.envs.smac.env import SmacEnv
from marl_flow.envs.smac.scripted import ScriptedTeam
from marl_flow.interfaces import UserError

EPISODES = 6


@pytest.mark.slow
def test_rows_are_what_single_battles_give() -> None:
    """Catches rewards counted once per agent, steps counted after the end, time-outs taken for losses, and seeds of
    another purpose: every battle again, alone."""
    returns, lengths, wins, left = [], [], 0, 0
    seeds = seeding.environment_seeds("behaviour", 0, EPISODES)
    assert not set(seeds) & set(seeding.environment_seeds("evaluate", 0, 1000))
    env = SmacEnv("smac/3m", 1)
    team = ScriptedTeam(env, "focus")
    for seed in seeds:
        step, total, length = env.reset([seed]), 0.0, 0
        while not bool(step.finished):
            step = env.step(team.act(step.observations, step.action_mask, step.rewards))
            total, length = total + float(step.rewards[0, 0]), length + 1
        assert step.won is not None
        wins += int(step.won)
        left += int(env.battle_state.battle.alive[3:].sum())
        returns.append(total)
        lengths.append(length)
    result = smac_simulator.study(["3m"], EPISODES)
    cell = next(cell for cell in result["cells"] if cell["team"] == "focus")
    expected = torch.tensor(returns, dtype=torch.float64)
    assert cell["return_mean"] == pytest.approx(float(expected.mean()), abs=1e-5)
    assert cell["return_sd"] == pytest.approx(float(expected.std()), abs=1e-5)
    assert cell["mean_length"] == pytest.approx(sum(lengths) / EPISODES)
    assert (cell["win_rate"], cell["enemies_left"]) == (wins / EPISODES, pytest.approx(left / EPISODES))
    (row,) = (row for row in smac_simulator.files(result)["teams"] if (row["map"], row["team"]) == ("3m", "focus"))
    assert (row["return_mean"], row["win_rate"]) == (pytest.approx(float(expected.mean()), abs=1e-5), wins / EPISODES)


def test_random_actions_are_uniform_over_the_legal_ones() -> None:
    """Catches an illegal choice, and a rank that never reaches the last legal action."""
    mask = torch.tensor([False, True, False, True, True])[None, None].expand(1, 300, -1)
    actions = smac_simulator.random_legal(mask, torch.arange(300)[None] / 300)
    assert actions[0].bincount().tolist() == [0, 100, 0, 100, 100]


@pytest.mark.slow
def test_regression_values_are_the_recorded_ones() -> None:
    """Catches a reading of other columns or steps than those recorded: what both can show exactly is equal."""
    rows = {row["quantity"]: row for row in regression(16)}
    moved = rows["x of agent 0 in the state at t = 0, 1, 2, walking east"]
    assert [float(value) for value in moved["here"].split(", ")] == [float(v) for v in moved["real"].split(", ")]
    assert rows["First step with damage"]["here"] == "4 (always)"
    assert rows["Hits that kill a marine"]["here"] == "8 (always)"


def test_loops_between_shots() -> None:
    """Catches counting a shot too many: a hit every second step is 16 loops per shot."""
    rewards = torch.zeros(3, 200)
    rewards[:, ::2] = 6.0
    assert loops_per_shot(rewards) == 16.0


def test_what_it_refuses() -> None:
    """Catches an unknown map found out after minutes, and a deviation of one episode."""
    with pytest.raises(UserError, match="unknown SMAC map '3n'"):
        smac_simulator.study(["3m", "3n"], EPISODES)
    with pytest.raises(UserError, match="at least 2 episodes"):
        smac_simulator.study(["3m"], 1)


@pytest.mark.slow
def test_the_command_writes_the_files_of_its_tables(tmp_path: Path) -> None:
    """Catches a file or column that the published tables read and a new study would not write."""
    smac_simulator.main(["--out", str(tmp_path), "--episodes", "4", "3m"])
    published = Path(__file__).parents[3] / RESULTS / SMAC_SIMULATOR
    for path in published.glob("*.csv"):
        fresh, kept = read_rows(tmp_path / path.name), read_rows(path)
        assert set(kept[0]) <= set(fresh[0])
    (focus,) = (row for row in read_rows(tmp_path / "teams.csv") if row["team"] == "focus")
    assert (focus["map"], focus["episodes"]) == ("3m", "4")
    groups = {row["wins"]: row["maps"] for row in read_rows(tmp_path / "scripts.csv")}
    assert sorted(groups.values()) == ["3m", "none", "none"]


def test_a_simulator_that_moved_or_changed_is_noticed(tmp_path: Path) -> None:
    """Catches a fingerprint of nothing, where the simulator's source is elsewhere, and one that no change moves."""
    with pytest.raises(RuntimeError, match=r"found no battle\.py, env\.py, scripted\.py, step\.py there"):
        smac_simulator.fingerprint(tmp_path)
    copy = shutil.copytree(smac_simulator.SIMULATOR, tmp_path / "smac")
    assert smac_simulator.fingerprint(copy) == smac_simulator.fingerprint()
    (copy / "terrain.py").write_text("# changed\n")
    assert smac_simulator.fingerprint(copy) != smac_simulator.fingerprint()


def test_a_killed_study_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches finished maps played again, and maps kept from another simulator or number of episodes."""
    kept = tmp_path / "cells.json"
    maps = {"3m": [{"team": "marker"}]}
    record = {"simulator": smac_simulator.fingerprint(), "episodes": 7, "maps": maps}
    kept.write_text(json.dumps(record))
    assert smac_simulator.recall(kept, 7) == maps
    assert smac_simulator.recall(kept, 8) == {} == smac_simulator.recall(tmp_path / "absent.json", 7)
    monkeypatch.setattr(smac_simulator, "fingerprint", lambda: "another")
    assert smac_simulator.recall(kept, 7) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3m", "8m", "2s3z"])
def test_a_script_wins_sometimes_but_not_always(name: str) -> None:
    """Catches a simulator so deterministic, or so one-sided, that these maps tell no teams apart."""
    env = SmacEnv(f"smac/{name}", 100)
    assert any(0.0 < smac_simulator.play(env, team).win_rate < 1.0 for team in ("focus", "nearest"))


def test_maps_for_smaclite_hold_the_same_armies() -> None:
    """Catches a ratio of speeds between two different battles."""
    lite = smac.lite_map("5m_vs_6m")
    assert (lite["num_allied_units"], lite["num_enemy_units"]) == (5, 6)
    assert [group["units"] for group in lite["groups"]] == [{"MARINE": 5}, {"MARINE": 6}]
    assert smac.lite_map("8m")["num_enemy_units"] == 8
