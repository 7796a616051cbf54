"""Plots of table rows. Matplotlib is imported inside, so that reading results never loads it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from marl_flow.benchmarks import suite
from marl_flow.benchmarks.rows import TableRow, label
from marl_flow.benchmarks.scores import normalized_score, raw_return
from marl_flow.datasets import catalog
from marl_flow.datasets.store import open_store
from marl_flow.interfaces import UserError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours but for black, told apart by all common kinds of colour vision."""
GREY = "#7f7f7f"
DASHES = {"centralized": (9.0, 1.0), "decentralized": (5.0, 2.0)}
"""Lengths on, off, on, ... of a line; one more dot is put in for each round through the colours."""


def plot(rows: Sequence[TableRow], path: Path, title: str) -> None:
    """Return against k on the data `title`: a line per method that samples in steps, a level line for every other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(figsize=(9.0, 5.4), layout="constrained")
    lines: dict[tuple[str, str], list[TableRow]] = {}
    for row in rows:
        lines.setdefault((label(row, rows), row.first.execution), []).append(row)
    styles = line_styles(list(lines))
    both = {name for name, execution in lines if execution != "centralized" and (name, "centralized") in lines}
    steps = sorted({row.first.num_sampling_steps for row in rows if row.first.num_sampling_steps})
    limits = (0.85 * steps[0], 1.15 * steps[-1]) if steps else (0.85, 1.15)
    for (name, execution), line in sorted(lines.items(), key=lambda item: -max(row.mean for row in item[1])):
        first = line[0].first
        centralized = execution == "centralized"
        titled = f"{name}, {execution[0].upper()}" if first.num_sampling_steps or name in both else name
        style: dict[str, Any] = {**styles[name, execution], "label": titled}
        if first.num_sampling_steps is None:
            axes.axhline(line[0].mean, linewidth=1.2, **style)
            if line[0].interval is not None:
                axes.axhspan(*line[0].interval, color=style["color"], alpha=0.10, linewidth=0)
            continue
        k = [row.first.num_sampling_steps or 0 for row in line]
        axes.plot(
            k, [row.mean for row in line], marker="o" if centralized else "s", linewidth=1.6, markersize=5, **style
        )
        low, high = zip(*(row.interval or (row.mean, row.mean) for row in line), strict=True)
        axes.fill_between(k, low, high, color=style["color"], alpha=0.18, linewidth=0)
    mean = data_mean(rows[0])
    if mean is not None:
        axes.axhline(mean[0], color="black", linewidth=1, label=mean[1])
    reference = rows[0].reference
    if reference is not None and not any(row.first.algorithm == "random" for row in rows):
        axes.axhline(reference.random, color=GREY, linewidth=1, linestyle=":", label="random (published)")
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_xticks(steps or [1], [str(k) for k in steps] or [""])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sampling steps k of one decision")
    axes.set_ylabel("team return per episode (sum of rewards)")
    if reference is not None:
        references = {"random": reference.random, "expert": reference.expert}
        to_score, to_return = partial(normalized_score, **references), partial(raw_return, **references)
        twin = axes.secondary_yaxis("right", functions=(to_score, to_return))
        twin.set_ylabel("normalised score (random 0, expert data 100)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines["top"].set_visible(False)
    axes.set_title(f"{title}\nmean and 95 % interval of {episodes_text(rows)}", fontsize=11)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def line_styles(lines: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """(label, execution) -> colour and dashes of its line, no two alike: a colour a label, dashes an execution."""
    names = list(dict.fromkeys(name for name, _ in lines))
    styles: dict[tuple[str, str], dict[str, Any]] = {}
    for name, execution in lines:
        rounds, colour = divmod(names.index(name), len(COLOURS))
        dashes = (*DASHES[execution], *(1.0, 2.0) * rounds)
        if execution == "centralized" and not rounds:
            styles[name, execution] = {"color": COLOURS[colour], "linestyle": "-"}
        else:
            styles[name, execution] = {"color": COLOURS[colour], "linestyle": (0.0, dashes)}
    return styles


def episodes_text(rows: Sequence[TableRow]) -> str:
    """What the means of rows are over: `100 episodes of each of the training seeds 0, 1 and 2`."""
    counts = " or ".join(map(str, sorted({len(row.first.seeds) for row in rows})))
    seeds = sorted({seed for row in rows for seed in row.training_seeds})
    if len(seeds) == 1:
        return f"{counts} episodes, training seed {seeds[0]}"
    some = "" if all(len(row.training_seeds) == len(seeds) for row in rows) else " (some lines: of fewer)"
    return f"{counts} episodes of each training seed: {', '.join(map(str, seeds))}{some}"


def data_mean(row: TableRow) -> tuple[float, str] | None:
    """The mean return of a row's data and what to call it: the published one of published data, of other data their
    own. None where no mean is published, or the data are not on this machine with the content that was trained on."""
    name = row.first.dataset_id
    try:
        if catalog.parse(name).origin in ("omar", "ogmarl"):
            published = suite.dataset_means().get(row.dataset)
            return None if published is None else (published, "published mean of the data")
        store = open_store(catalog.folder_of(name), verify=False, dataset_id=name)
    except UserError:
        return None
    if store.digest != row.first.dataset_digest:
        return None
    return float(store.team_returns().mean()), "mean of the data"
