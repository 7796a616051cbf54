"""Tables, plots and rollouts from result files alone, written as one folder.

report.md links everything else in the folder; results.csv holds what was measured here, published.csv what was
published, each cell on the scale it was printed on and, marked as derived, on the other.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from marl_flow import results
from marl_flow.benchmarks import scores, suite
from marl_flow.benchmarks.figures import plot
from marl_flow.benchmarks.rows import (
    TableRow,
    beats,
    by_data,
    data_title,
    differences,
    differing_settings,
    label,
    setting_text,
    settings_of,
    table_rows,
)
from marl_flow.interfaces import UserError

log = logging.getLogger(__name__)

MARKER = "report.json"
"""Lists a report's files; a folder that holds these and nothing else may be replaced by the next report."""


def record(row: TableRow, rows: Sequence[TableRow]) -> dict[str, Any]:
    """A row as the columns of results.csv: returns raw, latencies in milliseconds, and every setting that differs.

    rows: those it is compared with.
    """
    first, (low, high) = row.first, row.interval or (None, None)
    win_low, win_high = row.win_interval or (None, None)
    p50, p95 = row.latency_ms or (None, None)
    values = settings_of(row)
    device, model = row.machines[0] if len(row.machines) == 1 else ("mixed", "mixed")
    return {
        "dataset": first.dataset_id,
        "dataset_digest": first.dataset_digest,
        "task": first.task_id,
        "opponent": first.opponent,
        "algorithm": first.algorithm,
        "preset": first.preset,
        "config_digest": first.config_digest,
        "execution": first.execution,
        "k": first.num_sampling_steps,
        "actions_per_plan": first.actions_per_plan,
        "return": row.mean,
        "return_low": low,
        "return_high": high,
        "return_iqm": float(scores.interquartile_mean(row.returns)),
        "score": row.score(row.mean),
        "score_low": None if low is None else row.score(low),
        "score_high": None if high is None else row.score(high),
        "win_rate": row.win_rate,
        "win_low": win_low,
        "win_high": win_high,
        "beats_bc": beats(row, rows),
        "training_seeds": len(row.training_seeds),
        "episodes": len(first.seeds),
        "updates": first.update,
        "target_rule": first.target_rule,
        "target_return": first.target_return,
        "gate_scale": first.gate_scale,
        "network_passes": first.network_passes,
        "latency_ms_p50": p50,
        "latency_ms_p95": p95,
        "protocol": first.protocol,
        "device": device,
        "model": model,
        **{name: setting_text(values[name]) if name in values else None for name in differing_settings(rows)},
    }


def published_record(row: suite.PublishedRow) -> dict[str, Any]:
    """A published cell as the columns of published.csv: both scales, and which of them was printed."""
    columns: dict[str, Any] = {"dataset": row.dataset, "method": row.method, "source": row.source}
    for scale, name in (("raw", "return"), ("normalized", "score")):
        value = row.on_scale("raw" if scale == "raw" else "normalized")
        columns[name], columns[f"{name}_spread"] = value or (None, None)
        columns[f"{name}_is"] = None if value is None else "printed" if scale == row.scale else "derived"
    return {**columns, "spread_kind": row.spread_kind, "note": row.note}


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV with a header; empty cells where a value is None."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in record.items()}
        for record in records
    )
    return stream.getvalue()


