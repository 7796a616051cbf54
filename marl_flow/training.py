"""The one training loop: draw, update, log, checkpoint, resume; for every `Algorithm`.

Everything an update depends on is in the checkpoint, so that on a CPU a run that was killed and continued has the same
bits as one that never stopped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from marl_flow import checkpoint as checkpoints
from marl_flow import seeding
from marl_flow.algorithm import Algorithm, reference
from marl_flow.checkpoint import Checkpoint, Header, require_reloadable, restore
from marl_flow.config import digest, to_json
from marl_flow.interfaces import Batch, Metrics, TaskSpec, UserError, WindowSpec
from marl_flow.normalize import Normalizers
from marl_flow.progress import Bar, progress_bar
from marl_flow.run_folder import (
    RunRecord,
    lock,
    read_config,
    remove_unfinished,
    require_same_run,
    warn_of_other_threads,
    write_config,
)
from marl_flow.run_log import MetricsLog

log = logging.getLogger(__name__)

CXX = "clang++" if sys.platform == "darwin" else "g++"
"""The C++ compiler that `torch.compile` uses, unless the variable of this name names another."""


class TrainingStopped(UserError):
    """Training ended on a signal, after writing a checkpoint."""


class TrainingDiverged(UserError):
    """A loss or a weight is no longer finite."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train, whatever the method."""

    seed: int = 0
    """Of the initial weights, the batches and the noise."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    updates: int | None = None
    """Total number of updates, >= 0; None: the algorithm config's own. A finished run may be continued to more."""
    batch_size: int | None = None
    """Windows per update, >= 1; None: the algorithm config's own."""
    micro_batches: int = 1
    """Equal parts of a batch, processed one after the other to save memory. Must divide the batch size."""
    amp: bool = False
    """Networks compute in bfloat16 (automatic mixed precision), weights stay float32. Works on CPU, rarely faster."""
    compile: bool = False
    """`torch.compile` of the networks while training; the first update then takes long. On CPU it needs a compiler."""
    log_every: int = 50
    """Updates between two lines of metrics."""
    checkpoint_every: int = 500
    """Updates between two checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that are kept, >= 1."""
    tensorboard: bool = True
    """Also write the metrics as TensorBoard events, into the folder `tensorboard` of the run."""

    def __post_init__(self) -> None:
        minimum = {"micro_batches": 1, "log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 1}
        minimum |= {name: low for name, low in (("updates", 0), ("batch_size", 1)) if getattr(self, name) is not None}
        for name, low in minimum.items():
            if getattr(self, name) < low:
                raise UserError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        if self.batch_size is not None and self.batch_size % self.micro_batches:
            raise UserError(
                f"batch_size {self.batch_size} does not split into {self.micro_batches} equal micro_batches"
            )


class Sampler(Protocol):
    def draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A CPU generator draws, whatever the device."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What training needs to know about a dataset."""

    dataset_id: str
    digest: str
    spec: TaskSpec
    fit_normalizers: Callable[[str, float], Normalizers]
    """(kind, discount of the returns-to-go) -> normalisers fitted on the data."""
    return_percentiles: Callable[[float], Sequence[float]]
    """Discount -> the 0, 1, ..., 100 % quantiles over episodes of the discounted return, for the run's config.json."""
    make_sampler: Callable[[WindowSpec, torch.device], Sampler]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run; `header.seconds` is the time it took."""

    header: Header
    checkpoint: Path
    resumed_from: int | None


def describe(
    algorithm: type[Algorithm], preset: str, config: Any, training: TrainConfig, data: TrainingData
) -> RunRecord:
    """The record that identifies a run. Its digest is that of the method: not of seed, data or length."""
    training = resolve(training, config)
    method = {"batch_size": training.batch_size, "micro_batches": training.micro_batches, "amp": training.amp}
    return RunRecord(
        algorithm=reference(algorithm),
        preset=preset,
        config=to_json(config),
        config_digest=digest(reference(algorithm), config, method),
        task=data.spec.to_json(),
        dataset_id=data.dataset_id,
        dataset_digest=data.digest,
        training=to_json(training),
    )


def resolve(training: TrainConfig, config: Any) -> TrainConfig:
    """The training config with the method's own budget where it gives none."""
    updates = config.updates if training.updates is None else training.updates
    batch_size = config.batch_size if training.batch_size is None else training.batch_size
    return replace(training, updates=updates, batch_size=batch_size)


def train(
    run_folder: Path,
    algorithm: type[Algorithm],
    config: Any,
    training: TrainConfig,
    data: TrainingData,
    *,
    preset: str,
    progress: bool = False,
) -> TrainResult:
    """Trains to the budget, from the folder's newest checkpoint if it has one.

    Raises a UserError when the folder belongs to another run or process, the disk is full, the loss is not finite, or
    SIGINT or SIGTERM stops it.
    """
    training = resolve(training, config)
    run = describe(algorithm, preset, config, training, data)
    device = check_machine(training)
    if data.spec.action.kind not in algorithm.action_kinds:
        raise UserError(
            f"{algorithm.name} serves {' and '.join(algorithm.action_kinds)} actions, but {data.spec.task_id} has "
            f"{data.spec.action.kind} ones; choose another algorithm"
        )
    require_reloadable(algorithm, config)
    with lock(run_folder):
        read_config(run_folder, run)
        loop = _Loop(run_folder, algorithm, config, training, data, run, device)
        try:  # from here on the folder is written into
            write_config(run_folder, run, lambda: data.return_percentiles(loop.window.discount))
            remove_unfinished(run_folder)
            checkpoints.set_aside_after(run_folder, loop.update)
            with _collected_signals() as signals:
                return loop.run(signals, progress=progress)
        except OSError as error:
            last = f"the last good checkpoint is {loop.last_good}" if loop.last_good else "there is no checkpoint yet"
            raise UserError(
                f"could not write into {run_folder} ({error.strerror}); free some space or choose another --out; {last}"
            ) from error


def check_machine(training: TrainConfig) -> torch.device:
    """The device to train on; a UserError where this machine lacks it, or the compiler that `compile` needs."""
    device = checked_device(training.device)
    if training.compile and cpp_compiler() is None:
        name = os.environ.get("CXX") or CXX
        raise UserError(
            f"compile=true needs a C++ compiler, and there is no {name} on the PATH; install one, name it in the "
            "variable CXX, or leave compile out"
        )
    return device


def cpp_compiler() -> str | None:
    """The path of the compiler that `torch.compile` would use; None where there is none."""
    return shutil.which(os.environ.get("CXX") or CXX)


def checked_device(name: str) -> torch.device:
    """The device of that name, if this machine has it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: expected cpu, cuda or cuda:<number>, got {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UserError(f"device: expected cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"device: {name} was requested, but torch finds no usable GPU; choose cpu (see marl-flow doctor)"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            last = torch.cuda.device_count() - 1
            raise UserError(f"device: {name} was requested, but the last GPU is cuda:{last}; choose that or cpu")
    return device


class _Loop:
    """One training run: everything the next update needs, and the files it is recorded in."""

    def __init__(
        self,
        run_folder: Path,
        algorithm: type[Algorithm],
        config: Any,
        training: TrainConfig,
        data: TrainingData,
        run: RunRecord,
        device: torch.device,
    ) -> None:
        """Starts from the newest checkpoint, or from the beginning. Writes nothing."""
        assert training.updates is not None and training.batch_size is not None
        self.run_folder, self.training, self.data, self.record, self.device = run_folder, training, data, run, device
        self.updates, self.batch_size = training.updates, training.batch_size
        with _config_errors(algorithm):
            self.window = algorithm.window(config)
        self.batches = seeding.generator(training.seed, "batches")
        self.draws = seeding.generator(training.seed, "updates", device=device)
        self.update = 0
        self.resumed_from: int | None = None
        self.seconds = {"total": 0.0, "update": 0.0, "draw": 0.0}
        self.last_good = checkpoints.latest(run_folder)
        if self.last_good is None:
            normalizers = data.fit_normalizers(algorithm.normalizer_kind(config), self.window.discount)
            weights = seeding.generator(training.seed, "weights")
            with _config_errors(algorithm):
                self.algorithm = algorithm.build(config, data.spec, normalizers, device=device, generator=weights)
            self.normalizers = normalizers.state_dict()
        else:
            self._resume(checkpoints.load(self.last_good), algorithm, self.last_good)

    def _resume(self, loaded: Checkpoint, algorithm: type[Algorithm], file: Path) -> None:
        require_same_run(loaded.header.run, self.record, file)
        if loaded.header.update > self.updates:
            raise UserError(
                f"{self.run_folder} has trained {loaded.header.update} updates already, {self.updates} were requested; "
                "request as many or more, or choose another --out"
            )
        self.algorithm = restore(loaded, algorithm, file, device=self.device)
        self.normalizers = dict(loaded.normalizers)
        self.batches.set_state(loaded.generators["batches"])
        self.draws.set_state(loaded.generators["updates"])
        self.update = self.resumed_from = loaded.header.update
        self.seconds = dict(loaded.header.seconds)
        log.info("continuing %s from update %d", self.run_folder, self.update)
        if self.device.type == "cpu" and self.update < self.updates:
            warn_of_other_threads(self.run_folder, self.record)

    def run(self, stop_signals: list[str], *, progress: bool) -> TrainResult:
        training, updates = self.training, self.updates
        if self.update == updates and self.last_good is not None:
            return self._result(self.last_good)
        if training.compile:
            for network in self.algorithm.networks:
                network.compile()
        with contextlib.ExitStack() as stack:
            metrics_log = MetricsLog(self.run_folder, after=self.update, tensorboard=training.tensorboard)
            stack.callback(metrics_log.close)
            bar = stack.enter_context(self._bar()) if progress else None
            if updates:
                sampler = self.data.make_sampler(self.window, self.device)
            self._mark, stopping = time.perf_counter(), False
            while self.update < updates and not stopping:
                metrics = self._step(sampler)
                stopping = bool(stop_signals)
                last = self.update == updates or stopping
                logs = self.update % training.log_every == 0 or self.update == updates
                saves = self.update % training.checkpoint_every == 0 or last
                if logs or saves:
                    values = self._finite_numbers(metrics)
                if logs:
                    metrics_log.write(self.update, values | {f"seconds_{use}": s for use, s in self.seconds.items()})
                    if bar is not None:
                        bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
                if saves:
                    metrics_log.sync()
                    self._save()
                if bar is not None:
                    bar.update()
                self._lap()
            if not updates:  # nothing to train, but a policy to evaluate
                self._save()
        if stop_signals:
            raise TrainingStopped(
                f"stopped by {stop_signals[0]} after update {self.update} of {updates}; the last checkpoint is "
                f"{self.last_good}; the same command continues from it"
            )
        assert self.last_good is not None
        return self._result(self.last_good)

    def _step(self, sampler: Sampler) -> Metrics:
        """One update, timed. A GPU works asynchronously: the wait for it counts as update on logging steps."""
        batch = sampler.draw(self.batch_size, self.batches)
        self._lap("draw")
        # No cache of cast weights: it would outlive an optimiser step inside the update (critic first, then actor).
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.amp, cache_enabled=False):
            metrics = self.algorithm.update(batch, self.draws, self.training.micro_batches)
        self.update += 1
        if self.device.type == "cuda" and self.update % self.training.log_every == 0:
            torch.cuda.synchronize(self.device)
        self._lap("update")
        return metrics

    def _lap(self, use: str | None = None) -> None:
        now = time.perf_counter()
        for name in ("total", use) if use else ("total",):
            self.seconds[name] += now - self._mark
        self._mark = now

    def _finite_numbers(self, metrics: Metrics) -> dict[str, float]:
        if not metrics:
            return {}
        numbers = torch.stack([value.detach().double() for value in metrics.values()]).tolist()
        values = dict(zip(metrics, numbers, strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                self._raise_diverged(f"{name} is {value}")
        return values

    def _raise_diverged(self, reason: str) -> None:
        last = f"the last good checkpoint is {self.last_good}" if self.last_good else "no checkpoint was written yet"
        raise TrainingDiverged(
            f"stopped at update {self.update}: {reason}, expected a finite number; {last}; lower learning_rate, turn "
            "amp off if it was on, and train into another --out"
        )

    def _header(self) -> Header:
        return Header(run=self.record, update=self.update, seconds=dict(self.seconds))

    def _result(self, checkpoint: Path) -> TrainResult:
        return TrainResult(header=self._header(), checkpoint=checkpoint, resumed_from=self.resumed_from)

    def _save(self) -> None:
        state = self.algorithm.state_dict()
        for name, value in state.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                self._raise_diverged(f"the state's {name} holds a number that is not finite")
        generators = {"batches": self.batches.get_state(), "updates": self.draws.get_state()}
        checkpoint = Checkpoint(
            header=self._header(), algorithm=state, normalizers=self.normalizers, generators=generators
        )
        self.last_good = checkpoints.save(self.run_folder, checkpoint, keep=self.training.keep_checkpoints)

    def _bar(self) -> Bar:
        name = f"{self.record.algorithm} {self.record.dataset_id}"
        return progress_bar(name, "updates", total=self.updates, initial=self.update)


@contextlib.contextmanager
def _config_errors(algorithm: type[Algorithm]) -> Iterator[None]:
    """Turns the ValueError of a window, a network or an optimiser into a UserError: the config is wrong."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{algorithm.name} refuses its settings: {error}; choose others") from error


@contextlib.contextmanager
def _collected_signals() -> Iterator[list[str]]:
    """Collects the names of SIGINT and SIGTERM; a second signal acts as usual."""
    names: list[str] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may catch signals
        yield names
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def collect(number: int, frame: Any) -> None:
        names.append(signal.Signals(number).name)
        restore_handlers()

    for number in numbers:
        signal.signal(number, collect)
    try:
        yield names
    finally:
        restore_handlers()
