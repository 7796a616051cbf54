"""Evaluations of run folders: killed ones continue, plans are reused as asked; real runs on a real task."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from marl_flow import checkpoint, evaluation
from marl_flow.commands import data, evaluate, train
from marl_flow.commands.evaluate import EvalConfig
from marl_flow.interfaces import EvaluationResult, UserError
from marl_flow.run_log import read_lines, read_results

DATASET = "mpe/simple_spread/random"
TINY = ("tensorboard=false", "updates=2", "batch_size=8")
FLOW = (*TINY, "width=16", "token_blocks=1", "inverse_hidden=8", "conditioning=mixed")
TEN = EvalConfig(steps=(1,), episodes=10, executions=("decentralized",))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset and the runs `flow` and `bc` on it."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARL_FLOW_DATA", str(root / "data"))
        data.build_dataset(DATASET, episodes=40)
        for name, algorithm, settings in (("flow", "coflow", FLOW), ("bc", "bc", TINY)):
            train.train(train.make_run(DATASET, algorithm, folder=root / name, settings=settings))
    return root


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run `flow`, whose data are at hand."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(trained / "data"))
    return Path(shutil.copytree(trained / "flow", tmp_path / "flow"))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every environment that episodes were played in, in order; the one for latencies is not among them."""
    rows: list[int] = []
    original = evaluation.rollout_together

    def watched(env: Any, sides: Sequence[Any]) -> list[evaluation.Episodes]:
        rows.append(env.num_envs)
        return original(env, sides)

    monkeypatch.setattr(evaluation, "rollout_together", watched)
    return rows


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten episodes are blocks of 4, 4 and 2."""
    monkeypatch.setattr(evaluation, "BLOCK", 4)


def untimed(results: Sequence[EvaluationResult]) -> list[EvaluationResult]:
    return [dataclasses.replace(result, latency_ms_p50=0.0, latency_ms_p95=0.0) for result in results]


def unfinished(folder: Path) -> list[Path]:
    return sorted(folder.glob("unfinished_*.jsonl"))


def stopped(folder: Path, asked: EvalConfig, *, after: int, **how: bool) -> list[Path]:
    """Evaluates, but is stopped when that many blocks are kept; returns the files they are kept in."""

    def stop(*_: object) -> list[evaluation.Episodes]:
        if sum(len(read_lines(path)) for path in unfinished(folder)) >= after:
            raise KeyboardInterrupt
        return original(*_)

    original = evaluation.rollout_together
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "rollout_together", stop)
        evaluate.evaluate(folder, asked, **how)
    return unfinished(folder)


@pytest.mark.slow
def test_a_killed_evaluation_continues(folder: Path, tmp_path: Path, played: list[int]) -> None:
    """Catches finished episodes that a SIGKILL loses, that are played again, or that change the result."""
    asked = EvalConfig(steps=(10,), episodes=300, executions=("centralized",))  # blocks of 128, 128 and 44
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    words = ["--k", "10", "--episodes", "300", "--execution", "centralized"]
    command = [sys.executable, "-m", "marl_flow", "eval", str(folder), *words]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not any(path.read_bytes().endswith(b"\n") for path in unfinished(folder)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not read_results(folder), "it was killed too late to tell anything"
    (file,) = unfinished(folder)
    kept = len(read_lines(file))
    assert kept in (1, 2)
    uninterrupted = evaluate.evaluate(whole, asked)
    assert played == [128, 128, 44]
    played.clear()
    continued = evaluate.evaluate(folder, asked)
    assert played == [128, 128, 44][kept:]
    assert untimed(continued) == untimed(uninterrupted) == untimed(read_results(folder))
    assert not unfinished(folder) and not unfinished(whole)
    assert evaluate.evaluate(folder, asked) == []


@pytest.mark.usefixtures("small_blocks")
def test_a_block_cut_while_being_written_is_played_again(folder: Path, tmp_path: Path, played: list[int]) -> None:
    """Catches a half line that stops the evaluation, costs the blocks before it, or counts."""
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    (file,) = stopped(folder, TEN, after=2)
    file.write_bytes(file.read_bytes()[:-30])
    played.clear()
    continued = evaluate.evaluate(folder, TEN)
    assert played == [4, 2] and not unfinished(folder)
    assert untimed(continued) == untimed(evaluate.evaluate(whole, TEN))


def other_weights(folder: Path, patch: pytest.MonkeyPatch) -> EvalConfig:
    """Another training that came to the same update of the same config."""
    path = checkpoint.latest(folder)
    assert path is not None
    loaded = checkpoint.load(path)
    weights = {name: value + 1 if name.endswith("bias") else value for name, value in loaded.algorithm.items()}
    checkpoint.save(folder, dataclasses.replace(loaded, algorithm=weights), keep=1)
    return TEN


def another_machine(folder: Path, patch: pytest.MonkeyPatch) -> EvalConfig:
    patch.setattr(evaluation, "machine", lambda algorithm: ("cpu", "another machine"))
    return TEN


def another_commit(folder: Path, patch: pytest.MonkeyPatch) -> EvalConfig:
    patch.setattr(evaluate, "environment_info", lambda: {"commit": "another"})
    return TEN


def other_blocks(folder: Path, patch: pytest.MonkeyPatch) -> EvalConfig:
    patch.setattr(evaluation, "BLOCK", 5)
    return TEN


def asking(**changes: Any) -> Callable[[Path, pytest.MonkeyPatch], EvalConfig]:
    return lambda folder, patch: dataclasses.replace(TEN, **changes)


@pytest.mark.parametrize(
    "change",
    [
        *(other_weights, another_machine, another_commit, other_blocks),
        *(asking(steps=(2,)), asking(actions_per_plan=(2,)), asking(gate_scale=0.5), asking(target="raw:1")),
        *(asking(episodes=9), asking(executions=("centralized",))),
    ],
)
@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_anything_else_are_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, played: list[int], change: Callable[..., EvalConfig]
) -> None:
    """Catches episodes of another checkpoint, machine, version, setting or share-out in a result."""
    (stale,) = stopped(folder, TEN, after=2)
    before = stale.read_bytes()
    played.clear()
    asked = change(folder, monkeypatch)
    evaluate.evaluate(folder, asked)
    assert sum(played) == asked.episodes
    assert unfinished(folder) == [stale] and stale.read_bytes() == before


@pytest.mark.usefixtures("small_blocks")
def test_again_starts_from_the_first_episode_and_leftovers_go(folder: Path, played: list[int]) -> None:
    """Catches `again` that takes half of its episodes from before, and blocks whose result is there already."""
    stopped(folder, TEN, after=2)
    played.clear()
    assert len(evaluate.evaluate(folder, TEN, again=True)) == 1
    assert played == [4, 4, 2] and not unfinished(folder)
    assert stopped(folder, TEN, after=1, again=True)  # as if killed between a result and the removal of its blocks
    assert evaluate.evaluate(folder, TEN) == [] and not unfinished(folder)


def test_plans_are_reused_where_there_are_plans(folder: Path, trained: Path, tmp_path: Path) -> None:
    """Catches m that reaches no policy, is taken for another m's result, or is asked of methods that do not plan."""
    asked = dataclasses.replace(TEN, steps=(1, 2), actions_per_plan=(1, 3))
    first = evaluate.evaluate(folder, dataclasses.replace(TEN, steps=(1,)))
    found = evaluate.evaluate(folder, asked, gif=True)
    assert [(one.num_sampling_steps, one.actions_per_plan) for one in found] == [(2, 1), (1, 3), (2, 3)]
    assert [one.network_passes for one in found] == [2.0, 1 / 3, 2 / 3]
    assert len({one.team_returns for one in (*first, *found)}) == 4
    assert [evaluate.describe(one, folder).split(":")[1].partition(", ")[2] for one in found[:2]] == [
        *("decentralized k 2", "decentralized k 1 m 3")
    ]
    assert (folder / "rollout_decentralized_k1.gif").is_file()
    acting = evaluate.ActingConfig(num_sampling_steps=1, actions_per_plan=3)
    assert evaluate.rollout_name(acting) == "rollout_decentralized_k1_m3.gif"
    bc = Path(shutil.copytree(trained / "bc", tmp_path / "bc"))
    assert [one.actions_per_plan for one in evaluate.evaluate(bc, asked)] == [1]
    with pytest.raises(UserError, match=r"actions-per-plan: expected 1 to \d+, the horizon this run plans, got 99"):
        evaluate.evaluate(folder, dataclasses.replace(asked, actions_per_plan=(1, 99)))
