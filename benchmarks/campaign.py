"""Campaigns: fixed tables of methods on datasets, each run by one command: data, training, evaluation, report.

A campaign says what is compared and at which budget; nothing in it is chosen per dataset. What is finished is kept:
started again after a kill, the same command continues training from the last checkpoint and evaluation at the blocks
of episodes that are missing. `marl-flow quickstart` is a campaign on one dataset (commands/quickstart.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from marl_flow import training
from marl_flow.benchmarks import report
from marl_flow.benchmarks.rows import TableRow
from marl_flow.commands import data, evaluate, train, workers
from marl_flow.commands.evaluate import EvalConfig
from marl_flow.commands.train import Run
from marl_flow.config import nearest
from marl_flow.datasets import catalog, native
from marl_flow.interfaces import UserError


@dataclass(frozen=True, kw_only=True)
class Method:
    """An algorithm in one setting, by the names that `marl-flow train` takes; `folder` is its part of a run's path."""

    folder: str
    algorithm: str
    preset: str
    settings: tuple[str, ...] = ()
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """Every method on every dataset, with every training seed.

    `more_seeds`, of a task id, replace `seeds` on its datasets. Methods that sample in steps are evaluated at the step
    counts `steps`; on the datasets and qualities named in `swept`, at `sweep`. `layout` is the path of a run below the
    campaign's folder.
    """

    about: str
    datasets: tuple[str, ...]
    methods: tuple[Method, ...]
    episodes: int
    steps: tuple[int, ...]
    sweep: tuple[int, ...] = ()
    swept: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    more_seeds: tuple[tuple[str, tuple[int, ...]], ...] = ()
    layout: str = "{dataset}/{method}-seed{seed}"


def _methods(*coflow_settings: str) -> tuple[Method, ...]:
    """CoFlow trained for each execution, and BC."""
    coflow = tuple(
        Method(
            folder=f"coflow-{execution}",
            algorithm="coflow",
            preset="compact",
            settings=(f"conditioning={execution}", *coflow_settings),
        )
        for execution in ("centralized", "decentralized")
    )
    return (*coflow, Method(folder="bc", algorithm="bc", preset="default"))


_MPE = tuple(
    f"mpe/{task}/{quality}"
    for task in ("simple_spread", "simple_tag", "simple_world")
    for quality in ("expert", "medium", "medium-replay", "random")
)
_SMAC = tuple(
    f"smac/{task}/{quality}" for task in ("3m", "2s3z", "5m_vs_6m", "8m") for quality in ("good", "medium", "poor")
)
_MAMUJOCO = tuple(
    f"mamujoco/{task}/{quality}" for task in ("2ant", "4ant", "2halfcheetah") for quality in ("good", "medium", "poor")
)
MAMUJOCO_SETTINGS = ("horizon=9", "history=18", "updates=1500")
"""Horizon and history of the paper, which counts 10 frames: the current one and 9 to come."""
_SMAC_SETTINGS = ("horizon=1", "updates=1500")
"""Chosen among horizons 1 and 4 and histories 0 and 3, on an earlier build of 3m/medium and on episodes that no
evaluation plays."""
CAMPAIGNS = {
    "mpe": Campaign(
        about="CoFlow (compact) and BC on the twelve native MPE datasets, each method at its preset's own budget",
        datasets=_MPE,
        methods=_methods(),
        episodes=200,
        steps=(1, 3),
        sweep=(1, 2, 3, 5, 10),
        swept=("expert",),
        more_seeds=(("mpe/simple_spread", (0, 1, 2)),),
    ),
    "smac": Campaign(
        about="CoFlow (compact, one planned step, 1,500 updates) and BC on the twelve native SMAC datasets",
        datasets=_SMAC,
        methods=_methods(*_SMAC_SETTINGS),
        episodes=100,
        steps=(1, 3),
        sweep=(1, 2, 3, 5, 10),
        swept=("smac/3m/good",),
    ),
    "mamujoco": Campaign(
        about="CoFlow (compact, the paper's horizon and history, 1,500 updates) and BC on the nine native MA-MuJoCo "
        "datasets",
        datasets=_MAMUJOCO,
        methods=_methods(*MAMUJOCO_SETTINGS),
        episodes=30,
        steps=(1,),
        sweep=(1, 2, 3, 5, 10),
        swept=("mamujoco/2ant/good",),
    ),
}


