"""The picture of the README, drawn from committed results.

python docs/figures.py          # at the root of the repository; writes docs/images/return-against-steps.png
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from marl_flow.benchmarks import suite
from marl_flow.benchmarks.scores import normalized_score

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/mpe/2026-11-24-1ffc7a2/results.csv"
PICTURE = ROOT / "docs/images/return-against-steps.png"
TASKS = ("simple_spread", "simple_tag", "simple_world")
COFLOW = {"centralized": ("CoFlow-C", "#0072B2", "-", "o"), "decentralized": ("CoFlow-D", "#D55E00", "--", "s")}
BC = "#009E73"

Row = Mapping[str, str]


def main() -> None:
    with RESULTS.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    figure, panels = pyplot.subplots(1, len(TASKS), figsize=(9.6, 3.4), sharey=True, layout="constrained")
    for axes, task in zip(panels, TASKS, strict=True):
        draw(axes, task, [row for row in rows if row["dataset"] == f"native/mpe/{task}/expert-v1"])
    panels[0].set_ylabel("normalised score")
    panels[0].set_ylim(bottom=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150, metadata={"Software": None})


def draw(axes: Axes, task: str, rows: Sequence[Row]) -> None:
    """Score against k on one dataset: a line for each execution of CoFlow, a level for BC, bands of 95 % intervals."""
    reference = suite.references()[f"mpe/{task}"]

    def scores(lines: Sequence[Row], column: str) -> list[float]:
        returns = [float(row[column]) for row in lines]
        return [float(score) for score in normalized_score(returns, reference.random, reference.expert)]

    for execution, (name, colour, style, marker) in COFLOW.items():
        line = [row for row in rows if row["algorithm"] == "coflow" and row["execution"] == execution]
        line.sort(key=lambda row: int(row["k"]))
        k = [int(row["k"]) for row in line]
        axes.plot(k, scores(line, "return"), style, marker=marker, color=colour, markersize=4.5, label=name)
        axes.fill_between(
            k, scores(line, "return_low"), scores(line, "return_high"), color=colour, alpha=0.18, linewidth=0
        )
    cloned = [row for row in rows if row["algorithm"] == "bc"]
    axes.axhline(*scores(cloned, "return"), color=BC, linestyle="-.", linewidth=1.3, label="BC (one pass, no k)")
    axes.axhspan(*scores(cloned, "return_low"), *scores(cloned, "return_high"), color=BC, alpha=0.12, linewidth=0)
    axes.axhline(100, color="black", linewidth=0.9, linestyle=":", label="100 = expert data, 0 = random policy")
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 3, 5, 10], ["1", "2", "3", "5", "10"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sampling steps k")
    seeds = cloned[0]["training_seeds"]
    axes.set_title(f"{task} ({seeds} training seed{'' if seeds == '1' else 's'})", fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)


if __name__ == "__main__":
    main()
