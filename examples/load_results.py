"""Loads the results of evaluated runs into pandas, prints a table and draws one plot.

python examples/train_and_evaluate.py        # or any other evaluated runs
python examples/load_results.py runs/train_and_evaluate
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import tyro
from matplotlib import pyplot

from marl_flow import results


def main(runs: tyro.conf.Positional[Path] = Path("runs"), picture: Path = Path("returns.png")) -> None:
    """Prints one line per dataset, method, execution and k, and draws the returns of single episodes.

    Args:
        runs: A run folder, or a folder that holds some.
        picture: The plot to write.
    """
    frame = results.load(runs).to_pandas()
    keys = ["dataset_id", "algorithm", "execution", "num_sampling_steps"]
    means = frame.groupby(keys, dropna=False)[["team_return_mean", "score", "latency_ms_p50"]].mean()
    print(means.round(2).to_string())

    labels, values = [], []
    for (dataset, algorithm, execution, k), group in frame.groupby(keys, dropna=False):
        steps = f", k = {k:.0f}" if k == k else ""  # a missing number does not equal itself
        labels.append(f"{algorithm}, {execution[0].upper()}{steps} ({dataset.rpartition('/')[2]})")
        values.append(group["team_returns"].explode().astype(float))  # one number per evaluation episode
    figure, axes = pyplot.subplots(figsize=(7, 0.5 * len(labels) + 1.5), layout="constrained")
    axes.boxplot(values, orientation="horizontal", tick_labels=labels)
    axes.set_xlabel("team return of an episode")
    figure.savefig(picture, dpi=120)
    print(f"picture: {picture}")


if __name__ == "__main__":
    tyro.cli(main)