def table(header: Sequence[str], body: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A Markdown table; the columns with the indices `right` are aligned to the right."""
    aligned = set(right)
    rule = ["---:" if index in aligned else "---" for index in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *body])


def filled_table(header: Sequence[str], body: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A Markdown table without the columns that are empty, or hold dashes alone."""
    kept = [index for index in range(len(header)) if any(cells[index] not in ("", "-") for cells in body)]
    aligned = set(right)
    return table(
        [header[index] for index in kept],
        [[cells[index] for index in kept] for cells in body],
        [place for place, index in enumerate(kept) if index in aligned],
    )


def best(rows: Sequence[TableRow]) -> list[TableRow]:
    """The rows with the highest mean return; none where there is nothing to compare."""
    if len(rows) < 2:
        return []
    highest = max(row.mean for row in rows)
    return [row for row in rows if row.mean == highest]


def dataset_section(title: str, rows: Sequence[TableRow]) -> str:
    """Markdown of one dataset: our own results on it."""
    header = [
        *("Method", "Exec.", "k", "m", "Return [95 %]", "Score [95 %]", "Won, % [95 %]", "Beats bc", "Training seeds"),
        *("Episodes", "Updates"),
        *("Target return", "Passes", "Latency p50 / p95, ms", "Protocol"),
    ]
    body = []
    winners = best(rows)
    for row in rows:
        first, columns = row.first, record(row, rows)
        mean = interval_text(row.mean, row.interval)
        target = "-" if first.target_return is None else f"{first.target_return:.1f} ({first.target_rule})"
        body.append(
            [
                label(row, rows),
                first.execution[0].upper(),
                str(first.num_sampling_steps or "-"),
                m_text(row),
                f"**{mean}**" if row in winners else mean,
                score_text(row),
                win_text(row),
                "-" if columns["beats_bc"] is None else f"{columns['beats_bc']:.2f}",
                str(len(row.training_seeds)),
                str(len(first.seeds)),
                str(first.update),
                target,
                f"{first.network_passes:g}",
                "mixed" if row.latency_ms is None else f"{row.latency_ms[0]:.2f} / {row.latency_ms[1]:.2f}",
                first.protocol,
            ]
        )
    reference = rows[0].reference
    scale = "No reference returns are published for this task, so there is no score."
    if reference is not None:
        scale = (
            f"Score 0 is a return of {reference.random:g} (random), score 100 is {reference.expert:g} (expert data)."
        )
    devices = sorted({device for row in rows for device, _ in row.machines})
    against = "" if rows[0].first.opponent is None else f" against the prey {rows[0].first.opponent}"
    lines = [
        f"## {title}",
        f"Task {rows[0].first.task_id}{against}. {scale} Latency: one joint decision at batch 1 on "
        f"{', '.join(devices)}.",
        filled_table(header, body, range(2, 11)),
    ]
    return "\n\n".join(lines)


def published_section(dataset: str) -> str:
    """Markdown of what was published for suite/task/quality, on both scales, derived figures in italics."""
    body = []
    rows = [row for row in suite.published() if row.dataset == dataset]
    for row in sorted(rows, key=lambda row: -(row.on_scale("raw") or row.on_scale("normalized") or (0.0, None))[0]):
        cells = []
        for scale in ("raw", "normalized"):
            value = row.on_scale(scale)
            text = "-" if value is None else f"{value[0]:.1f}" + ("" if value[1] is None else f" ± {value[1]:.1f}")
            cells.append(text if value is None or scale == row.scale else f"*{text}*")
        body.append([row.method, *cells, row.scale, row.spread_kind, suite.SOURCES[row.source], row.note])
    header = ["Published method", "Return", "Score", "Printed as", "± is", "Source", "Note"]
    return filled_table(header, body, (1, 2)) if body else ""


def m_text(row: TableRow) -> str:
    """Actions a plan; a dash for methods that do not sample plans."""
    return str(row.first.actions_per_plan) if row.first.num_sampling_steps else "-"


def win_text(row: TableRow) -> str:
    """Win rate and its interval in per cent."""
    if row.win_rate is None:
        return "-"
    interval = None if row.win_interval is None else (100 * row.win_interval[0], 100 * row.win_interval[1])
    return interval_text(100 * row.win_rate, interval, digits=0)


def score_text(row: TableRow) -> str:
    """Normalised score and its interval."""
    middle = row.score(row.mean)
    if middle is None:
        return "-"
    ends = None if row.interval is None else tuple(row.score(end) for end in row.interval)
    return interval_text(middle, ends)


def interval_text(middle: float, interval: Sequence[float | None] | None, digits: int = 1) -> str:
    """A number with its interval; [-] where there is none."""
    ends = "-" if interval is None else ", ".join(f"{end:.{digits}f}" for end in interval)
    return f"{middle:.{digits}f} [{ends}]"


def sources(rows: Sequence[TableRow]) -> str:
    """Markdown of the run folders that the rows come from, one line for all step counts of a method."""
    lines: dict[tuple[str, ...], list[str]] = {}
    groups = by_data(rows)
    for title, row in ((title, row) for title, group in groups.items() for row in group):
        first = row.first
        folders = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in row.folders)
        key = (title, label(row, groups[title]), first.execution[0].upper(), first.config_digest, folders)
        lines.setdefault(key, []).append(str(first.num_sampling_steps or "-"))
    body = [[*key[:3], ", ".join(steps), *key[3:]] for key, steps in lines.items()]
    return table(["Dataset", "Method", "Exec.", "k", "Config digest", "Run folders"], body)


def summary(rows: Sequence[TableRow]) -> str:
    """The table in short, for a terminal."""
    lines = []
    for title, group in by_data(rows).items():
        width = max(len(label(row, group)) for row in group)
        lines += [title, f"  {'method':<{width}}  exec.   k   m  {'return [95 %]':>22}  {'score [95 %]':>21}  ms"]
        for row in group:
            lines.append(
                f"  {label(row, group):<{width}}  {row.first.execution[0].upper():<5}  "
                f"{row.first.num_sampling_steps or '-':>2}  {m_text(row):>2}  "
                f"{interval_text(row.mean, row.interval):>22}  {score_text(row):>21}  "
                + ("mixed" if row.latency_ms is None else f"{row.latency_ms[0]:.2f}")
            )
    return "\n".join(lines)


