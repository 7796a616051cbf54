"""A fixed table of runs as one command: data, training, evaluation, report; whatever is finished is kept.

The table says what is compared and at which budget; nothing in it is chosen per dataset. Started again after a kill,
the same command continues: training from its last checkpoint, evaluation at the blocks of episodes that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from marl_flow import training
from marl_flow.benchmarks import report
from marl_flow.benchmarks.results import Row
from marl_flow.commands import data, evaluate
from marl_flow.commands import train as making
from marl_flow.commands import workers as pool
from marl_flow.config import nearest
from marl_flow.datasets import catalog, native
from marl_flow.interfaces import UserError


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A method in one setting, by the names of `marl-flow train`."""

    folder: str
    algorithm: str
    preset: str
    settings: tuple[str, ...] = ()
    samples_in_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """Every entrant on every dataset.

    Training seeds are 0, 1, ... below `seeds`, or below the number that `more_seeds` gives to a task. Methods that
    sample in steps are evaluated at `steps`, on the datasets and qualities in `swept` at `sweep`.
    """

    about: str
    datasets: tuple[str, ...]
    entrants: tuple[Entrant, ...]
    episodes: int
    steps: tuple[int, ...]
    sweep: tuple[int, ...]
    swept: tuple[str, ...]
    seeds: int = 1
    more_seeds: tuple[tuple[str, int], ...] = ()


def _entrants(*coflow_settings: str) -> tuple[Entrant, ...]:
    """CoFlow trained for each execution, and BC."""
    coflow = tuple(
        Entrant(
            folder=f"coflow-{execution}",
            algorithm="coflow",
            preset="compact",
            settings=(f"conditioning={execution}", *coflow_settings),
            samples_in_steps=True,
        )
        for execution in ("centralized", "decentralized")
    )
    return (*coflow, Entrant(folder="bc", algorithm="bc", preset="default"))


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
"""Horizon and history are the paper's, which counts the present frame among 10."""
_SMAC_SETTINGS = ("horizon=1", "updates=1500")
"""Chosen among horizons 1 and 4 and histories 0 and 3 on an earlier 3m/medium, on episodes that no evaluation uses."""
CAMPAIGNS = {
    "mpe": Campaign(
        about="CoFlow (compact) and BC on the twelve native MPE datasets, each method at its preset's own budget",
        datasets=_MPE,
        entrants=_entrants(),
        episodes=200,
        steps=(1, 3),
        sweep=(1, 2, 3, 5, 10),
        swept=("expert",),
        more_seeds=(("mpe/simple_spread", 3),),
    ),
    "smac": Campaign(
        about="CoFlow (compact, one planned step, 1,500 updates) and BC on the twelve native SMAC datasets",
        datasets=_SMAC,
        entrants=_entrants(*_SMAC_SETTINGS),
        episodes=100,
        steps=(1, 3),
        sweep=(1, 2, 3, 5, 10),
        swept=("smac/3m/good",),
    ),
    "mamujoco": Campaign(
        about="CoFlow (compact, the paper's horizon and history, 1,500 updates) and BC on the nine native MA-MuJoCo "
        "datasets",
        datasets=_MAMUJOCO,
        entrants=_entrants(*MAMUJOCO_SETTINGS),
        episodes=30,
        steps=(1,),
        sweep=(1, 2, 3, 5, 10),
        swept=("mamujoco/2ant/good",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run folder to train and evaluate."""

    dataset: str
    entrant: Entrant
    seed: int
    folder: Path
    steps: tuple[int, ...]
    episodes: int
    device: str


def find(name: str) -> Campaign:
    if name not in CAMPAIGNS:
        raise UserError(f"unknown campaign {name!r}; {nearest(name, CAMPAIGNS)}")
    return CAMPAIGNS[name]


def jobs(campaign: Campaign, out: Path, device: str) -> list[Job]:
    """Every job of a campaign: first seeds of all datasets before second ones, so that an early stop leaves a table."""
    found = []
    most = max([campaign.seeds, *(count for _, count in campaign.more_seeds)])
    for seed in range(most):
        for dataset in campaign.datasets:
            task, _, quality = dataset.rpartition("/")
            if seed >= dict(campaign.more_seeds).get(task, campaign.seeds):
                continue
            swept = quality in campaign.swept or dataset in campaign.swept
            steps = campaign.sweep if swept else campaign.steps
            for entrant in campaign.entrants:
                folder = out / dataset.replace("/", "_") / f"{entrant.folder}-seed{seed}"
                found.append(
                    Job(
                        dataset=dataset,
                        entrant=entrant,
                        seed=seed,
                        folder=folder,
                        steps=steps if entrant.samples_in_steps else campaign.steps,
                        episodes=campaign.episodes,
                        device=device,
                    )
                )
    return found


def work(job: Job) -> list[str]:
    """Trains and evaluates one job as far as that is not done; what it came to, in lines."""
    entrant = job.entrant
    plan = making.plan(
        job.dataset,
        entrant.algorithm,
        preset=entrant.preset,
        settings=entrant.settings,
        seed=job.seed,
        device=job.device,
    )
    trained = making.describe_training(making.train(plan, job.folder))
    asked = evaluate.EvalConfig(steps=job.steps, episodes=job.episodes, device=job.device)
    results = evaluate.evaluate(job.folder, asked)
    return [trained, *(map(evaluate.describe, results) if results else ["evaluated before"])]


def run(campaign: Campaign, out: Path, *, device: str, say: Callable[[str], object]) -> tuple[Path, Sequence[Row]]:
    """Runs a whole campaign under `out`, telling `say` about it line by line; returns the report and its rows."""
    training.checked_device(device)
    begun, todo = time.perf_counter(), jobs(campaign, out, device)
    say(f"{campaign.about}: {len(todo)} runs, {campaign.episodes} evaluation episodes each, on {device}")
    for dataset in campaign.datasets:
        store = data.open_dataset(dataset)
        if unlike := native.unlike_recipe(store):
            raise UserError(
                f"{store.dataset_id}: a campaign compares what its recipe makes, found {unlike}; rebuild it with "
                f"`marl-flow data build {dataset} --force`, or set MARL_FLOW_DATA to another folder"
            )
        say(f"{catalog.parse(dataset)}: {store.num_episodes:,} episodes, mean {store.team_returns().mean():.1f}")
    workers = pool.workers_for(device, len(todo))
    for done, (job, lines) in enumerate(pool.as_done(work, todo, workers), 1):
        say(f"[{done} of {len(todo)}] {job.folder}: " + "; ".join(lines))
    path, rows = report.write([job.folder for job in todo], out / "report")
    say("")
    say(report.overview(rows))
    say("")
    say(f"Done in {time.perf_counter() - begun:.0f} s; report: {path}")
    return path, rows
