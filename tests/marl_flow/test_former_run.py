"""Run folders of an earlier commit (`former_run/`) are evaluated, played and reported as they were then."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import marl_flow
from marl_flow import checkpoint, results, training
from marl_flow.baselines import get
from marl_flow.benchmarks import report
from marl_flow.commands import evaluate
from marl_flow.commands.evaluate import EvalConfig
from marl_flow.config import from_json
from marl_flow.run_folder import RunRecord, read_config
from marl_flow.run_log import read_results


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, on a machine without their dataset."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    return Path(shutil.copytree(Path(__file__).with_name("former_run"), tmp_path / "former"))


def test_the_report_has_the_same_numbers(former: Path) -> None:
    """Catches a field, an interval or an order of rows that changed under results that are there already."""
    report.write([former], former.with_name("report"))
    written = list(csv.reader((former.with_name("report") / "results.csv").open(newline="")))
    stored = list(csv.reader((former / "report.csv").open(newline="")))
    assert [cells[: len(stored[0])] for cells in written] == stored  # settings that differ have columns after these
    rows = results.load(former)
    assert [row.algorithm for row in rows] == ["bc", *["coflow"] * 4]
    assert all(row.checkpoint is not None and row.settings is not None for row in rows)


def test_what_was_evaluated_then_is_there_already(former: Path) -> None:
    """Catches an evaluation that is repeated because its key, the config digest or the evaluation seeds changed."""
    before = (former / "bc/results.jsonl").read_bytes()
    assert evaluate.evaluate(former / "bc", EvalConfig(episodes=3)) == []
    assert (former / "bc/results.jsonl").read_bytes() == before
    assert len(evaluate.evaluate(former / "bc", EvalConfig(episodes=2))) == 1


@pytest.mark.parametrize("name", ["bc", "coflow"])
def test_the_checkpoint_plays_as_it_did(former: Path, name: str) -> None:
    """Catches weights read into other places, another sampler, noise or environment. (Last bits may differ.)"""
    stored = read_results(former / name)
    target = stored[0].target_return
    config = EvalConfig(steps=(1, 2), episodes=3, target="quantile:0.9" if target is None else f"raw:{target!r}")
    again = evaluate.evaluate(former / name, config, again=True)
    assert len(again) == len(stored)
    for one, other in zip(again, stored, strict=True):
        assert (one.execution, one.num_sampling_steps) == (other.execution, other.num_sampling_steps)
        assert (one.seeds, one.lengths, one.config_digest) == (other.seeds, other.lengths, other.config_digest)
        assert one.team_returns == pytest.approx(other.team_returns, rel=1e-5)
    policy = marl_flow.load_policy(former / name, "decentralized", target_return=0.0)
    policy.reset(1)
    assert policy.act(torch.zeros(3, 18)).shape == (3, 2)


@pytest.mark.parametrize("name", ["bc", "coflow"])
def test_its_digest_is_that_of_its_settings(former: Path, name: str) -> None:
    """Catches a config field that was renamed, added or removed: former runs would be those of another method."""
    record = json.loads((former / name / "config.json").read_text())["run"]
    algorithm = get(name)
    config = from_json(type(next(iter(algorithm.presets.values()))), record["config"])
    plan = from_json(training.TrainConfig, record["training"])
    header = checkpoint.read_header(next((former / name / "checkpoints").iterdir()))
    data = training.TrainingData(
        dataset_id=record["dataset_id"],
        digest=record["dataset_digest"],
        spec=marl_flow.load_policy(former / name, "decentralized", target_return=0.0).spec,
        fit_normalizers=None,  # type: ignore[arg-type]
        return_percentiles=None,  # type: ignore[arg-type]
        make_sampler=None,  # type: ignore[arg-type]
    )
    run = training.describe(algorithm, record["preset"], config, plan, data)
    assert run == from_json(RunRecord, record) == header.run
    assert read_config(former / name, dataclasses.replace(run)) is not None
