"""Evaluation of run folders: which episodes to play, in which ways of acting, and what is there already."""

from __future__ import annotations

import hashlib
import itertools
import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from marl_flow import baselines, checkpoint, evaluation, run_log, seeding, training
from marl_flow.algorithm import Algorithm
from marl_flow.checkpoint import Header
from marl_flow.commands.opponents import environment
from marl_flow.commands.targets import target_return
from marl_flow.config import digest
from marl_flow.files import atomic_file
from marl_flow.interfaces import EXECUTIONS, ActingConfig, EvaluationResult, Execution, UserError
from marl_flow.run_folder import CHECKPOINT_NAME, CONFIG, environment_info
from marl_flow.run_log import BlockLog

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to evaluate of a run. `executions` empty: every one it was trained for. `target`: see `target_return`.

    `steps` and `actions_per_plan`, in all combinations, are for methods that sample in steps.
    """

    steps: tuple[int, ...] = (1, 2, 3, 5, 10)
    actions_per_plan: tuple[int, ...] = (1,)
    episodes: int = 100
    executions: tuple[Execution, ...] = ()
    target: str = "quantile:0.9"
    gate_scale: float = 1.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, counts in (("k", self.steps), ("actions-per-plan", self.actions_per_plan)):
            if not counts or min(counts) < 1 or len(set(counts)) != len(counts):
                raise UserError(f"{name}: expected different numbers of at least 1, got {counts}")
        if not 0.0 <= self.gate_scale <= 1.0:
            raise UserError(f"gate-scale: expected a number from 0 to 1, got {self.gate_scale}")


def evaluate(
    run: Path,
    config: EvalConfig,
    *,
    gif: bool = False,
    again: bool = False,
    progress: bool = False,
    on_present: Callable[[EvaluationResult], object] | None = None,
) -> list[EvaluationResult]:
    """Evaluates a run folder, or a checkpoint file in one, and appends the results to those of the run.

    Returns the new results. What the run holds already is skipped unless `again`: results, and the finished blocks of
    episodes of an evaluation that was killed. on_present: called with every requested result that was there already,
    which otherwise are counted in the log.
    """
    device = training.checked_device(config.device)
    seeds = evaluation.evaluation_seeds(config.episodes)
    file, folder = locate(run)
    algorithm, header = checkpoint.load_algorithm(file, baselines.get, device=device)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{run}: expected a run folder, or a checkpoint file in one; {folder} has no {CONFIG}")
    protocol = protocol_of(header, is_file=run.is_file())
    requests = requests_of(algorithm, header, folder, config)
    device_type, model = evaluation.machine(algorithm)
    made_by = (_sha256(file), evaluation.block_rows(algorithm.spec.max_steps), model, environment_info())
    done = {} if again else {_key(result): result for result in run_log.read_results(folder)}
    results = []
    for rule in dict.fromkeys(rule for rule, _ in requests):
        same_rule = [acting for other, acting in requests if other == rule]
        missing: dict[ActingConfig, BlockLog] = {}
        for acting in same_rule:
            key = _request_key(header, acting, rule, protocol, seeds, device_type)
            blocks = BlockLog(folder, digest(key, *made_by))
            if again or key in done:
                blocks.remove()
            if key not in done:
                missing[acting] = blocks
            elif on_present is not None:
                on_present(done[key])
        if len(missing) < len(same_rule) and on_present is None:
            present = len(same_rule) - len(missing)
            log.info("%s: %d of %d evaluations are there already", folder, present, len(same_rule))
        if unfinished := sum(blocks.path.exists() for blocks in missing.values()):
            log.info("%s: %d evaluations continue after their last finished block", folder, unfinished)
        if missing:
            new = evaluation.evaluate(
                algorithm,
                header,
                lambda rows: environment(algorithm.spec, rows, device),
                list(missing),
                seeds=seeds,
                protocol=protocol,
                target_rule=rule,
                logs=list(missing.values()),
                progress=progress,
            )
            run_log.append_results(folder, new)
            for blocks in missing.values():
                blocks.remove()
            results += new
    if gif:
        for acting in {acting.execution: acting for _, acting in reversed(requests)}.values():
            path = folder / rollout_name(acting)
            if results or not path.exists():
                write_rollout(algorithm, acting, path, seeds[0], device)
    return results


def locate(run: Path) -> tuple[Path, Path]:
    """The checkpoint file that a run folder, or the name of a checkpoint file, stands for, and its run folder."""
    if run.is_dir():
        inside = sorted(path.name for path in run.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))
        if inside:
            raise UserError(
                f"{run} holds the checkpoints of a run; name the run folder, {shlex.quote(str(run.parent))}, or one of "
                f"them, such as {shlex.quote(str(run / inside[-1]))}"
            )
        return checkpoint.latest(run) or run, run
    return run, run.resolve().parent.parent


def run_folder(run: Path) -> Path:
    """The run folder of what `locate` takes, as one would type it."""
    folder = locate(run)[1]
    typed = run.parent.parent
    return typed if not run.is_dir() and typed.resolve() == folder else folder


def protocol_of(header: Header, *, is_file: bool) -> str:
    """How the checkpoint was chosen, in words that go with every number."""
    budget = header.run.training["updates"]
    if header.update < budget:
        return f"update {header.update} of {budget}"
    return "named checkpoint" if is_file else "last checkpoint"


def requests_of(
    algorithm: Algorithm, header: Header, run_folder: Path, config: EvalConfig
) -> list[tuple[str, ActingConfig]]:
    """Every requested (target rule, way of acting) that the algorithm can honestly be evaluated in."""
    impossible = [name for name in config.executions if name not in algorithm.executions]
    if impossible:
        raise UserError(
            f"this {algorithm.name} run was trained for {' and '.join(algorithm.executions)} execution, not for "
            f"{impossible[0]}; leave --execution out, or train a run for it"
        )
    requests = []
    for execution in EXECUTIONS:
        if execution not in (config.executions or algorithm.executions):
            continue
        rule, target = "none", None
        if algorithm.return_conditioned:
            rule, target = target_return(config.target, algorithm, header, run_folder, execution)
        acting = ActingConfig(execution=execution, target_return=target, gate_scale=config.gate_scale)
        if not algorithm.samples_in_steps:
            requests.append((rule, acting))
            continue
        for count, steps in itertools.product(config.actions_per_plan, config.steps):
            requests.append((rule, replace(acting, num_sampling_steps=steps, actions_per_plan=count)))
    return requests


def _key(result: EvaluationResult) -> tuple[Any, ...]:
    """What makes two results the same evaluation."""
    return (
        *(result.config_digest, result.dataset_id, result.dataset_digest, result.training_seed, result.update),
        *(result.protocol, result.execution, result.num_sampling_steps, result.target_rule, result.target_return),
        *(result.gate_scale, result.actions_per_plan, result.seeds, result.device),
    )


def _request_key(
    header: Header, acting: ActingConfig, rule: str, protocol: str, seeds: Sequence[int], device: str
) -> tuple[Any, ...]:
    """The `_key` of the result that a request leads to."""
    run = header.run
    return (
        *(run.config_digest, run.dataset_id, run.dataset_digest, run.training["seed"], header.update),
        *(protocol, acting.execution, acting.num_sampling_steps, rule, acting.target_return),
        *(acting.gate_scale, acting.actions_per_plan, tuple(seeds), device),
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def rollout_name(acting: ActingConfig) -> str:
    """File name of an animated picture of one way of acting."""
    steps = f"_k{acting.num_sampling_steps}" if acting.num_sampling_steps else ""
    actions = f"_m{acting.actions_per_plan}" if acting.actions_per_plan != 1 else ""
    gates = f"_gates{acting.gate_scale:g}" if acting.gate_scale != 1.0 else ""
    return f"rollout_{acting.execution}{steps}{actions}{gates}.gif"


def write_rollout(algorithm: Algorithm, acting: ActingConfig, path: Path, seed: int, device: torch.device) -> None:
    """An animated picture of one episode, 10 frames a second, the last one held."""
    from PIL import Image

    env = environment(algorithm.spec, 1, device)
    pictures = evaluation.rollout_frames(algorithm.policy(acting), env, seed, seeding.generator(0, "rollout"))
    frames = [Image.fromarray(picture) for picture in pictures]
    durations = [*itertools.repeat(100, len(frames) - 1), 1500]
    with atomic_file(path) as file:
        frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def describe(result: EvaluationResult, run: Path, *, already: bool = False) -> str:
    """One line about a result of a run for a terminal; already: it was there before this evaluation."""
    mean = sum(result.team_returns) / len(result.team_returns)
    acting = f", {result.execution}"
    acting += f" k {result.num_sampling_steps}" if result.num_sampling_steps else ""
    acting += f" m {result.actions_per_plan}" if result.actions_per_plan != 1 else ""
    played = len(result.seeds)
    wins = "" if result.won is None else f", won {sum(result.won)} of {played} ({100 * sum(result.won) / played:.0f} %)"
    return (
        f"{run}: {result.algorithm} seed {result.training_seed} on {result.dataset_id}{acting}: return {mean:.1f} over "
        f"{played} episodes{wins}, {result.latency_ms_p50:.2f} ms a decision" + (" (there already)" if already else "")
    )
