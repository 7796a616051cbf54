"""The command `marl-flow`. Parsing needs tyro alone: everything heavy is imported inside the command that uses it."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, arg

import marl_flow
from marl_flow.cli_data import BadPath, DatasetName, UserPath, data, for_each

if TYPE_CHECKING:
    from marl_flow.interfaces import EvaluationResult

INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

app = tyro.extras.SubcommandApp()
app.command(data, name="data", help="Offline datasets: list, build, fetch, import, export, show and verify them.")

Device = Annotated[str, arg(metavar="DEVICE")]
Task = Annotated[str | None, arg(metavar="MODULE:FACTORY", help_behavior_hint="")]


@app.command(name="train")
def train(
    dataset: Positional[DatasetName],
    algorithm: Positional[Annotated[str, arg(metavar="ALGORITHM")]],
    settings: Positional[Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]", help_behavior_hint="")]] = (),
    /,
    *,
    preset: Annotated[str | None, arg(metavar="PRESET", help_behavior_hint="")] = None,
    seed: int = 0,
    device: Device = "cpu",
    out: Annotated[UserPath | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    paper_settings: Annotated[
        Literal["centralized", "decentralized"] | None, arg(metavar="EXECUTION", help_behavior_hint="")
    ] = None,
    task: Task = None,
    show_config: bool = False,
) -> int:
    """Trains an algorithm on a dataset; continues where it stopped when the folder holds the same run.

    Args:
        dataset: Dataset id, e.g. mpe/simple_spread/expert; a native one that is absent is built first.
        algorithm: coflow, bc, ma_td3_bc or random; the name of a method that an installed package brings; or
            module:Class, a method of your own that Python finds in the current folder or among what is installed.
        settings: Settings of the algorithm or of training, as width=128 or --width 128. All settings, with their
            values and meanings: marl-flow train DATASET ALGORITHM --show-config
        preset: A preset of the algorithm; by default its first.
        seed: Seed of the initial weights, the batches and the noise.
        device: cpu, cuda or cuda:1.
        out: Folder of the run; by default runs/<dataset>/<algorithm>-<preset>-seed<seed>.
        paper_settings: Start from the settings that the CoFlow paper has for this dataset in this execution.
        task: The environment of the dataset's task, where the task is your own: a function that makes it.
        show_config: Print every setting of the algorithm and of training, its value and its meaning; train nothing.
    """
    from marl_flow.commands import train as runs

    _load_task(task, dataset)
    run = runs.make_run(
        dataset,
        algorithm,
        folder=out,
        preset=preset,
        settings=settings,
        seed=seed,
        device=device,
        paper_settings=paper_settings,
    )
    if show_config:
        print(runs.describe_settings(run))
        return 0
    print(f"{run.algorithm} ({run.preset}) on {run.dataset_id}, seed {seed}, into {run.folder}")
    print(runs.describe_training(runs.train(run)))
    print(shlex.join(["next:", "marl-flow", "eval", str(run.folder), *(["--task", task] if task else [])]))
    return 0


@app.command(name="eval")
def evaluate(
    runs: Positional[Annotated[tuple[UserPath, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]],
    /,
    *,
    k: Annotated[tuple[int, ...], arg(metavar="K [K ...]")] = (1, 2, 3, 5, 10),
    actions_per_plan: Annotated[tuple[int, ...], arg(metavar="M [M ...]")] = (1,),
    episodes: int = 100,
    execution: Annotated[
        tuple[Literal["centralized", "decentralized"], ...], arg(metavar="EXECUTION [...]", help_behavior_hint="")
    ] = (),
    target: str = "quantile:0.9",
    gate_scale: float = 1.0,
    device: Device = "cpu",
    task: Task = None,
    gif: bool = False,
    again: bool = False,
) -> int:
    """Plays evaluation episodes with trained runs and adds the results to their folders. Results that are there
    already are printed and not played again, and an evaluation that was killed continues.

    Args:
        runs: Run folders, or checkpoint files inside one.
        k: Numbers of sampling steps, for methods that sample in steps.
        actions_per_plan: Numbers of actions executed per plan, up to the run's horizon, for methods that sample in
            steps; 1, as in the paper, makes a new plan for every action.
        episodes: Number of episodes; the same ones for every method, execution and number of steps.
        execution: Executions; by default all that the run was trained for.
        target: The return to reach, for return-conditioned methods: quantile:0.9 of the returns in the training data,
            constant:0.9*700, raw:500, or paper, the paper's constant for this dataset.
        gate_scale: Multiplies every attention gate; at 0 the agents do not see each other inside the network.
        device: cpu, cuda or cuda:1.
        task: The environment to play in, where the task is your own: a function that makes it.
        gif: Also write a rollout_*.gif of the first episode.
        again: Repeat evaluations whose results are there already, and add the new results.
    """
    from marl_flow.commands.evaluate import EvalConfig, describe, run_folder
    from marl_flow.commands.evaluate import evaluate as evaluate_run
    from marl_flow.interfaces import UserError

    if not runs:
        raise UserError("name at least one run folder, e.g. marl-flow eval runs/...")
    _load_task(task)
    config = EvalConfig(
        steps=k,
        actions_per_plan=actions_per_plan,
        episodes=episodes,
        executions=execution,
        target=target,
        gate_scale=gate_scale,
        device=device,
    )
    evaluated: list[str] = []

    def evaluate_one(run: Path) -> None:
        def show_present(result: EvaluationResult) -> None:
            print(describe(result, run, already=True))

        for result in evaluate_run(run, config, gif=gif, again=again, progress=True, on_present=show_present):
            print(describe(result, run))
        evaluated.append(str(run_folder(run)))

    try:
        for_each(runs, evaluate_one)
    finally:
        if evaluated:
            print(shlex.join(["next:", "marl-flow", "report", *dict.fromkeys(evaluated)]))
    return 0


@app.command(name="report")
def report(
    runs: Positional[Annotated[tuple[UserPath, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]],
    /,
    *,
    out: UserPath = Path("runs/report"),
) -> int:
    """Writes tables, plots and rollouts of evaluated runs, beside the published results.

    Args:
        runs: Run folders, or folders that hold some.
        out: Folder of the report. An older report there is replaced; a folder that holds anything else is refused.
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
    *, out: UserPath = Path("runs/quickstart"), seed: int = 0, episodes: int = 100, device: Device = "cpu"
) -> int:
    """From nothing to a results table in minutes: five methods on one small dataset. Started again, it continues
    where it stopped.

    Args:
        out: Folder of the runs and the report.
        seed: Training seed.
        episodes: Evaluation episodes per method, execution and number of sampling steps.
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
    out: Annotated[UserPath | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    device: Device = "cpu",
) -> int:
    """Runs a fixed table of methods on datasets: builds, trains, evaluates and reports. Started again, it continues
    where it stopped.

    Args:
        name: mpe, smac or mamujoco: CoFlow and BC on the native datasets of that suite.
        out: Folder of the runs and the report; by default runs/<name>.
        device: cpu, cuda or cuda:1.
    """
    from marl_flow.benchmarks import campaign as campaigns

    campaigns.run_campaign(campaigns.find(name), out or Path("runs") / name, device=device, print_fn=print)
    return 0


@app.command(name="doctor")
def doctor() -> int:
    """Checks Python, libraries, devices, disk, data and optional simulators; says what is wrong and how to fix it."""
    from marl_flow.commands import doctor as checks

    findings = list(checks.findings())
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = {"ok": "ok     ", "absent": "-      ", "problem": "PROBLEM"}[finding.level]
        print(f"{mark}  {finding.subject:<{width}}  {finding.message}")
        if finding.advice:
            print(f"{'':9}{'':<{width}}  -> {finding.advice}")
    problems = sum(finding.level == "problem" for finding in findings)
    print(f"{problems} problems" if problems != 1 else "1 problem", end=".\n")
    return 1 if problems else 0


def _load_task(task: str | None, dataset: str | None = None) -> None:
    """Registers the environment of a task that is not the suite's own, which must be the dataset's."""
    if task is not None:
        from marl_flow import envs
        from marl_flow.datasets import catalog
        from marl_flow.interfaces import UserError

        task_id = envs.load_factory(task)
        if dataset is not None and (wanted := catalog.parse(dataset).task_id) != task_id:
            raise UserError(
                f"--task {task} makes {task_id}, but {dataset} is of {wanted}; name the factory of that task"
            )


def with_settings(arguments: Sequence[str]) -> list[str]:
    """Arguments of `train` with every flag it does not know written as a setting: `--width 128` becomes `width=128`.

    A flag of a setting that is true or false takes no value: `--amp` sets it, `--no-amp` unsets it. tyro's own
    `return_unknown_args` would not do: it returns loose words, without telling values from switches.
    """
    if not arguments or arguments[0] != "train" or {"-h", "--help"} & set(arguments):
        return list(arguments)
    takes_value = {"preset", "seed", "device", "out", "paper_settings", "task"}
    booleans: set[str] | None = None
    kept: list[str] = ["train"]
    settings: list[str] = []
    rest = list(arguments[1:])
    while rest:
        token = rest.pop(0)
        name, equals, value = token.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not token.startswith("--"):
            (settings if equals and not token.startswith("-") else kept).append(token)
        elif name in takes_value or name == "show_config":
            kept.append(token)
            if name in takes_value and not equals and rest:
                kept.append(rest.pop(0))
        elif equals:
            settings.append(f"{name}={value}")
        else:
            if booleans is None:  # what is true or false is known to the methods' own modules
                from marl_flow.commands.train import boolean_settings
                from marl_flow.config import SWITCH_WORDS

                booleans = boolean_settings(
                    [word for word in arguments[1:] if not word.startswith("-") and "=" not in word]
                )
            switch = name.removeprefix("no_") if name.removeprefix("no_") in booleans else None
            if switch is not None and not (rest and rest[0].lower() in SWITCH_WORDS):
                settings.append(f"{switch}={'true' if switch == name else 'false'}")
            elif rest and not rest[0].startswith("--"):
                settings.append(f"{name}={rest.pop(0)}")
            else:
                settings.append(name)  # refused as a setting without a value
    return kept + settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 a fault of ours, 2 bad input, 130 interrupted."""
    _prepare_streams()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"marl-flow {marl_flow.__version__}")
        return 0
    if str(Path.cwd()) not in sys.path:  # module:Class and module:factory may name files in the current folder
        sys.path.append(str(Path.cwd()))
    description = (
        "Offline multi-agent reinforcement learning: datasets, CoFlow and baselines, one evaluation, one table. "
        "`marl-flow COMMAND --help` explains a command, `marl-flow --version` prints the version."
    )
    config = (tyro.conf.FlagCreatePairsOff,)
    try:
        try:
            _require_command(words)
            return app.cli(prog="marl-flow", description=description, args=with_settings(words), config=config) or 0
        finally:
            sys.stdout.flush()  # here, where a reader that has gone or a full disk is no traceback
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues where it stopped", INTERRUPTED)
    except BadPath as error:
        return _fail(str(error), 2)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        _discard_output()
        return 0
    except Exception as error:
        from marl_flow.interfaces import ContractError, UserError

        if isinstance(error, UserError | ContractError):
            stopped = type(error).__name__ == "TrainingStopped"
            return _fail(str(error), INTERRUPTED if stopped else 2)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            if error.filename is None:
                _discard_output()  # it may be the one that cannot be written; a second try at the end would fail too
            return _fail(
                f"cannot write {error.filename or 'a file'}: {error.strerror}; free some space or choose another place",
                2,
            )
        traceback.print_exc()
        if place := _foreign_place(error):
            return _fail(f"{type(error).__name__} in {place}, which is not marl_flow's; see the lines above", 1)
        return _fail(f"this is a bug in marl_flow ({type(error).__name__}); please report it with the lines above", 1)


