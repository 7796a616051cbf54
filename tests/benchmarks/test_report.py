"""Result files to tables, plots and folders; real files throughout."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from marl_flow import results, run_log
from marl_flow.benchmarks import report
from marl_flow.benchmarks import rows as table
from marl_flow.interfaces import EvaluationResult, UserError

DATASET = "native/mpe/simple_spread/expert-v1"


def result(**changes: Any) -> EvaluationResult:
    """Four episodes of mean return 516.8, which is a score of 100."""
    plain: dict[str, Any] = {
        "task_id": "mpe/simple_spread",
        "opponent": None,
        "dataset_id": DATASET,
        "dataset_digest": "d" * 64,
        "algorithm": "bc",
        "preset": "default",
        "config_digest": "0123456789abcdef",
        "training_seed": 0,
        "update": 10,
        "protocol": "last checkpoint",
        "execution": "decentralized",
        "num_sampling_steps": None,
        "target_return": None,
        "target_rule": "none",
        "seeds": (11, 12, 13, 14),
        "team_returns": (506.8, 526.8, 506.8, 526.8),
        "network_passes": 1,
        "latency_ms_p50": 0.5,
        "latency_ms_p95": 0.75,
        "device": "cpu",
        "model": "a machine",
        "won": None,
    } | changes
    plain.setdefault("agent_returns", tuple((value,) * 3 for value in plain["team_returns"]))
    plain.setdefault("lengths", (25,) * len(plain["team_returns"]))
    return EvaluationResult(**plain)


def line(one: EvaluationResult) -> str:
    return json.dumps(dataclasses.asdict(one)) + "\n"


def run(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def table_of(folder: Path, name: str = "results.csv") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / name).read_text(encoding="utf-8"))))


def test_a_row_carries_return_score_and_what_made_it(tmp_path: Path) -> None:
    """Catches a score on the wrong scale, an interval that is not mapped with it, and columns shifted by one."""
    run(tmp_path / "a", line(result()))
    report.write([tmp_path / "a"], tmp_path / "out")
    (row,) = table_of(tmp_path / "out")
    assert (row["dataset"], row["algorithm"], row["execution"], row["k"]) == (DATASET, "bc", "decentralized", "")
    assert (float(row["return"]), float(row["score"])) == (516.8, 100.0)
    low, high = float(row["return_low"]), float(row["return_high"])
    assert 506.8 <= low < 516.8 < high <= 526.8
    assert float(row["score_low"]) == pytest.approx(100 + (low - 516.8) / 3.57, abs=1e-3)
    assert float(row["score_high"]) == pytest.approx(100 + (high - 516.8) / 3.57, abs=1e-3)
    assert (row["training_seeds"], row["episodes"], row["updates"], row["network_passes"]) == ("1", "4", "10", "1")
    assert (row["latency_ms_p50"], row["latency_ms_p95"], row["protocol"]) == ("0.5", "0.75", "last checkpoint")
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "516.8 [" in text and "100.0 [" in text and "a/bc" not in text


def test_training_seeds_share_a_row_and_nothing_else_does(tmp_path: Path) -> None:
    """Catches rows that mix origins, targets, budgets, gates, protocols, configs or evaluation seeds."""
    variants = [
        {},
        {"training_seed": 1, "team_returns": (400.0,) * 4},
        {"dataset_id": "omar/mpe/simple_spread/expert-v1"},
        {"dataset_digest": "e" * 64},
        {"execution": "centralized"},
        {"num_sampling_steps": 2},
        {"target_rule": "raw:500"},
        {"update": 20},
        {"gate_scale": 0.0},
        {"num_sampling_steps": 2, "actions_per_plan": 4},
        {"protocol": "best checkpoint"},
        {"config_digest": "f" * 16},
        {"seeds": (1, 2, 3, 4)},
        {"preset": "paper"},
        {"algorithm": "coflow"},
    ]
    run(tmp_path / "a", *(line(result(**variant)) for variant in variants))
    found = table.table_rows(results.load([tmp_path]))
    assert len(found) == len(variants) - 1
    (both,) = [row for row in found if len(row.training_seeds) == 2]
    assert both.training_seeds == (0, 1) and both.returns.shape == (2, 4)
    assert both.mean == pytest.approx((516.8 + 400) / 2)


def test_data_of_one_id_and_different_content_stay_apart(tmp_path: Path) -> None:
    """Catches two builds of one dataset under one heading, in one plot, under one label, or compared."""
    other = result(dataset_digest="e" * 64, algorithm="coflow", num_sampling_steps=1)
    run(tmp_path / "a", line(result()), line(result(dataset_digest="e" * 64)), line(other))
    _, found = report.write([tmp_path / "a"], tmp_path / "out")
    assert [table.label(row, found) for row in found] == [
        "bc (default), data dddddddd",
        "bc (default), data eeeeeeee",
        "coflow (default), data eeeeeeee",
    ]
    assert [table.beats(row, found) for row in found] == [None, None, 0.5]
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert [part.splitlines()[0] for part in text.split("\n## ")[2:4]] == [
        f"{DATASET}, data dddddddd",
        f"{DATASET}, data eeeeeeee",
    ]
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    assert [row["dataset_digest"][0] for row in table_of(tmp_path / "out")] == ["d", "e", "e"]


def test_times_of_different_machines_are_not_mixed(tmp_path: Path) -> None:
    """Catches a median over a GPU and a CPU, or over two models, under the name of the first."""
    slow = result(training_seed=1, latency_ms_p50=5.0)
    run(tmp_path / "a", line(result()), line(slow))
    (row,) = table.table_rows(results.load(tmp_path / "a"))
    assert row.latency_ms == (2.75, 0.75)
    for change in ({"device": "cuda"}, {"model": "another machine"}):
        run(tmp_path / "a", line(result()), line(dataclasses.replace(slow, **change)))
        _, (row,) = report.write([tmp_path / "a"], tmp_path / "out")
        assert row.latency_ms is None and len(row.machines) == 2
        assert "| mixed | last checkpoint |" in (tmp_path / "out/report.md").read_text(encoding="utf-8")
        (written,) = table_of(tmp_path / "out")
        assert (written["latency_ms_p50"], written["device"], written["model"]) == ("", "mixed", "mixed")
        assert report.summary([row]).endswith("mixed")


def test_the_same_files_give_the_same_report(tmp_path: Path) -> None:
    """Catches intervals from unseeded draws, and rows in the order of the folders."""
    generator = np.random.default_rng(0)
    lines = [line(result(training_seed=s, team_returns=tuple(generator.normal(400, 50, 4)))) for s in range(3)]
    run(tmp_path / "a", lines[0], lines[1])
    run(tmp_path / "b", lines[2])
    run(tmp_path / "c" / "x", lines[2], lines[0])
    run(tmp_path / "c" / "y", lines[1])
    report.write([tmp_path / "b", tmp_path / "a"], tmp_path / "one")
    report.write([tmp_path / "c"], tmp_path / "two")
    assert (tmp_path / "one/results.csv").read_bytes() == (tmp_path / "two/results.csv").read_bytes()


def test_evaluating_again_replaces_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a repeated evaluation counted as a second training seed, or dropped in silence."""
    run(tmp_path / "a", line(result()), line(result(team_returns=(300.0,) * 4)))
    with caplog.at_level(logging.WARNING):
        (row,) = table.table_rows(results.load(tmp_path / "a"))
    assert row.mean == 300.0 and row.returns.shape == (1, 4)
    assert "evaluated before" in caplog.text


