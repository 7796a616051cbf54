"""Campaigns: the table of runs is the one promised, and the command that makes it continues where it stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from marl_flow.benchmarks import campaign, suite
from marl_flow.commands import data
from marl_flow.datasets import native
from marl_flow.envs.mamujoco.tasks import task_spec
from marl_flow.interfaces import UserError
from marl_flow.run_log import read_results

TINY = ("updates=1", "batch_size=8", "tensorboard=false")


def small(data: tuple[str, ...] = ("mpe/simple_spread/random", "mpe/simple_tag/random")) -> campaign.Campaign:
    coflow = ("width=16", "token_blocks=1", "inverse_hidden=8")
    methods = [
        dataclasses.replace(m, settings=(*m.settings, *TINY, *(coflow if m.algorithm == "coflow" else ())))
        for m in campaign.CAMPAIGNS["mpe"].methods
    ]
    return dataclasses.replace(
        campaign.CAMPAIGNS["mpe"], datasets=data, methods=tuple(methods), episodes=2, swept=(), more_seeds=()
    )


def test_the_mpe_table_is_complete() -> None:
    """Catches a forgotten dataset, a budget or setting of one dataset's own, and other step counts."""
    mpe = campaign.CAMPAIGNS["mpe"]
    assert set(mpe.datasets) == {name for name in suite.dataset_means() if name.startswith("mpe/")}
    runs = campaign.make_runs(mpe, Path("out"), "cpu")
    assert len({run.folder for run, _ in runs}) == len(runs) == 3 * (8 + 4 * 3)
    swept = {run.dataset_id for run, evaluation in runs if evaluation.steps == (1, 2, 3, 5, 10)}
    assert swept == {f"native/{name}-v1" for name in mpe.datasets if name.endswith("/expert")}
    assert {evaluation.steps for run, evaluation in runs if run.dataset_id not in swept} == {(1, 3)}
    assert {evaluation.episodes for _, evaluation in runs} == {200}
    assert {run.training.seed for run, _ in runs if "spread" in run.dataset_id} == {0, 1, 2}
    assert {run.training.seed for run, _ in runs if "spread" not in run.dataset_id} == {0}
    assert [run.training.seed for run, _ in runs] == sorted(run.training.seed for run, _ in runs)
    assert runs[0][0].folder == Path("out/mpe_simple_spread_expert/coflow-centralized-seed0")
    for method in mpe.methods:  # every dataset has the same run but for its name
        same = {
            dataclasses.replace(run, dataset_id="any", folder=Path(), training=run.training.__class__())
            for run, _ in runs
            if run.folder.name.startswith(f"{method.folder}-")
        }
        assert len(same) == 1


def test_the_mamujoco_table_is_complete() -> None:
    """Catches a forgotten dataset or method, and windows other than the paper's."""
    mamujoco = campaign.CAMPAIGNS["mamujoco"]
    assert set(mamujoco.datasets) == {name for name in suite.dataset_means() if name.startswith("mamujoco/")}
    runs = campaign.make_runs(mamujoco, Path("out"), "cpu")
    assert len({run.folder for run, _ in runs}) == len(runs) == 3 * 9
    swept = [run.dataset_id for run, evaluation in runs if evaluation.steps == (1, 2, 3, 5, 10)]
    assert swept == ["native/mamujoco/2ant/good-v1"] * 3
    assert {evaluation.steps for run, evaluation in runs if run.dataset_id not in swept} == {(1,)}
    paper = suite.paper_settings("mamujoco/2ant/good", "centralized").coflow_settings
    for config in (run.config for run, _ in runs if run.algorithm == "coflow"):
        assert (str(config.horizon), str(config.history)) == (paper["horizon"], paper["history"])
        assert paper["return_to_go_update"] == "False" and not config.updates_return(task_spec("mamujoco/2ant"))


@pytest.mark.slow
def test_a_campaign_runs_through_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches parts that do not fit together, an overview without a dataset, and work done twice."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    recipes = {n: dataclasses.replace(recipe, episodes=30) for n, recipe in native.RECIPES.items()}
    monkeypatch.setattr(native, "RECIPES", recipes)
    printed: list[str] = []
    report, rows = campaign.run_campaign(small(), tmp_path / "out", device="cpu", print_fn=printed.append)
    assert len(rows) == 2 * (2 + 2 + 1)
    text = report.read_text(encoding="utf-8")
    overview = text.partition("## Overview")[2].partition("##")[0]
    header, _, *lines = [line for line in overview.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.split("|")[3:-1]] == [
        *("bc", "coflow-C k=1", "coflow-C k=3", "coflow-D k=1", "coflow-D k=3")
    ]
    assert len(lines) == 2 and all(cell.strip() for line in lines for cell in line.split("|")[1:-1])
    assert "against the prey native-v1" in text
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jsonl")}
    printed.clear()
    campaign.run_campaign(small(), tmp_path / "out", device="cpu", print_fn=printed.append)
    assert "\n".join(printed).count("evaluated before") == 6
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for run, _ in campaign.make_runs(small(), tmp_path / "out", "cpu"):
        opponents = {result.opponent for result in read_results(run.folder)}
        assert opponents == {"native-v1" if "tag" in run.dataset_id else None}


def test_unknown_campaigns_are_named() -> None:
    """Catches a traceback for a typo."""
    with pytest.raises(UserError, match=r"unknown campaign 'mp'; nearest: mpe"):
        campaign.find("mp")


def test_a_campaign_refuses_what_it_does_not_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a table made from another build under a dataset's name, and a device that is checked too late."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError, match="device: "):
        campaign.run_campaign(small(), tmp_path / "out", device="abacus", print_fn=print)
    assert not (tmp_path / "data").exists()
    data.build_dataset("mpe/simple_spread/random", episodes=30)
    with pytest.raises(UserError, match=r"found 30 of 10,000 episodes; rebuild it"):
        campaign.run_campaign(small(), tmp_path / "out", device="cpu", print_fn=print)
    monkeypatch.setattr(native, "RECIPES", {n: dataclasses.replace(r, episodes=20) for n, r in native.RECIPES.items()})
    data.build_dataset("mpe/simple_tag/random", prey="scripted")
    tag = small(("mpe/simple_tag/random",))
    with pytest.raises(UserError, match=r"found against scripted, the recipe's is against native-v1; rebuild it"):
        campaign.run_campaign(tag, tmp_path / "out", device="cpu", print_fn=print)
    data.build_dataset("mpe/simple_tag/random", episodes=10, seeds=2, force=True)
    with pytest.raises(UserError, match=r"found 20 episodes of 2 seeds, the recipe has 20 of one; rebuild it"):
        campaign.run_campaign(tag, tmp_path / "out", device="cpu", print_fn=print)