Acting = tuple[bool, str, str, str, int, int]
"""Whether it is the random policy (which comes last), algorithm, preset, execution, sampling steps (0: it takes none),
actions a plan: a column of the overview, or several where a dataset has several rows of it."""


def overview(rows: Sequence[TableRow]) -> str:
    """Markdown with a line per dataset and `return [95 %] (score) won` in each cell, the best of the line in bold.

    A column per way of acting, and per variant where a dataset has several of one: `coflow-C k=1, width=64`. A dash
    stands where a dataset lacks what another has.
    """
    groups = by_data(rows)
    names = {id(row): name for name, row in _columns(groups)}
    columns = list(dict.fromkeys(name for name, _ in _columns(groups)))
    body = []
    for title, group in groups.items():
        winners = best(group)
        counts = sorted({len(row.training_seeds) for row in group})
        cells = dict.fromkeys(columns, "-")
        for row in group:
            score = row.score(row.mean)
            text = interval_text(row.mean, row.interval)
            text += "" if score is None else f" ({score:.1f})"
            text += "" if row.win_rate is None else f" {100 * row.win_rate:.0f} % won"
            cells[names[id(row)]] = f"**{text}**" if row in winners else text
        body.append([title, ", ".join(map(str, counts)), *cells.values()])
    header = ["Dataset", "Training seeds", *columns]
    return table(header, body, range(1, len(header)))


def _columns(groups: Mapping[str, Sequence[TableRow]]) -> list[tuple[str, TableRow]]:
    """The name of each row's column in the overview, in the order of the columns."""
    cells: dict[Acting, list[list[TableRow]]] = {}
    for group in groups.values():
        of_group: dict[Acting, list[TableRow]] = {}
        for row in group:
            of_group.setdefault(_acting(row), []).append(row)
        for acting, variants in of_group.items():
            cells.setdefault(acting, []).append(variants)
    presets: dict[str, set[str]] = {}
    for _, algorithm, preset, *_ in cells:
        presets.setdefault(algorithm, set()).add(preset)
    named = []
    for acting in sorted(cells):
        _, algorithm, preset, execution, k, m = acting
        name = algorithm + (f" ({preset})" if len(presets[algorithm]) > 1 else "")
        name += (f"-{execution[0].upper()} k={k}" if k else "") + (f" m={m}" if m != 1 else "")
        if not k and sum(other[:3] == acting[:3] and not other[4] for other in cells) > 1:
            name += f"-{execution[0].upper()}"
        several = [variants for variants in cells[acting] if len(variants) > 1]
        for variants in cells[acting]:
            for row in variants:
                # alone here, and one of several elsewhere: under the name that it has there
                digest = row.first.config_digest
                elsewhere = [other for other in several if any(r.first.config_digest == digest for r in other)]
                rivals = variants if len(variants) > 1 or not elsewhere else elsewhere[0]
                shown = differences(row, rivals, without=("actions_per_plan",))
                named.append((", ".join([name, *shown]), row))
    return named


def _acting(row: TableRow) -> Acting:
    first = row.first
    steps = first.num_sampling_steps or 0
    names = (first.algorithm == "random", first.algorithm, first.preset)
    return (*names, first.execution, steps, first.actions_per_plan)


