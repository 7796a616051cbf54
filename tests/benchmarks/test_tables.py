"""Tables of the pages against the result files they come from, on the tree itself and on copies with a fault."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from marl_flow.benchmarks import report, suite
from marl_flow.benchmarks.speed import __main__ as speed
from marl_flow.benchmarks.speed import timing, windows
from marl_flow.benchmarks.studies import native_vs_published
from marl_flow.benchmarks.tables import __main__ as command
from marl_flow.benchmarks.tables import definitions, folders
from marl_flow.benchmarks.tables.definitions import TABLES, Table
from marl_flow.benchmarks.tables.folders import RESULTS, read_about, read_rows
from marl_flow.benchmarks.tables.pages import pages, places, update
from marl_flow.benchmarks.tables.render import readable, rendered
from marl_flow.interfaces import EvaluationResult, UserError

ROOT = Path(__file__).resolve().parents[2]
END = "<!-- /table -->"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the pages and the results."""
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(ROOT / RESULTS, tmp_path / RESULTS)
    return tmp_path


def swap(path: Path, old: str, new: str) -> None:
    """Replaces the first `old`, which must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def page_of(root: Path, name: str) -> Path:
    """The first page that shows a table."""
    return next(page for page in pages(root) if f"<!-- table: {name} -->" in page.read_text(encoding="utf-8"))


def test_every_table_equals_its_file() -> None:
    """Catches a number edited by hand, a results file replaced without its table, and a table that was lost."""
    assert update(ROOT, write=False) == []


def test_every_table_of_numbers_is_generated() -> None:
    """Catches numbers without an address: a table with a column aligned to the right that stands outside the marks."""
    by_hand = []
    for page in pages(ROOT):
        lines = page.read_text(encoding="utf-8").split("\n")
        inside = {number for _, first, last in places("\n".join(lines), page) for number in range(first, last)}
        by_hand += [
            f"{page.relative_to(ROOT)}, line {number + 1}"
            for number, line in enumerate(lines)
            if number not in inside and re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line) and "-:" in line.replace(":-:", "")
        ]
    assert by_hand == []


@pytest.mark.parametrize("name", TABLES)
def test_a_changed_digit_in_a_page_is_noticed(tree: Path, name: str) -> None:
    """Catches a table that is compared with itself, or not at all."""
    page = page_of(tree, name)
    lines = page.read_text(encoding="utf-8").split("\n")
    _, first, last = next(place for place in places("\n".join(lines), page) if place[0] == name)
    row = max(number for number in range(first, last) if lines[number].startswith("|"))
    column = max(at for at, letter in enumerate(lines[row]) if letter.isdigit())
    lines[row] = f"{lines[row][:column]}{(int(lines[row][column]) + 1) % 10}{lines[row][column + 1 :]}"
    page.write_text("\n".join(lines), encoding="utf-8")
    assert update(tree, write=False) == [f"{page.relative_to(tree)}: table {name}"]
    assert command.main(["--root", str(tree), "--check"]) == 1
    assert command.main(["--root", str(tree)]) == 0
    assert page.read_text(encoding="utf-8") == page_of(ROOT, name).read_text(encoding="utf-8")


def test_a_changed_digit_in_a_file_is_noticed(tree: Path) -> None:
    """Catches tables drawn from other files than their folder's."""
    source = tree / RESULTS / TABLES["mpe"].source / "results.csv"
    swap(source, ",542.9,534.7,", ",542.8,534.7,")
    assert [place.partition(": ")[2] for place in update(tree, write=False)] == ["table mpe"]
    swap(source, ",542.8,534.7,", ",542.9,534.7,")
    swap(source.with_name("about.json"), '"marl-flow campaign mpe"', '"marl-flow campaign all"')
    named = {place.partition(": ")[2] for place in update(tree, write=False)}
    assert named == {"table mpe", "table mpe-steps", "table results"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<!-- table: mpe -->", "<!-- table: mpee -->", "unknown table 'mpee'.*mpe"),
        ("<!-- table: mpe -->", f"{END}\n<!-- table: mpe -->", "closes nothing"),
        (END, "", "is not closed before"),
    ],
)
def test_faulty_marks_are_errors(tree: Path, old: str, new: str, message: str) -> None:
    """Catches a mistyped name or a lost mark, after which a table would silently stay as it is."""
    page = tree / "docs" / "page.md"
    page.write_text(f"# Page\n\n<!-- table: mpe -->\n{END}\n\n<!-- table: smac -->\n{END}\n", encoding="utf-8")
    swap(page, old, new)
    before = page.read_bytes()
    with pytest.raises(UserError, match=message):
        update(tree, write=True)
    assert page.read_bytes() == before


