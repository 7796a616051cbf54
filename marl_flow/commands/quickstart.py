"""From nothing to a results table: build a dataset, train five methods, evaluate and report them.

Every part is skipped when it is finished, so a tour that was interrupted continues when it is started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

DATASET = "mpe/simple_spread/expert"


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One run of the tour."""

    folder: str
    algorithm: str
    preset: str
    settings: tuple[str, ...] = ()
    about: str


RUNS = (
    Stop(
        folder="coflow-centralized",
        algorithm="coflow",
        preset="compact",
        settings=("conditioning=centralized",),
        about="one plan of the whole team from what all agents see",
    ),
    Stop(
        folder="coflow-decentralized",
        algorithm="coflow",
        preset="compact",
        settings=("conditioning=decentralized",),
        about="every agent plans the whole team from what it sees itself",
    ),
    Stop(folder="ma_td3_bc", algorithm="ma_td3_bc", preset="default", about="imitates, and improves by a critic"),
    Stop(folder="bc", algorithm="bc", preset="default", about="imitates the data, agent by agent"),
    Stop(folder="random", algorithm="random", preset="default", about="the zero of the score"),
)
"""The longest first: they are trained side by side."""
STEPS = (1, 2, 3, 5, 10)


def run(
    out: Path,
    *,
    seed: int,
    episodes: int,
    device: str,
    say: Callable[[str], object],
    dataset: str = DATASET,
    runs: Sequence[Stop] = RUNS,
) -> Path:
    """Makes the whole tour under `out`, telling `say` about it line by line; returns the report's path."""
    import torch

    from marl_flow.benchmarks import report
    from marl_flow.commands import data, evaluate
    from marl_flow.commands import train as making
    from marl_flow.commands import workers as pool
    from marl_flow.datasets import catalog

    begun = time.perf_counter()
    plans = {
        stop.folder: making.plan(
            dataset, stop.algorithm, preset=stop.preset, settings=stop.settings, seed=seed, device=device
        )
        for stop in runs
    }
    say(f"1 of 4. Data: {dataset}, in {catalog.folder_of(dataset)}")
    store = data.open_dataset(dataset)
    say(f"   {store.num_episodes:,} episodes, mean team return {store.team_returns().mean():.1f}")

    workers = pool.workers_for(device, len(runs))
    say(f"2 of 4. Training, seed {seed}, on {device}, {workers} at a time")
    for stop in runs:
        say(f"   {stop.folder}: {stop.about}")
    pieces = [(plan, out / folder) for folder, plan in plans.items()]
    results = {folder.name: result for (_, folder), result in pool.as_done(making.train_piece, pieces, workers)}
    for stop in runs:
        say(f"   {stop.folder}: {making.describe_training(results[stop.folder])}")

    say(f"3 of 4. Evaluation: {episodes} episodes each, the same for all")
    if device == "cpu":  # as in training: the same numbers, and latencies, on any number of cores
        torch.set_num_threads(1)
    for stop in runs:
        asked = evaluate.EvalConfig(steps=STEPS, episodes=episodes, device=device)
        found = evaluate.evaluate(out / stop.folder, asked, gif=True)
        for line in map(evaluate.describe, found):
            say(f"   {line}")
        if not found:
            say(f"   {stop.folder}: evaluated before")

    say("4 of 4. Report")
    path, rows = report.write([out / stop.folder for stop in runs], out / "report")
    say("")
    say(report.summary(rows))
    say("")
    say(f"Done in {time.perf_counter() - begun:.0f} s.")
    say(f"   tables, plot and rollouts  {path.parent}")
    say(f"   checkpoints and metrics    {out.resolve()} (curves: tensorboard --logdir {out})")
    say(f"   dataset                    {catalog.folder_of(dataset)} (its card: marl-flow data show {dataset})")
    say(f"Next: marl-flow train {dataset} coflow --show-config")
    return path
