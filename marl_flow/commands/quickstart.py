"""From nothing to a results table: a campaign of five methods on one dataset, explained as it goes.

Whatever is finished is kept, so that a quickstart that was interrupted continues when it is started again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from marl_flow.benchmarks.campaign import Campaign, Method, make_runs

QUICKSTART = Campaign(
    about="five methods on one small dataset",
    datasets=("mpe/simple_spread/expert",),
    methods=(  # the slowest first: they are trained side by side
        Method(
            folder="coflow-centralized",
            algorithm="coflow",
            preset="compact",
            settings=("conditioning=centralized",),
            about="one plan for the whole team, from the observations of all agents",
        ),
        Method(
            folder="coflow-decentralized",
            algorithm="coflow",
            preset="compact",
            settings=("conditioning=decentralized",),
            about="every agent plans for the whole team, from its own observation",
        ),
        Method(
            folder="ma_td3_bc",
            algorithm="ma_td3_bc",
            preset="default",
            about="imitates the data and improves on it with a critic",
        ),
        Method(folder="bc", algorithm="bc", preset="default", about="imitates the data, agent by agent"),
        Method(folder="random", algorithm="random", preset="default", about="acts at random: score 0"),
    ),
    episodes=100,
    steps=(1, 2, 3, 5, 10),
    layout="{method}",
)


def quickstart(
    out: Path,
    *,
    seed: int,
    episodes: int,
    device: str,
    print_fn: Callable[[str], object],
    campaign: Campaign = QUICKSTART,
) -> Path:
    """Runs the whole quickstart below `out`, reporting line by line to `print_fn`; returns the path of the report."""
    import torch

    from marl_flow.benchmarks import report
    from marl_flow.commands import data, evaluate, train, workers
    from marl_flow.datasets import catalog

    start, (dataset,) = time.perf_counter(), campaign.datasets
    runs = make_runs(dataclasses.replace(campaign, seeds=(seed,), episodes=episodes), out, device)
    print_fn(f"1 of 4. Data: {dataset}, in {catalog.folder_of(dataset)}")
    store = data.open_dataset(dataset)
    print_fn(f"   {store.num_episodes:,} episodes, mean team return {store.team_returns().mean():.1f}")

    processes = workers.workers_for(device, len(runs))
    print_fn(f"2 of 4. Training: seed {seed}, on {device}, {processes} at a time")
    for method in campaign.methods:
        print_fn(f"   {method.folder}: {method.about}")
    trained = {run.folder: result for run, result in workers.as_done(train.train, [run for run, _ in runs], processes)}
    for run, _ in runs:
        print_fn(f"   {run.folder.name}: {train.describe_training(trained[run.folder])}")

    print_fn(f"3 of 4. Evaluation: {episodes} episodes each, the same for every method")
    if device == "cpu":  # as in training: the same numbers, and latencies, on any number of cores
        torch.set_num_threads(1)
    for run, evaluation in runs:
        results = evaluate.evaluate(run.folder, evaluation, gif=True, progress=True)
        for result in results:
            print_fn(f"   {evaluate.describe(result, Path(run.folder.name))}")
        if not results:
            print_fn(f"   {run.folder.name}: evaluated before")

    print_fn("4 of 4. Report")
    path, rows = report.write([run.folder for run, _ in runs], out / "report")
    print_fn("")
    print_fn(report.summary(rows))
    print_fn("")
    print_fn(f"Done in {time.perf_counter() - start:.0f} s.")
    print_fn(f"   tables, plot and rollouts  {path.parent}")
    print_fn(f"   checkpoints and metrics    {out.resolve()} (curves: tensorboard --logdir {out})")
    folder = catalog.folder_of(dataset)
    print_fn(f"   dataset                    {folder} (its card: marl-flow data show {dataset})")
    print_fn(f"Next: marl-flow train {dataset} coflow --show-config")
    return path