def markdown(
    rows: Sequence[TableRow], plots: Mapping[str, str], rollouts: Mapping[str, Sequence[tuple[str, str]]]
) -> str:
    """The whole report. plots: title of the data -> file; rollouts: title of the data -> (caption, file)."""
    parts = [
        "# Results",
        "Every number is the mean team return over evaluation episodes (and training seeds, where there are several), "
        "with a 95 % interval; evaluation seeds are shared by all methods, step counts and executions. With one "
        "training seed it is a bootstrap over the episodes and says nothing about the luck of training, with three and "
        "more it counts the luck of both (a t interval that knows that all seeds play the same episodes); two seeds "
        "do not tell an interval: [-]. Exec.: C "
        "centralized, D decentralized. k: sampling steps. m: actions a plan. Beats bc: probability of a higher return "
        "than bc on the same evaluation seed. Won: share of won episodes, with Wilson's interval. Passes: forward "
        "passes of the largest network a joint decision; passes and latency are "
        "averages over the m decisions of a plan.",
    ]
    if len(by_data(rows)) > 1:
        parts += [
            "## Overview",
            "Return with its interval, the score in brackets, and the share of won episodes; the best of each dataset "
            "in bold, a dash where a dataset lacks what another has.",
            overview(rows),
        ]
    for title, group in by_data(rows).items():
        parts.append(dataset_section(title, group))
        if title in plots:
            parts.append(f"![Return against sampling steps on {title}]({plots[title]})")
        if rollouts.get(title):
            header = [caption for caption, _ in rollouts[title]]
            parts.append(table(header, [[f"![{caption}]({file})" for caption, file in rollouts[title]]]))
        published = published_section(group[0].dataset)
        if published:
            parts.append(
                f"Published for {group[0].dataset}, on the authors' data and with their protocols (CoFlow's page picks "
                "the best checkpoint). Each figure stands on the scale it was printed on; *italics* are derived from "
                "it with the reference returns above."
            )
            parts.append(published)
    mpe = {name for name in suite.dataset_means() if name.startswith("mpe/")}
    if mpe <= {row.dataset for row in rows}:  # a mean over all of them says nothing beside one of them
        averages = suite.published_averages("mpe", "normalized")
        body = [
            [method, f"{score:.1f}", suite.SOURCES[source]]
            for (method, source), score in sorted(averages.items(), key=lambda item: -item[1])
        ]
        parts.append(f"## Published averages over the {len(mpe)} MPE datasets, all as scores")
        parts.append(table(["Published method", "Mean score", "Source"], body, [1]))
    parts.append("## Where each row comes from")
    parts.append(sources(rows))
    return "\n\n".join(parts) + "\n"


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def write(paths: Sequence[Path], out: Path) -> tuple[Path, list[TableRow]]:
    """Writes the report of all runs at or below `paths` into the folder `out`; returns its report.md and its rows.

    The folder is made beside `out` and moved there when it is whole; an interrupted report leaves the former one.
    """
    folders = results.run_folders(paths)
    rows = table_rows(results.load(folders))
    if not rows:
        raise UserError(f"the results files of {', '.join(map(str, folders))} are empty; evaluate a run first")
    out = out.resolve()
    former = out.with_name(f".{out.name}.former")
    if former.exists() and not out.exists():  # a report stopped between its two moves
        former.rename(out)
    _refuse_foreign(out, folders)
    fresh = out.with_name(f".{out.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write a report at {out}: {error.strerror}; choose another folder with --out"
        ) from error
    _fill(fresh, folders, rows)
    shutil.rmtree(former, ignore_errors=True)
    if out.exists():
        out.rename(former)
    fresh.rename(out)
    shutil.rmtree(former, ignore_errors=True)
    return out / "report.md", rows


def _refuse_foreign(out: Path, folders: Sequence[Path]) -> None:
    if any(out == folder or out in folder.parents for folder in folders):
        raise UserError(f"{out} holds the runs that are reported; choose another folder with --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        listed = {MARKER, *json.loads((out / MARKER).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{out} exists and is not a report; choose another folder with --out, or move it away"
        ) from error
    ours = listed | {parent.as_posix() for name in listed for parent in Path(name).parents}
    foreign = sorted(name for path in out.rglob("*") if (name := path.relative_to(out).as_posix()) not in ours)
    if foreign:
        raise UserError(
            f"{out} holds a report and {foreign[0]}, which is not part of it and would be lost; move it away, or "
            "choose another folder with --out"
        )


def _fill(folder: Path, run_folders: Sequence[Path], rows: Sequence[TableRow]) -> None:
    plots = {}
    for title, group in by_data(rows).items():
        plots[title] = f"return_against_k_{slug(title)}.png"
        plot(group, folder / plots[title], title)
    rollouts: dict[str, list[tuple[str, str]]] = {}
    for index, run in enumerate(run_folders):
        of_run = [row for row in rows if run in row.folders]
        if not of_run:  # evaluated again in another folder: none of its results count
            continue
        for source in sorted(run.glob("rollout_*.gif")):
            name = f"rollouts/{index:03d}_{slug(run.name)}_{source.name.removeprefix('rollout_')}"
            (folder / "rollouts").mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
            caption = f"{run.name}: {source.stem.removeprefix('rollout_')}"
            rollouts.setdefault(data_title(of_run[0], rows), []).append((caption, name))
    (folder / "results.csv").write_text(csv_text([record(row, rows) for row in rows]), encoding="utf-8")
    datasets = {row.dataset for row in rows}
    published = [published_record(row) for row in suite.published() if row.dataset in datasets]
    if published:
        (folder / "published.csv").write_text(csv_text(published), encoding="utf-8")
    (folder / "report.md").write_text(markdown(rows, plots, rollouts), encoding="utf-8")
    listed = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / MARKER).write_text(json.dumps({"files": listed}, indent=1) + "\n", encoding="utf-8")
