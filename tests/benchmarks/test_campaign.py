"""Campaigns: the table of runs is the one promised, and the command that makes it continues where it stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from marl_flow.benchmarks import campaign, suite
from marl_flow.commands import data, train
from marl_flow.datasets import native
from marl_flow.envs.mamujoco.tasks import task_spec
from marl_flow.interfaces import UserError
from marl_flow.run_log import read_results

TINY = ("updates=1", "batch_size=8", "tensorboard=false")


def small(data: tuple[str, ...] = ("mpe/simple_spread/random", "mpe/simple_tag/random")) -> campaign.Campaign:
    coflow = ("width=16", "token_blocks=1", "inverse_hidden=8")
    entrants = [
        dataclasses.replace(one, settings=(*one.settings, *TINY, *(coflow if one.algorithm == "coflow" else ())))
        for one in campaign.CAMPAIGNS["mpe"].entrants
    ]
    return dataclasses.replace(
        campaign.CAMPAIGNS["mpe"], datasets=data, entrants=tuple(entrants), episodes=2, swept=(), more_seeds=()
    )


def test_the_mpe_table_is_complete() -> None:
    """Catches a forgotten dataset, a budget or setting of one dataset's own, and step counts that nobody asked for."""
    mpe = campaign.CAMPAIGNS["mpe"]
    assert set(mpe.datasets) == {name for name in suite.dataset_means() if name.startswith("mpe/")}
    todo = campaign.jobs(mpe, Path("out"), "cpu")
    assert len({job.folder for job in todo}) == len(todo) == 3 * (8 + 4 * 3)
    swept = {job.dataset for job in todo if job.entrant.samples_in_steps and job.steps == (1, 2, 3, 5, 10)}
    assert swept == {name for name in mpe.datasets if name.endswith("/expert")}
    assert {job.steps for job in todo if job.dataset not in swept} == {(1, 3)}
    assert {job.episodes for job in todo} == {200}
    assert max(job.seed for job in todo if "spread" in job.dataset) == 2
    assert max(job.seed for job in todo if "spread" not in job.dataset) == 0
    for entrant in mpe.entrants:  # every dataset has the same plan but for its name
        plans = {
            dataclasses.replace(
                train.plan(name, entrant.algorithm, preset=entrant.preset, settings=entrant.settings), dataset_id="any"
            )
            for name in mpe.datasets
        }
        assert len(plans) == 1


def test_the_mamujoco_table_is_complete() -> None:
    """Catches a forgotten dataset or method, and windows other than the paper's."""
    mamujoco = campaign.CAMPAIGNS["mamujoco"]
    assert set(mamujoco.datasets) == {name for name in suite.dataset_means() if name.startswith("mamujoco/")}
    todo = campaign.jobs(mamujoco, Path("out"), "cpu")
    assert len({job.folder for job in todo}) == len(todo) == 3 * 9
    swept = [job.dataset for job in todo if job.steps == (1, 2, 3, 5, 10)]
    assert swept == ["mamujoco/2ant/good"] * 2 and {job.steps for job in todo if job.dataset not in swept} == {(1,)}
    paper = suite.cell("mamujoco/2ant/good", "centralized").coflow_settings
    for entrant in mamujoco.entrants[:2]:
        config = train.plan("mamujoco/2ant/good", entrant.algorithm, settings=entrant.settings).config
        assert (str(config.horizon), str(config.history)) == (paper["horizon"], paper["history"])
        assert paper["return_to_go_update"] == "False" and not config.updates_return(task_spec("mamujoco/2ant"))


@pytest.mark.slow
def test_a_campaign_runs_through_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches parts that do not fit together, an overview without a dataset, and work done twice."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    recipes = {n: dataclasses.replace(recipe, episodes=30) for n, recipe in native.RECIPES.items()}
    monkeypatch.setattr(native, "RECIPES", recipes)
    said: list[str] = []
    report, rows = campaign.run(small(), tmp_path / "out", device="cpu", say=said.append)
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
    said.clear()
    campaign.run(small(), tmp_path / "out", device="cpu", say=said.append)
    assert "\n".join(said).count("evaluated before") == 6
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for job in campaign.jobs(small(), tmp_path / "out", "cpu"):
        opponents = {result.opponent for result in read_results(job.folder)}
        assert opponents == {"native-v1" if "tag" in job.dataset else None}


def test_unknown_campaigns_are_named() -> None:
    """Catches a traceback for a typo."""
    with pytest.raises(UserError, match=r"unknown campaign 'mp'; nearest: mpe"):
        campaign.find("mp")


def test_a_campaign_refuses_what_it_does_not_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a table made of some other build that lies under a dataset's name, and a device noticed too late."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError, match="device: "):
        campaign.run(small(), tmp_path / "out", device="abacus", say=print)
    assert not (tmp_path / "data").exists()
    data.build_dataset("mpe/simple_spread/random", episodes=30)
    with pytest.raises(UserError, match=r"found 30 of 10,000 episodes; rebuild it"):
        campaign.run(small(), tmp_path / "out", device="cpu", say=print)
    monkeypatch.setattr(native, "RECIPES", {n: dataclasses.replace(r, episodes=20) for n, r in native.RECIPES.items()})
    data.build_dataset("mpe/simple_tag/random", prey="scripted")
    tag = small(("mpe/simple_tag/random",))
    with pytest.raises(UserError, match=r"found against scripted, the recipe's is against native-v1; rebuild it"):
        campaign.run(tag, tmp_path / "out", device="cpu", say=print)
    data.build_dataset("mpe/simple_tag/random", episodes=10, seeds=2, force=True)
    with pytest.raises(UserError, match=r"found 20 episodes of 2 seeds, the recipe has 20 of one; rebuild it"):
        campaign.run(tag, tmp_path / "out", device="cpu", say=print)
