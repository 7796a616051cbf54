"""The command `marl-flow`. Parsing needs tyro alone: everything heavy is imported inside the command that uses it."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from marl_flow.cli_data import DatasetName, data

INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

app = tyro.extras.SubcommandApp()
app.command(data, name="data", help="Offline datasets: list, build, fetch, import, export, show and verify them.")

Device = Annotated[str, arg(metavar="DEVICE")]


@app.command(name="train")
def train(
    dataset: Positional[DatasetName],
    algorithm: Positional[Annotated[str, arg(metavar="ALGORITHM")]],
    settings: Positional[Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]")]] = (),
    /,
    *,
    preset: Annotated[str | None, arg(metavar="PRESET")] = None,
    seed: int = 0,
    device: Device = "cpu",
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    paper_config: Annotated[Literal["centralized", "decentralized"] | None, arg(metavar="EXECUTION")] = None,
    show_config: bool = False,
) -> int:
    """Trains an algorithm on a dataset; continues where it stopped when the folder holds the same run.

    Args:
        dataset: Dataset id, e.g. mpe/simple_spread/expert; a native one that is absent is built first.
        algorithm: coflow, bc, ma_td3_bc or random.
        settings: Settings of the algorithm or of training, as width=128 or --width 128. Which there are, with their
            values and meanings: marl-flow train DATASET ALGORITHM --show-config
        preset: A preset of the algorithm; without it the algorithm's first.
        seed: Seed of weights, batches and noise.
        device: cpu, cuda or cuda:1.
        out: Run folder; without it runs/<dataset>/<algorithm>-<preset>-seed<seed>.
        paper_config: Start from the settings that the CoFlow paper has for this dataset in this execution.
        show_config: Print every setting of the algorithm and of training, its value and its meaning; train nothing.
    """
    from marl_flow.commands import train as runs

    run = runs.make_run(
        dataset,
        algorithm,
        folder=out,
        preset=preset,
        settings=settings,
        seed=seed,
        device=device,
        paper_config=paper_config,
    )
    if show_config:
        print(runs.describe_settings(run))
        return 0
    print(f"{run.algorithm} ({run.preset}) on {run.dataset_id}, seed {seed}, into {run.folder}")
    print(runs.describe_training(runs.train(run)))
    print(f"next: marl-flow eval {run.folder}")
    return 0


@app.command(name="eval")
def evaluate(
    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]")]],
    /,
    *,
    k: Annotated[tuple[int, ...], arg(metavar="K [K ...]")] = (1, 2, 3, 5, 10),
    actions_per_plan: Annotated[tuple[int, ...], arg(metavar="M [M ...]")] = (1,),
    episodes: int = 100,
    execution: Annotated[tuple[Literal["centralized", "decentralized"], ...], arg(metavar="EXECUTION [...]")] = (),
    target: str = "quantile:0.9",
    gate_scale: float = 1.0,
    device: Device = "cpu",
    gif: bool = False,
    again: bool = False,
) -> int:
    """Plays evaluation episodes with trained runs and adds the results to them; what is there already is skipped, and
    an evaluation that was killed continues.

    Args:
        runs: Run folders, or checkpoint files inside one.
        k: Numbers of sampling steps, of methods that sample in steps.
        actions_per_plan: Numbers of actions executed per plan, up to the run's horizon, of methods that sample in
            steps; 1, as in the paper, plans anew for every action.
        episodes: How many episodes; the same ones for every method, execution and step count.
        execution: Executions; without it, all the run was trained for.
        target: Return asked for, of return-conditioned methods. quantile:0.9 of the training data's returns;
            constant:0.9*700; raw:500; or paper, its constant for this dataset.
        gate_scale: Multiplies every attention gate; 0 cuts the agents off from each other inside the network.
        device: cpu, cuda or cuda:1.
        gif: Also write a rollout_*.gif of the first episode.
        again: Play and add results that are there already, from the first episode on.
    """
    from marl_flow.commands.evaluate import EvalConfig, describe
    from marl_flow.commands.evaluate import evaluate as evaluate_run
    from marl_flow.interfaces import UserError

    if not runs:
        raise UserError("name at least one run folder, e.g. marl-flow eval runs/...")
    asked = EvalConfig(
        steps=k,
        actions_per_plan=actions_per_plan,
        episodes=episodes,
        executions=execution,
        target=target,
        gate_scale=gate_scale,
        device=device,
    )
    for folder in runs:
        for result in evaluate_run(folder, asked, gif=gif, again=again):
            print(describe(result))
    print(f"next: marl-flow report {' '.join(map(str, runs))}")
    return 0


@app.command(name="report")
def report(
    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]")]], /, *, out: Path = Path("runs/report")
) -> int:
    """Writes tables, plots and rollouts of evaluated runs, beside what was published.

    Args:
        runs: Run folders, or folders that hold some.
        out: Folder of the report; a former report there is replaced, nothing else is.
    """
    from marl_flow.benchmarks import report as reports
    from marl_flow.interfaces import UserError

    if not runs:
        raise UserError("name at least one run folder, e.g. marl-flow report runs")
    written, rows = reports.write(runs, out)
    print(reports.summary(rows))
    print(f"report: {written}")
    return 0


@app.command(name="quickstart")
def quickstart(
    *, out: Path = Path("runs/quickstart"), seed: int = 0, episodes: int = 100, device: Device = "cpu"
) -> int:
    """From nothing to a results table in minutes; started again, it continues where it stopped.

    Args:
        out: Folder of the runs and the report.
        seed: Training seed.
        episodes: Evaluation episodes per method, execution and step count.
        device: cpu, cuda or cuda:1.
    """
    from marl_flow.commands.quickstart import quickstart as run_quickstart

    run_quickstart(out, seed=seed, episodes=episodes, device=device, print_fn=print)
    return 0


@app.command(name="campaign")
def campaign(
    name: Positional[Annotated[str, arg(metavar="NAME")]],
    /,
    *,
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    device: Device = "cpu",
) -> int:
    """Runs a fixed table of methods on datasets: builds, trains, evaluates, reports; started again, it continues.

    Args:
        name: mpe (CoFlow and BC on the twelve native MPE datasets).
        out: Folder of the runs and the report; without it runs/<name>.
        device: cpu, cuda or cuda:1.
    """
    from marl_flow.benchmarks import campaign as campaigns

    campaigns.run_campaign(campaigns.find(name), out or Path("runs") / name, device=device, print_fn=print)
    return 0


@app.command(name="doctor")
def doctor() -> int:
    """Looks at Python, libraries, devices, disk, data and optional simulators; says what is wrong and what to do."""
    from marl_flow.commands import doctor as checks

    found = list(checks.findings())
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        mark = {"ok": "ok     ", "absent": "-      ", "problem": "PROBLEM"}[finding.level]
        print(f"{mark}  {finding.subject:<{width}}  {finding.found}")
        if finding.todo:
            print(f"{'':9}{'':<{width}}  -> {finding.todo}")
    problems = sum(finding.level == "problem" for finding in found)
    print(f"{problems} problems" if problems != 1 else "1 problem", end=".\n")
    return 1 if problems else 0


def with_settings(arguments: Sequence[str]) -> list[str]:
    """Arguments of `train` with every flag it does not know written as a setting: `--width 128` becomes `width=128`.

    A flag without a value is switched on; `--no-amp` switches it off.
    """
    if not arguments or arguments[0] != "train":
        return list(arguments)
    takes_value = {"preset", "seed", "device", "out", "paper_config"}
    switches = {"help", "show_config"}
    kept: list[str] = ["train"]
    settings: list[str] = []
    rest = list(arguments[1:])
    while rest:
        token = rest.pop(0)
        name, equals, value = token.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not token.startswith("--"):
            (settings if equals and not token.startswith("-") else kept).append(token)
        elif name in takes_value | switches:
            kept.append(token)
            if name in takes_value and not equals and rest:
                kept.append(rest.pop(0))
        elif equals:
            settings.append(f"{name}={value}")
        elif rest and not rest[0].startswith("--") and "=" not in rest[0]:
            settings.append(f"{name}={rest.pop(0)}")
        else:
            settings.append(f"{name.removeprefix('no_')}={'false' if name.startswith('no_') else 'true'}")
    return kept + settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 a fault of ours, 2 bad input, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    description = (
        "Offline multi-agent reinforcement learning: datasets, CoFlow and baselines, one evaluation, one table."
    )
    config = (tyro.conf.FlagCreatePairsOff,)
    try:
        return app.cli(prog="marl-flow", description=description, args=with_settings(given), config=config) or 0
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues where it stopped", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from marl_flow.interfaces import UserError

        if isinstance(error, UserError):
            stopped = type(error).__name__ == "TrainingStopped"
            return _fail(str(error), INTERRUPTED if stopped else 2)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return _fail(
                f"cannot write {error.filename or 'a file'}: {error.strerror}; free space or choose another", 2
            )
        traceback.print_exc()
        return _fail(f"this is a bug in marl_flow ({type(error).__name__}); please report it with the lines above", 1)


def _fail(message: str, code: int) -> int:
    print(f"marl-flow: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
