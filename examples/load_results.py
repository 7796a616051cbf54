"""Loads the results of evaluated runs into pandas, prints a table and draws one plot.

python examples/train_and_evaluate.py        # or any other evaluated runs
python examples/load_results.py runs/train_and_evaluate
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pandas
import tyro
from matplotlib import pyplot

from marl_flow import results
from marl_flow.benchmarks.rows import SAME_ROW

NAMES = ["dataset_id", "algorithm", "execution", "num_sampling_steps"]
"""Columns that are always shown; others of SAME_ROW only where they tell two rows with these names apart."""


def main(runs: tyro.conf.Positional[Path] = Path("runs"), picture: Path = Path("returns.png")) -> None:
    """Prints a line for all training seeds of the same settings, and draws the returns of single episodes.

    Args:
        runs: A run folder, or a folder that holds some.
        picture: The plot to write.
    """
    frame = results.load(runs).to_pandas()
    for digest in ("dataset_digest", "config_digest"):
        frame[digest] = frame[digest].str[:6]
    row = list(SAME_ROW)  # results that differ in one of these must not be averaged
    frame = frame.drop_duplicates([*row, "training_seed"], keep="last")  # a run that was evaluated again
    frame["episodes"] = frame["seeds"].map(len)

    others = [column for column in row if column not in (*NAMES, "seeds")]
    differing = frame.groupby(NAMES, dropna=False)[others].nunique(dropna=False).max() > 1
    shown = [*NAMES, *differing[differing].index, "episodes"]
    lines, labels, values = [], [], []
    for _, group in frame.groupby(row, dropna=False):
        numbers = group[["team_return_mean", "score", "latency_ms_p50"]].astype(float).mean().round(2)
        lines.append({**group[shown].iloc[0], "training_seeds": len(group), **numbers})
        labels.append(", ".join(str(value) for value in group[shown[:-1]].iloc[0] if value == value))  # NaN: no k
        values.append(group["team_returns"].explode().astype(float))  # one number per evaluation episode
    print(pandas.DataFrame(lines).to_string(index=False))

    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(labels) + 1.5), layout="constrained")
    axes.boxplot(values, orientation="horizontal", tick_labels=labels)
    axes.set_xlabel("team return of an episode")
    figure.savefig(picture, dpi=120)
    print(f"picture: {picture}")


if __name__ == "__main__":
    tyro.cli(main)