def find(name: str) -> Campaign:
    """The campaign of that name."""
    if name not in CAMPAIGNS:
        raise UserError(f"unknown campaign {name!r}; {nearest(name, CAMPAIGNS)}")
    return CAMPAIGNS[name]


def make_runs(campaign: Campaign, out: Path, device: str) -> list[tuple[Run, EvalConfig]]:
    """Every run of a campaign with its evaluation: the first seeds of all datasets come before the second ones, so
    that a campaign that is stopped early leaves a whole table."""
    more_seeds = dict(campaign.more_seeds)
    seeds_of = {name: more_seeds.get(name.rpartition("/")[0], campaign.seeds) for name in campaign.datasets}
    runs = []
    for index in range(max(map(len, seeds_of.values()))):
        for dataset, seeds in seeds_of.items():
            if index >= len(seeds):
                continue
            swept = dataset.rpartition("/")[2] in campaign.swept or dataset in campaign.swept
            steps = campaign.sweep if swept else campaign.steps
            evaluation = EvalConfig(steps=steps, episodes=campaign.episodes, device=device)
            for method in campaign.methods:
                path = campaign.layout.format(
                    dataset=dataset.replace("/", "_"), method=method.folder, seed=seeds[index]
                )
                run = train.make_run(
                    dataset,
                    method.algorithm,
                    folder=out / path,
                    preset=method.preset,
                    settings=method.settings,
                    seed=seeds[index],
                    device=device,
                )
                runs.append((run, evaluation))
    return runs


def _train_and_evaluate(run_and_evaluation: tuple[Run, EvalConfig]) -> list[str]:
    """Trains and evaluates one run, as far as that is not done yet; says in lines what came of it."""
    run, evaluation = run_and_evaluation
    trained = train.describe_training(train.train(run))
    results = evaluate.evaluate(run.folder, evaluation)
    return [trained, *([evaluate.describe(result, run.folder) for result in results] or ["evaluated before"])]


def run_campaign(
    campaign: Campaign, out: Path, *, device: str, print_fn: Callable[[str], object]
) -> tuple[Path, Sequence[TableRow]]:
    """Runs a whole campaign below `out`, reporting its progress line by line to `print_fn`; returns the path of the
    report and its rows."""
    training.checked_device(device)
    start, runs = time.perf_counter(), make_runs(campaign, out, device)
    print_fn(f"{campaign.about}: {len(runs)} runs, {campaign.episodes} evaluation episodes each, on {device}")
    for dataset in campaign.datasets:
        store = data.open_dataset(dataset)
        if difference := native.unlike_recipe(store):
            raise UserError(
                f"{store.dataset_id}: a campaign needs the dataset as its recipe makes it, found {difference}; rebuild "
                f"it with `marl-flow data build {dataset} --force`, or set MARL_FLOW_DATA to another folder"
            )
        mean = store.team_returns().mean()
        print_fn(f"{catalog.parse(dataset)}: {store.num_episodes:,} episodes, mean team return {mean:.1f}")
    processes = workers.workers_for(device, len(runs))
    for done, ((run, _), lines) in enumerate(workers.as_done(_train_and_evaluate, runs, processes), 1):
        print_fn(f"[{done} of {len(runs)}] {run.folder}: " + "; ".join(lines))
    path, rows = report.write([run.folder for run, _ in runs], out / "report")
    print_fn("")
    print_fn(report.overview(rows))
    print_fn("")
    print_fn(f"Done in {time.perf_counter() - start:.0f} s; report: {path}")
    return path, rows