def _foreign_place(error: Exception) -> str | None:
    """File and line where code raised that is neither ours nor an installed library's; None where there is none."""
    package = Path(__file__).resolve().parent
    ours = {package, *((package / name).resolve() for name in ("envs", "datasets", "baselines", "benchmarks"))}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        if ours & set(file.parents):
            return None
        library = "site-packages" in file.parts or str(file).startswith(sys.base_prefix)
        if not library and not frame.filename.startswith("<"):
            return f"{frame.filename}, line {frame.lineno}"
    return None


def _require_command(words: Sequence[str]) -> None:
    """Raises for a command that does not exist, with those most like it; tyro lists them all."""
    commands = app
    for depth, word in enumerate(words):
        known = commands._subcommands
        if word.startswith("-"):
            return
        if word not in known:
            from marl_flow.config import nearest
            from marl_flow.interfaces import UserError

            raise UserError(f"unknown command {shlex.join(words[: depth + 1])}; {nearest(word, known)}")
        target = known[word].target
        if not isinstance(target, tyro.extras.SubcommandApp):
            return
        commands = target


def _prepare_streams() -> None:
    """Output never fails for a character that the terminal lacks (it shows another one) or for a stream that is closed;
    NO_COLOR (no-color.org) is heeded."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (stays open)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        tyro._experimental_options["utf8_boxes"] = False
    if os.environ.get("NO_COLOR"):
        tyro._experimental_options["ansi_codes"] = False


def _discard_output() -> None:
    """Sends what is still to be written to standard output nowhere."""
    with contextlib.suppress(OSError):  # it may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    print(f"marl-flow: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
