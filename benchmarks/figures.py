"""Plots of table rows. Matplotlib is imported inside, so that reading results never loads it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from marl_flow.benchmarks import suite
from marl_flow.benchmarks.rows import TableRow, label
from marl_flow.benchmarks.scores import normalized_score, raw_return

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart by all common kinds of colour vision."""


def plot(rows: Sequence[TableRow], path: Path, title: str) -> None:
    """Return against k on the data `title`: a line per method that samples in steps, a level line for every other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(figsize=(9.0, 5.4), layout="constrained")
    algorithms = [name for name in dict.fromkeys(row.first.algorithm for row in rows) if name != "random"]
    colour = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(algorithms)} | {"random": "#7f7f7f"}
    lines: dict[tuple[str, str], list[TableRow]] = {}
    for row in rows:
        lines.setdefault((label(row, rows), row.first.execution), []).append(row)
    steps = sorted({row.first.num_sampling_steps for row in rows if row.first.num_sampling_steps})
    limits = (0.85 * steps[0], 1.15 * steps[-1]) if steps else (0.85, 1.15)
    for (name, execution), line in sorted(lines.items(), key=lambda item: -max(row.mean for row in item[1])):
        first = line[0].first
        centralized = execution == "centralized"
        style: dict[str, Any] = {
            "color": colour[first.algorithm],
            "linestyle": "-" if centralized else "--",
            "label": f"{name}, {execution[0].upper()}" if first.num_sampling_steps else name,
        }
        if first.num_sampling_steps is None:
            style["linestyle"] = ":" if first.algorithm == "random" else "-."
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
    data_mean = suite.dataset_means().get(rows[0].dataset)
    if data_mean is not None:
        axes.axhline(data_mean, color="black", linewidth=1, label="published mean of the data")
    reference = rows[0].reference
    if reference is not None and not any(row.first.algorithm == "random" for row in rows):
        axes.axhline(reference.random, color="#7f7f7f", linewidth=1, linestyle=":", label="random (published)")
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
    axes.set_title(f"{title}\nmean and 95 % interval of {len(rows[0].first.seeds)} episodes", fontsize=11)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