def test_a_last_table_that_is_not_closed_is_an_error(tree: Path) -> None:
    """Catches a page whose rest is taken for the table's."""
    (tree / "docs" / "page.md").write_text("<!-- table: mpe -->\n\ntext\n", encoding="utf-8")
    with pytest.raises(UserError, match="table mpe is never closed"):
        update(tree, write=False)


def test_a_table_on_no_page_is_an_error(tree: Path) -> None:
    """Catches a table that a rewritten page lost."""
    for page in pages(tree):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("<!-- table: prey -->", "<!-- table: speed -->"), encoding="utf-8")
    with pytest.raises(UserError, match="no page shows the tables prey"):
        update(tree, write=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[1]], "two rows for spread/expert 3, CoFlow-C k=1"),
        (lambda rows: rows[1:], "no row for spread/expert 3, BC"),
        (lambda rows: [], "expected rows of results"),
        (lambda rows: [{name: cell for name, cell in row.items() if name != "k"} for row in rows], r"columns \['k'\]"),
        (lambda rows: [{name: c for name, c in row.items() if name != "score"} for row in rows], "column 'score'"),
        (lambda rows: [{**row, "return": "many"} for row in rows], "cannot be shown as table mpe"),
    ],
)
def test_files_that_make_no_table_are_errors(tree: Path, change: Any, message: str) -> None:
    """Catches a cell overwritten by a second row, an empty cell, an empty table, and a file of other columns."""
    path = tree / RESULTS / TABLES["mpe"].source / "results.csv"
    with path.open(encoding="utf-8") as stream:
        columns, rows = stream.readline().strip().split(","), []
        stream.seek(0)
        rows = change(list(csv.DictReader(stream)))
    path.write_text(report.csv_text(rows) if rows else ",".join(columns) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        rendered("mpe", tree, tree / "README.md")


def test_numbers_are_written_as_they_are_meant() -> None:
    """Catches shares shown as fractions, empty cells shown as zeros, and a million that lost its zeros."""
    row = {"share": "0.963", "steps": "4400000", "few": "71100", "less": "0.21", "k": "", "word": "<1", "whole": "74"}
    text = "{share:.0p} {steps:si} {few:si} {less:si} {k:g} {word} {whole}"
    assert text.format(**readable(row)) == "96 4.4 M 71,100 0.21 - <1 74"


def fresh_report(root: Path) -> Path:
    """A report's folder, written by the report itself from a run of two methods."""
    plain = EvaluationResult(
        task_id="mpe/simple_spread",
        opponent=None,
        dataset_id="native/mpe/simple_spread/expert-v1",
        dataset_digest="d" * 64,
        algorithm="bc",
        preset="default",
        config_digest="0123456789abcdef",
        training_seed=0,
        update=10,
        protocol="last checkpoint",
        execution="decentralized",
        num_sampling_steps=None,
        target_return=None,
        target_rule="none",
        seeds=(11, 12),
        team_returns=(516.8, 516.8),
        agent_returns=((516.8,) * 3,) * 2,
        lengths=(25, 25),
        network_passes=1,
        latency_ms_p50=0.5,
        latency_ms_p95=0.75,
        device="cpu",
        model="a machine",
        won=None,
    )
    coflow = {"algorithm": "coflow", "execution": "centralized", "num_sampling_steps": 2, "target_return": 500.0}
    planned = dataclasses.replace(plain, **coflow, target_rule="quantile:0.9", team_returns=(159.8, 159.8))
    (root / "run").mkdir()
    lines = [json.dumps(dataclasses.asdict(result)) + "\n" for result in (plain, planned)]
    (root / "run" / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    path, _ = report.write([root / "run"], root / "report")
    return path.parent


def test_a_report_becomes_a_results_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches results copied in part, a protocol or machine that is not theirs, and a column that reports lack."""
    folder = fresh_report(tree)
    options = ["--command", "marl-flow campaign mpe", "--commit", "0123456789", "--date", "2030-01-02"]
    assert command.main(["--root", str(tree), "add", "later", str(folder), *options]) == 0
    made = tree / RESULTS / "later" / "2030-01-02-0123456"
    assert {path.name for path in made.iterdir()} == {"results.csv", "published.csv", "about.json"}
    assert (made / "results.csv").read_bytes() == (folder / "results.csv").read_bytes()
    about = read_about(made)
    assert (about.command, about.commit, about.date) == ("marl-flow campaign mpe", "0123456", "2030-01-02")
    assert (about.machine, about.protocol["episodes"], about.transcribed) == ("a machine", "2", None)
    assert about.protocol["target_rule"] == "none; quantile:0.9" and about.software["torch"]
    monkeypatch.setitem(TABLES, "later", Table(source=f"later/{made.name}", columns=definitions.QUICKSTART, left=2))
    monkeypatch.setitem(TABLES, "grid", dataclasses.replace(TABLES["mpe"], source=f"later/{made.name}", where={}))
    shown = rendered("later", tree, tree / "README.md")
    assert "| BC | D | - | 516.8 [516.8, 516.8] | 100.0 [100.0, 100.0] | 1 | 0.50 |" in shown
    assert "| CoFlow | C | 2 | 159.8 [159.8, 159.8] | 0.0 [0.0, 0.0] | 1 | 0.50 |" in shown
    assert "| Dataset | Seeds | BC | CoFlow-C k=2 |" in rendered("grid", tree, tree / "README.md")
    assert "[later/2030-01-02-0123456]" in rendered("results", tree, tree / "README.md")
    with pytest.raises(UserError, match="already exists"):
        command.main(["--root", str(tree), "add", "later", str(folder), *options])


def test_what_is_not_added(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches results of uncommitted code, an unknown machine or no file, and a folder made before they are refused."""
    folder = fresh_report(tree)
    for commit in (None, "0123-dirty"):
        monkeypatch.setattr(folders, "environment_info", lambda commit=commit: {"commit": commit})
        with pytest.raises(UserError, match="expected a clean git checkout"):
            folders.add(tree, "later", folder, command="c")
    monkeypatch.undo()
    with pytest.raises(UserError, match="--date"):
        folders.add(tree, "later", folder, command="c", commit="0123", date="yesterday")
    with pytest.raises(UserError, match="campaign's name"):
        folders.add(tree, "../later", folder, command="c", commit="0123")
    (folder / "results.csv").write_text("value\n1\n", encoding="utf-8")
    with pytest.raises(UserError, match="--machine"):
        folders.add(tree, "later", folder, command="c", commit="0123")
    for path in folder.glob("*.csv"):
        path.unlink()
    with pytest.raises(UserError, match="expected the CSV files of a report, found none"):
        folders.add(tree, "later", folder, command="c", commit="0123")
    assert not (tree / RESULTS / "later").exists()
    with pytest.raises(UserError, match="root of the repository"):
        command.main(["--root", str(folder)])


def test_an_index_names_every_folder_and_no_other(tree: Path) -> None:
    """Catches a results folder whose name is not its commit and date, and one that says nothing about itself."""
    for campaign in (tree / RESULTS).iterdir():
        for folder in campaign.iterdir() if campaign.is_dir() else ():
            assert f"[{campaign.name}/{folder.name}]" in page_of(tree, "results").read_text()
    source = tree / RESULTS / TABLES["prey"].source
    record = json.loads((source / "about.json").read_text())
    (source / "about.json").write_text(json.dumps(record | {"commit": "fffffff"}))
    with pytest.raises(UserError, match="expected the name"):
        update(tree, write=False)
    (source / "about.json").write_text(json.dumps({"commit": "fffffff"}))
    with pytest.raises(UserError, match=r"about\.json: expected where the numbers come from"):
        update(tree, write=False)


@pytest.mark.parametrize("suite_name", native_vs_published.SUITES)
def test_dataset_tables_have_every_recipe_and_the_published_means(suite_name: str) -> None:
    """Catches a dataset without a row, a row without a recipe, and a published mean copied wrongly."""
    rows = read_rows(ROOT / RESULTS / definitions.NATIVE / f"{suite_name}.csv")
    assert [row["dataset"] for row in rows] == [f"native/{name}-v1" for name in native_vs_published.names(suite_name)]
    for row in rows:
        name = row["dataset"].removeprefix("native/").removesuffix("-v1")
        assert float(row["published_mean"]) == pytest.approx(suite.dataset_means()[name], abs=0.05)
        assert float(row["difference"]) == pytest.approx(
            float(row["return_mean"]) - float(row["published_mean"]), abs=0.01
        )


def test_a_measured_speed_is_written_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a column of the speed table that the benchmark does not write."""
    row = timing.Row(name="windows", value=4.4e6, unit="frames/s", target=None)
    monkeypatch.setattr(windows, "rows", lambda: [row])
    assert speed.main(["windows", "--out", str(tmp_path / "speed")]) == 0
    (written,) = read_rows(tmp_path / "speed" / "results.csv")
    assert written == {"name": "windows", "value": "4.4e+06", "unit": "frames/s", "target": ""}
    assert list(written) == list(read_rows(ROOT / RESULTS / TABLES["speed"].source / "results.csv")[0])
    with pytest.raises(UserError, match="unknown section 'window'"):
        speed.main(["window"])
