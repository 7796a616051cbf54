"""Trains CoFlow and BC on one dataset, evaluates both on the same episodes and writes a report.

    python examples/train_and_evaluate.py
    python examples/train_and_evaluate.py --dataset mpe/simple_tag/medium --updates 1000

A run that is there already continues, or is skipped when it is finished.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import marl_flow
from marl_flow.benchmarks import report


def main(
    dataset: str = "mpe/simple_spread/expert",
    updates: int = 1000,
    episodes: int = 100,
    out: Path = Path("runs/train_and_evaluate"),
) -> None:
    """Trains, evaluates and reports.

    Args:
        dataset: Dataset id; a native one that is absent is built first.
        updates: Gradient steps of each method.
        episodes: Evaluation episodes, the same for both methods.
        out: Folder of the runs and the report.
    """
    for method in ("coflow", "bc"):
        run = marl_flow.train(dataset, method, out=out / method, seed=0, updates=updates)
        for row in marl_flow.evaluate(run, k=(1, 3), episodes=episodes):
            print(method, row.execution, row.num_sampling_steps, round(row.team_return_mean, 1))
    path, rows = report.write([out / "coflow", out / "bc"], out / "report")
    print(report.summary(rows))
    print(f"report: {path}")


if __name__ == "__main__":
    tyro.cli(main)