def test_improvement_needs_the_same_evaluation_seeds(tmp_path: Path) -> None:
    """Catches comparing a method with a bc that played other episodes."""
    rival = result(algorithm="coflow", team_returns=(510.0, 500.0, 510.0, 600.0))
    other = result(algorithm="omar", seeds=(1, 2, 3, 4))
    run(tmp_path / "a", line(result()), line(rival), line(other))
    found = {row.first.algorithm: row for row in table.table_rows(results.load(tmp_path / "a"))}
    beats = {name: table.beats(row, list(found.values())) for name, row in found.items()}
    assert beats == {"bc": None, "coflow": 0.75, "omar": None}


def test_a_line_cut_short_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a report that dies on the trace of a killed evaluation, and one that forgives anything else."""
    path = run(tmp_path / "a", line(result()), line(result(training_seed=1))[:80]) / "results.jsonl"
    with caplog.at_level(logging.WARNING):
        assert len(run_log.read_results(path.parent)) == 1
    assert "line 2" in caplog.text and str(path) in caplog.text
    whole = run(tmp_path / "b", line(result()).rstrip("\n")) / "results.jsonl"
    assert len(run_log.read_results(whole.parent)) == 1
    run(tmp_path / "a", line(result())[:80] + "\n", line(result()))
    with pytest.raises(UserError, match="line 1"):
        run_log.read_results(path.parent)
    run(tmp_path / "a", line(result()), line(result())[:80] + "\n")
    with pytest.raises(UserError, match="line 2"):
        run_log.read_results(path.parent)


def without(name: str) -> str:
    record = dataclasses.asdict(result())
    del record[name]
    return json.dumps(record) + "\n"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (line(result())[:-2] + ', "mood": 1}\n', "unknown ['mood']"),
        (without("seeds"), "missing ['seeds']"),
        (line(result(team_returns=(1.0, float("nan"), 1.0, 1.0))), "not finite"),
        (line(result(latency_ms_p50=float("inf"))), "not finite"),
        (line(result(execution="both")), "execution"),
        (line(result(lengths=(25,))), "one entry per evaluation seed"),
        (line(result(seeds=(), team_returns=())), "one entry per evaluation seed"),
        ("[1, 2]\n", "expected one JSON object"),
    ],
)
def test_a_bad_line_names_file_and_line(tmp_path: Path, bad: str, says: str) -> None:
    """Catches a broken result that reaches the table, or a message that does not say where it is."""
    path = run(tmp_path / "a", line(result()), bad, line(result())) / "results.jsonl"
    with pytest.raises(UserError) as caught:
        run_log.read_results(path.parent)
    assert f"{path}, line 2" in str(caught.value) and says in str(caught.value)


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    """Catches an empty report for a mistyped or unevaluated run."""
    with pytest.raises(UserError, match="not a folder"):
        report.write([tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="evaluate a run first"):
        report.write([tmp_path / "run"], tmp_path / "out")
    run(tmp_path / "run")
    with pytest.raises(UserError, match="empty"):
        report.write([tmp_path / "run"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_replaces_reports_only(tmp_path: Path) -> None:
    """Catches a report that wipes a folder of somebody's, or its own input."""
    runs = run(tmp_path / "runs/a", line(result())).parent
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work", encoding="utf-8")
    for out in (mine, runs, runs / "a", tmp_path):
        with pytest.raises(UserError, match="choose another folder"):
            report.write([runs], out)
    assert (mine / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    report.write([runs], tmp_path / "out")
    report.write([runs], tmp_path / "out")
    for name in ("notes.md", "rollouts/mine.gif", "empty/"):
        foreign = tmp_path / "out" / name
        foreign.parent.mkdir(exist_ok=True)
        foreign.mkdir() if name.endswith("/") else foreign.write_text("mine", encoding="utf-8")
        with pytest.raises(UserError, match=f"holds a report and {Path(name).parts[0]}"):
            report.write([runs], tmp_path / "out")
        assert foreign.exists()
        foreign.rmdir() if name.endswith("/") else foreign.unlink()
        if foreign.parent.name == "rollouts":
            foreign.parent.rmdir()
    (mine / "report.json").write_text("[]", encoding="utf-8")  # of another tool
    with pytest.raises(UserError, match="is not a report"):
        report.write([runs], mine)
    run(tmp_path / "out/b", line(result()))  # somebody keeps a run inside a report
    with pytest.raises(UserError, match="choose another folder"):
        report.write([tmp_path / "out"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out", "runs"]


def test_an_interrupted_report_leaves_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches writing in place: the former report must survive a failure at any moment, the two moves included."""
    folder = run(tmp_path / "run", line(result()))
    report.write([folder], tmp_path / "out")
    before = (tmp_path / "out/report.md").read_bytes()

    def stopped(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(report, "markdown", stopped)
        report.write([folder], tmp_path / "out")
    assert (tmp_path / "out/report.md").read_bytes() == before
    (tmp_path / "out").rename(tmp_path / ".out.former")  # stopped between the moves
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(report, "markdown", stopped)
        report.write([folder], tmp_path / "out")
    assert (tmp_path / "out/report.md").read_bytes() == before


def test_rollouts_are_copied_and_linked(tmp_path: Path) -> None:
    """Catches links into run folders, which break when the report is moved, names that collide, superseded runs."""
    for parent, seed in {"one": 0, "two": 1, "three": 0}.items():  # three: evaluated again, so one does not count
        folder = run(tmp_path / parent / "bc", line(result(training_seed=seed)))
        Image.new("RGB", (4, 4), "red").save(folder / "rollout_decentralized.gif")
    report.write([tmp_path], tmp_path / "out")
    copies = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.gif"))
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert len(copies) == 2 and all(f"({name})" in text for name in copies)
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert links and all((tmp_path / "out" / link).is_file() for link in links)


def test_published_rows_keep_their_scale_and_mark_what_is_derived(tmp_path: Path) -> None:
    """Catches CoFlow's raw columns printed as scores beside the baselines' normalised ones."""
    run(tmp_path / "a", line(result()))
    report.write([tmp_path / "a"], tmp_path / "out")
    rows = {(row["method"], row["source"]): row for row in table_of(tmp_path / "out", "published.csv")}
    coflow, omar = rows["CoFlow-C", "coflow-page"], rows["OMAR", "madiff-paper"]
    assert (coflow["return"], coflow["return_is"], coflow["score_is"]) == ("586.2", "printed", "derived")
    assert float(coflow["score"]) == pytest.approx(119.4, abs=0.05)
    assert (omar["score"], omar["score_is"], omar["return_is"]) == ("114.9", "printed", "derived")
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "| CoFlow-C | 586.2 ± 10.4 | *119.4 ± 2.9* |" in text
    assert "| OMAR | *570.0 ± 9.3* | 114.9 ± 2.6 |" in text
    assert "87.5 |" not in text and "averages over the 12" not in text  # of twelve datasets, beside one
    measured = [
        line.split(" | ")[1] for line in text.partition("| Published method")[2].splitlines()[2:] if line[:1] == "|"
    ]
    means = [float(cell.strip("*").partition(" ")[0]) for cell in measured if cell[0] in "*0123456789"]
    assert means and means[:10] == sorted(means[:10], reverse=True)


def test_a_task_without_references_has_no_score(tmp_path: Path) -> None:
    """Catches a made-up score, and a report that fails on tasks beyond MPE."""
    run(tmp_path / "a", line(result(task_id="smac/3m", dataset_id="native/smac/3m/good-v1", num_sampling_steps=3)))
    report.write([tmp_path / "a"], tmp_path / "out")
    (row,) = table_of(tmp_path / "out")
    assert row["score"] == "" and row["k"] == "3"
    published = {row["method"]: row for row in table_of(tmp_path / "out", "published.csv")}
    assert published["DoF"]["return"] == "19.8" and published["DoF"]["score"] == ""


def test_the_plot_shows_what_the_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches lines drawn from other numbers, a missing data mean or random level, and k in the wrong places."""
    from matplotlib import pyplot

    from marl_flow.benchmarks import figures

    steps = {1: 400.0, 10: 480.0, 2: 450.0}
    lines = [
        line(result(algorithm="coflow", execution="centralized", num_sampling_steps=k, team_returns=(value,) * 4))
        for k, value in steps.items()
    ]
    published = "omar/mpe/simple_spread/expert-v1"
    lines = [text.replace(DATASET, published) for text in (*lines, line(result()))]
    run(tmp_path / "a", *lines)
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    figures.plot(table.table_rows(results.load(tmp_path / "a")), tmp_path / "plot.png", "the data")
    axes = pyplot.gcf().axes[0]
    drawn = {one.get_label(): one for one in axes.get_lines()}
    np.testing.assert_allclose(drawn["coflow (default), C"].get_xydata(), [[1, 400], [2, 450], [10, 480]])
    assert drawn["bc (default)"].get_ydata()[0] == pytest.approx(516.8)
    assert drawn["published mean of the data"].get_ydata()[0] == 516.8
    assert drawn["random (published)"].get_ydata()[0] == 159.8
    assert axes.get_title() == "the data\nmean and 95 % interval of 4 episodes, training seed 0"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "10"]
    assert "return" in axes.get_ylabel() and "steps" in axes.get_xlabel()
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width >= 1000


def configured(folder: Path, one: EvaluationResult, training: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A run folder with the config.json of these settings; returns it."""
    run(folder, line(one))
    record = {"config_digest": one.config_digest, "config": settings, "training": {"seed": 0, **(training or {})}}
    (folder / "config.json").write_text(json.dumps({"run": record}), encoding="utf-8")
    return folder


def cells_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in text.split("|")[1:-1]] for text in table.splitlines()]


def test_the_overview_shows_every_method_of_every_dataset(tmp_path: Path) -> None:
    """Catches a method left out because one dataset lacks it, a blank where a dataset has two variants of one, a number
    under another method, and the best that does not stand out."""
    other = "native/mpe/simple_tag/random-v1"
    tag = {"dataset_id": other, "task_id": "mpe/simple_tag", "opponent": "native-v1", "team_returns": (185.6,) * 4}
    flow: dict[str, Any] = {"algorithm": "coflow", "preset": "compact", "execution": "centralized"}
    flow |= {"num_sampling_steps": 1, "team_returns": (600.0,) * 4}
    configured(tmp_path / "a", result(), width=32)
    configured(tmp_path / "b", result(**flow), width=32, learning_rate=0.001)
    configured(tmp_path / "c", result(**flow, config_digest="f" * 16), width=64, learning_rate=0.001)
    configured(tmp_path / "d", result(**{**flow, **tag}, config_digest="f" * 16), width=64, learning_rate=0.001)
    configured(tmp_path / "e", result(**tag, algorithm="ma_td3_bc"))
    rows = table.table_rows(results.load(tmp_path))
    header, _, *body = cells_of(report.overview(rows))
    assert header == [
        *("Dataset", "Training seeds", "bc", "coflow-C k=1, width=32", "coflow-C k=1, width=64", "ma_td3_bc")
    ]
    won, middle = "**600.0 [600.0, 600.0] (123.3)**", "185.6 [185.6, 185.6] (100.0)"
    assert body[0] == [DATASET, "1", "516.8 [506.8, 526.8] (100.0)", won, won, "-"]
    assert body[1] == [other, "1", "-", "-", f"**{middle}**", f"**{middle}**"]


def test_variants_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    """Catches variants named by a digest that nobody can read, in tables and in results.csv; a digest is right only
    where the settings are not recorded."""
    small, big, lost = (result(config_digest=digit * 16) for digit in "abc")
    configured(tmp_path / "a", small, {"amp": False, "log_every": 1}, hidden=[32, 32], updates=10)
    configured(tmp_path / "b", big, {"amp": True, "log_every": 2}, hidden=[64, 64], updates=10)
    _, found = report.write([tmp_path], tmp_path / "two")
    assert [table.label(row, found) for row in found] == [
        *("bc (default), hidden=32,32, amp=False", "bc (default), hidden=64,64, amp=True")
    ]
    written = table_of(tmp_path / "two")
    assert [(row["settings.hidden"], row["training.amp"]) for row in written] == [("32,32", "False"), ("64,64", "True")]
    assert "settings.updates" not in written[0] and "training.log_every" not in written[0]
    run(tmp_path / "c", line(lost))
    rows = table.table_rows(results.load([tmp_path / name for name in "abc"]))
    labels = [table.label(row, rows) for row in rows]
    assert len(set(labels)) == 3 and "bc (default), config cccccc" in labels


def test_columns_that_are_empty_are_left_out(tmp_path: Path) -> None:
    """Catches columns of dashes: wins of a task that nobody wins, k of methods that do not sample, empty notes."""
    run(tmp_path / "a", line(result()), line(result(algorithm="bb", team_returns=(600.0,) * 4)))
    path, _ = report.write([tmp_path / "a"], tmp_path / "out")
    section = path.read_text(encoding="utf-8").partition(f"## {DATASET}")[2]
    header, _, first, *_ = cells_of(section[section.index("| Method") :])
    assert header[:4] == ["Method", "Exec.", "Return [95 %]", "Score [95 %]"]
    assert not {"k", "m", "Won, % [95 %]", "Target return"} & set(header)
    assert first[2] == "**600.0 [600.0, 600.0]**"


def test_reused_plans_have_a_column_of_their_own(tmp_path: Path) -> None:
    """Catches rows of different m that cannot be told apart, in any table, or that share a cell or a line of the plot;
    and intervals of former reports that change because a column was added."""
    flow: dict[str, Any] = {"algorithm": "coflow", "execution": "centralized", "num_sampling_steps": 3}
    flow |= {"seeds": tuple(range(40)), "team_returns": tuple(400.0 + 37.3 * i % 191 for i in range(40))}
    for name in ("expert", "medium"):
        rows = [result(**flow, dataset_id=f"native/mpe/simple_spread/{name}-v1", network_passes=3.0)]
        rows += [dataclasses.replace(rows[0], actions_per_plan=4, network_passes=0.75)]
        rows += [result(dataset_id=rows[0].dataset_id)]
        run(tmp_path / name, *map(line, rows))
    path, found = report.write([tmp_path / "expert", tmp_path / "medium"], tmp_path / "out")
    written = table_of(tmp_path / "out")
    assert [(row["k"], row["actions_per_plan"], row["network_passes"]) for row in written[1:3]] == [
        ("3", "1", "3"),
        ("3", "4", "0.75"),
    ]
    assert written[1]["return_low"] == written[2]["return_low"]  # the draws are those of before there was an m
    bc, one, four = found[:3]
    assert [table.label(row, found[:3]) for row in (bc, one, four)] == [
        *("bc (default)", "coflow (default), m=1", "coflow (default), m=4")
    ]
    text = path.read_text(encoding="utf-8")
    overview = text.partition("## Overview")[2].partition("##")[0]
    assert "| bc | coflow-C k=3 | coflow-C k=3 m=4 |" in overview and "| - |" not in overview and "|  |" not in overview
    section = [cells.split(" | ") for cells in text.splitlines() if cells.startswith("| coflow (default), m=")]
    assert [(cells[2], cells[3], cells[9]) for cells in section[:2]] == [("3", "1", "3"), ("3", "4", "0.75")]
    assert "| bc (default) | D | - | - |" in text
    printed = [text.split() for text in report.summary(found).splitlines() if "m=4" in text]
    assert [words[3:6] for words in printed] == [["C", "3", "4"]] * 2


def test_the_data_line_is_of_the_data_that_were_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the published mean drawn as that of native data, and that of data of other content."""
    from marl_flow.benchmarks import figures
    from marl_flow.commands.data import build_dataset

    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    name = "native/mpe/simple_spread/random-v1"
    run(tmp_path / "a", line(result(dataset_id=name)))
    (row,) = table.table_rows(results.load(tmp_path / "a"))
    assert figures.data_mean(row) is None  # not on this machine
    store = build_dataset(name, episodes=4)
    assert figures.data_mean(row) is None  # of other content
    run(tmp_path / "a", line(result(dataset_id=name, dataset_digest=store.digest)))
    (row,) = table.table_rows(results.load(tmp_path / "a"))
    assert figures.data_mean(row) == (pytest.approx(store.team_returns().mean()), "mean of the data")


def test_no_two_lines_of_a_plot_look_alike() -> None:
    """Catches colours or dashes that repeat when there are more variants than colours."""
    from marl_flow.benchmarks import figures

    lines = [(f"variant {index}", way) for index in range(20) for way in ("centralized", "decentralized")]
    styles = figures.line_styles(lines)
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == len(lines)
    assert "#000000" not in {style["color"] for style in styles.values()}  # the data's own line


def test_the_plot_counts_episodes_of_each_seed(tmp_path: Path) -> None:
    """Catches a title that counts one seed's episodes and does not say that there are several seeds."""
    from marl_flow.benchmarks import figures

    run(tmp_path / "a", *(line(result(training_seed=seed)) for seed in (0, 2, 5)))
    rows = table.table_rows(results.load(tmp_path / "a"))
    assert figures.episodes_text(rows) == "4 episodes of each training seed: 0, 2, 5"
    run(tmp_path / "b", line(result(algorithm="random", seeds=(1, 2), team_returns=(1.0, 2.0))))
    rows = table.table_rows(results.load(tmp_path))
    assert figures.episodes_text(rows) == "2 or 4 episodes of each training seed: 0, 2, 5 (some lines: of fewer)"


def test_win_rates_have_intervals_that_never_are_points(tmp_path: Path) -> None:
    """Catches a win rate that is left out or taken of the wrong episodes, and a certainty drawn from four wins."""
    run(tmp_path / "a", line(result(task_id="toy/drift", dataset_id="user/toy/drift/mine-v1", won=(True,) * 4)))
    run(
        tmp_path / "b",
        line(result(task_id="toy/drift", dataset_id="user/toy/drift/other-v1", won=(True, False, False, False))),
    )
    path, found = report.write([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    text = path.read_text()
    assert "100 [51, 100]" in text and "25 [5, 70]" in text and "100 % won" in text
    rates = {one["dataset"]: one["win_rate"] for one in table_of(tmp_path / "out")}
    assert rates == {"user/toy/drift/mine-v1": "1", "user/toy/drift/other-v1": "0.25"}
    assert [row.win_rate for row in found] == [1.0, 0.25]


def test_linked_runs_are_in_the_report(tmp_path: Path) -> None:
    """Catches runs kept on another disk and linked, which were left out without a word; and links in a circle."""
    run(tmp_path / "runs/here", line(result()))
    run(tmp_path / "elsewhere/moved", line(result(algorithm="coflow", num_sampling_steps=1)))
    (tmp_path / "runs/moved").symlink_to("../elsewhere/moved")
    (tmp_path / "runs/again").symlink_to("../elsewhere")
    (tmp_path / "elsewhere/round").symlink_to("../runs")
    expected = [tmp_path / "elsewhere/moved", tmp_path / "runs/here"]
    assert results.run_folders(tmp_path / "runs") == [folder.resolve() for folder in expected]
    assert [row.algorithm for row in results.load(tmp_path / "runs")] == ["coflow", "bc"]
    _, found = report.write([tmp_path / "runs"], tmp_path / "out")
    assert len(found) == 2
