"""Results read back as rows: every field, the settings of the run, and what follows from them."""

from __future__ import annotations

import builtins
import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from marl_flow import results
from marl_flow.interfaces import EvaluationResult, UserError
from marl_flow.run_folder import checkpoint_path
from marl_flow.run_log import append_results


@pytest.fixture
def run(tiny: ModuleType, tmp_path: Path) -> Path:
    """A trained run with two results: one of its checkpoint, and one of a checkpoint that is gone."""
    folder = tmp_path / "runs" / "bc"
    header = tiny.run(folder).header
    plain: dict[str, Any] = {
        "task_id": "mpe/simple_spread",
        "opponent": None,
        "dataset_id": "native/mpe/simple_spread/expert-v1",
        "dataset_digest": "d" * 64,
        "algorithm": "ma_td3_bc",
        "preset": "default",
        "config_digest": header.run.config_digest,
        "training_seed": 3,
        "update": 12,
        "protocol": "last checkpoint",
        "execution": "decentralized",
        "num_sampling_steps": None,
        "target_return": None,
        "target_rule": "none",
        "seeds": (11, 12),
        "agent_returns": ((500.0,) * 3, (533.6,) * 3),
        "team_returns": (500.0, 533.6),
        "lengths": (25, 25),
        "won": None,
        "network_passes": 1.0,
        "latency_ms_p50": 0.5,
        "latency_ms_p95": 0.75,
        "device": "cpu",
        "model": "a machine",
    }
    first = EvaluationResult(**plain)
    append_results(folder, [first, dataclasses.replace(first, update=4, task_id="toy/drift", won=(True, False))])
    return folder


def test_a_row_has_every_field_of_the_result_and_of_its_run(run: Path) -> None:
    """Catches a field that is lost, settings of another run, and a checkpoint that is not the evaluated one."""
    rows = results.load(str(run.parent))
    assert rows == results.load(run) == results.load([run, str(run)]) and len(rows) == 2
    first, second = rows
    (stored, _) = (json.loads(line) for line in (run / "results.jsonl").read_text().splitlines())
    for name, value in stored.items():
        kept = getattr(first, name)
        assert json.loads(json.dumps(kept)) == value, name
    record = json.loads((run / "config.json").read_text())
    assert first.settings == record["run"]["config"] and first.settings["hidden"] == [8]
    assert first.training == record["run"]["training"] and first.environment == record["made_with"]
    assert first.run_folder == run and first.checkpoint == checkpoint_path(run, 12) and second.checkpoint is None
    assert first.team_return_mean == pytest.approx(516.8) and first.score == pytest.approx(100.0)
    assert (first.win_rate, second.win_rate, second.score) == (None, 0.5, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.update = 3  # type: ignore[misc]
    assert len({first, second}) == 2


def test_rows_are_filtered_by_field(run: Path) -> None:
    """Catches a filter that keeps everything, and a mistyped field that keeps nothing without a word."""
    rows = results.load(run)
    assert [row.update for row in rows.filter(update=4)] == [4]
    assert rows.filter(update=4, training_seed=9) == [] and rows.filter(win_rate=0.5) == rows[1:]
    with pytest.raises(UserError, match="unknown field 'udpate' of a result; nearest: update"):
        rows.filter(udpate=4)


def test_settings_are_those_of_the_result(run: Path) -> None:
    """Catches the settings of a folder's config.json given to a result of another config, and a folder without one."""
    line = (run / "results.jsonl").read_text().splitlines()[0]
    other = {**json.loads(line), "config_digest": "0" * 16}
    (run / "results.jsonl").write_text(json.dumps(other) + "\n")
    (row,) = results.load(run)
    assert row.settings is row.training is row.environment is None
    (run / "config.json").unlink()
    assert results.load(run) == [row]
    (run / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: expected the record of a run"):
        results.load(run)


def test_a_data_frame_has_a_column_per_field(run: Path) -> None:
    """Catches columns that are lost, settings packed into one column, and episodes that cannot be unpacked."""
    pytest.importorskip("pandas")
    frame = results.load(run).to_pandas()
    assert len(frame) == 2 and list(frame["update"]) == [12, 4]
    assert list(frame["settings.alpha"]) == [2.5, 2.5] and list(frame["training.updates"]) == [12, 12]
    assert frame["team_return_mean"][0] == pytest.approx(516.8) and frame["score"][0] == pytest.approx(100.0)
    fields = {field.name for field in dataclasses.fields(results.ResultRow)} - {"settings", "training", "environment"}
    assert fields | set(results.DERIVED) <= set(frame.columns)
    episodes = frame.explode(["seeds", "team_returns", "lengths"])
    assert list(episodes["team_returns"]) == [500.0, 533.6] * 2
    assert len(results.Results().to_pandas()) == 0


def test_without_pandas_the_message_says_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback where an optional library is absent."""
    usual = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return usual(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install pandas"):
        results.load(run).to_pandas()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    """Catches an empty list for a mistyped or unevaluated run."""
    with pytest.raises(UserError, match="not a folder"):
        results.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="evaluate a run first"):
        results.load(str(tmp_path))
