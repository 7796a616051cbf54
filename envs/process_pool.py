"""Single environments in worker processes behind `VectorEnv`: one process per row, for simulators that know no batch.

A worker leads a process group of its own, which whatever its environment starts (a game) belongs to. The whole group is
killed when the pool is closed, collected or left behind by a killed program, so nothing outlives it. POSIX only.

Workers are spawned: a script that builds a pool needs the usual `if __name__ == "__main__":` guard.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from marl_flow.interfaces import TaskSpec, TimeStep, UserError

GRACE_SECONDS = 8.0  # for a worker to close its environment before its group is killed


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What one environment shows: observations [N, O], legal actions as mask [N, A] bool, state [S] or None."""

    observations: np.ndarray
    mask: np.ndarray
    state: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one step led to. reward: of the team, or [N]; won: None in tasks that cannot be won."""

    frame: Frame
    reward: float | np.ndarray
    terminated: bool
    truncated: bool
    won: bool | None = None


class SingleEnv(Protocol):
    """One discrete environment, living in a worker. A UserError that it raises reaches the caller as a sentence, any
    other exception with its traceback; either ends the pool."""

    def describe(self) -> Mapping[str, Any]:
        """What the simulator says of itself: some of num_agents, observation_size, state_size, num_actions,
        max_steps. They must agree with the pool's spec."""
        ...

    def reset(self, seed: int) -> Frame: ...

    def step(self, actions: Sequence[int]) -> Outcome:
        """N legal actions. Not called again after the episode's end before `reset`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Worker:
    process: SpawnProcess
    connection: Connection


class ProcessPool:
    """E worker processes, each with the environment that `make()` built in it.

    make: picklable, importable by the worker. won: whether time steps say who won. start_timeout_seconds serves
    building and `reset` (a game is launched there), step_timeout_seconds a step. A worker that dies, raises or stays
    silent ends the pool with a UserError naming its row; no process stays. Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        make: Callable[[], SingleEnv],
        spec: TaskSpec,
        num_envs: int,
        *,
        won: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        start_timeout_seconds: float = 300.0,
        step_timeout_seconds: float = 60.0,
    ) -> None:
        task_id, agents, action = spec.task_id, spec.num_agents, spec.action
        if num_envs < 1:
            raise UserError(f"{task_id}: expected at least one environment, got num_envs={num_envs}")
        if dtype not in (torch.float32, torch.float64):
            raise UserError(f"{task_id}: expected dtype float32 or float64, got {dtype}")
        if min(start_timeout_seconds, step_timeout_seconds) <= 0:
            raise UserError(
                f"{task_id}: expected positive time limits, got start_timeout_seconds={start_timeout_seconds} "
                f"and step_timeout_seconds={step_timeout_seconds}"
            )
        if not action.is_discrete:
            raise UserError(f"{task_id}: a ProcessPool serves discrete actions, got {action.kind} ones")
        self._spec, self._num_envs = spec, num_envs
        self._device, self._dtype = torch.empty(0, device=device).device, dtype
        self._start_timeout_seconds, self._step_timeout_seconds = start_timeout_seconds, step_timeout_seconds
        self._observations = np.zeros((num_envs, agents, spec.observation_size), dtype=np.float32)
        self._masks = np.zeros((num_envs, agents, action.size), dtype=bool)
        self._states = np.zeros((num_envs, spec.state_size or 0), dtype=np.float32)
        self._rewards = np.zeros((num_envs, agents))
        self._terminated, self._truncated = np.zeros(num_envs, dtype=bool), np.zeros(num_envs, dtype=bool)
        self._won = np.zeros(num_envs, dtype=bool) if won else None
        self._steps: int | None = None
        self._workers: list[Worker] = []
        self._closed_because: str | None = None
        # Runs once: on close, when collected, or at exit, where multiprocessing calls it before it ends its children.
        self._shut_down = multiprocessing.util.Finalize(self, _shut_down, (self._workers,), exitpriority=10)
        factory = pickle.dumps(make)
        try:
            for _ in range(num_envs):
                self._workers.append(_start(factory))
        except BaseException:
            self.close()
            raise
        answers = self._ask(dict.fromkeys(range(num_envs)), "starting", start_timeout_seconds)
        self._check_description(answers[0])

    @property
    def spec(self) -> TaskSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    @property
    def device(self) -> torch.device:
        return self._device

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        """First step of E new episodes; what a seed decides is the environment's affair."""
        seeds = [int(seed) for seed in seeds]
        if len(seeds) != self._num_envs:
            raise UserError(f"{self._spec.task_id}: expected {self._num_envs} seeds, got {len(seeds)}")
        if min(seeds) < 0 or max(seeds) >= 2**63:
            raise UserError(f"{self._spec.task_id}: seeds must be in [0, 2**63), got {min(seeds)} to {max(seeds)}")
        questions = {row: ("reset", seed) for row, seed in enumerate(seeds)}
        frames = self._ask(questions, "resetting", self._start_timeout_seconds)
        for flags in (self._rewards, self._terminated, self._truncated, self._won):
            if flags is not None:
                flags[...] = 0
        for row, frame in frames.items():
            self._show(row, frame)
        self._steps = 0
        return self._time_step()

    def step(self, actions: Tensor) -> TimeStep:
        """One step of every unfinished row under integer actions [E, N]."""
        if self._steps is None:
            self._check_open()
            raise UserError(f"{self._spec.task_id}: no episode has begun; call reset(seeds) first")
        chosen = self._checked(actions)
        running = np.flatnonzero(~(self._terminated | self._truncated)).tolist()
        questions = {row: ("step", chosen[row].tolist()) for row in running}
        outcomes = self._ask(questions, f"at step {self._steps + 1}", self._step_timeout_seconds)
        self._steps += 1
        self._rewards[...] = 0
        for row, outcome in outcomes.items():
            self._show(row, outcome.frame)
            self._rewards[row] = outcome.reward
            self._terminated[row], self._truncated[row] = outcome.terminated, outcome.truncated
            if self._won is not None:
                self._won[row] = bool(outcome.won)
        return self._time_step()

    def close(self) -> None:
        """Ends every worker and what it started. May be called again."""
        self._closed_because = self._closed_because or "it was closed"
        self._steps = None
        self._shut_down()

    def _ask(self, questions: Mapping[int, Any], doing: str, timeout_seconds: float) -> dict[int, Any]:
        """The answers of all rows asked; None asks nothing and only listens. Anything but answers ends the pool, an
        interrupt too: answers still on their way would be taken for those to the next question."""
        self._check_open()
        try:
            return self._answers(questions, doing, timeout_seconds)
        except BaseException as error:
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            self._closed_because = self._closed_because or f"it was shut down ({reason})"
            self.close()
            raise

    def _answers(self, questions: Mapping[int, Any], doing: str, timeout_seconds: float) -> dict[int, Any]:
        for row, question in questions.items():
            if question is not None:
                with suppress(OSError):  # a dead worker is met below, with the manner of its death
                    self._workers[row].connection.send(question)
        rows = {self._workers[row].connection: row for row in questions}
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_seconds
        while rows:
            ready = multiprocessing.connection.wait(list(rows), max(0.0, deadline - time.monotonic()))
            if not ready:
                silent = sorted(rows.values())
                for row in silent:
                    _kill(self._workers[row].process)
                raise self._failure(silent[0], doing, f"rows {silent} did not answer within {timeout_seconds:g} s")
            for connection in ready:
                row = rows.pop(connection)  # type: ignore[call-overload]
                try:
                    kind, value = self._workers[row].connection.recv()
                except (EOFError, OSError):
                    raise self._failure(row, doing, _death(self._workers[row].process)) from None
                if kind != "answer":
                    raise self._failure(row, doing, value)
                answers[row] = value
        return answers

    def _failure(self, row: int, doing: str, what: str) -> UserError:
        return UserError(
            f"{self._spec.task_id}: row {row}, {doing}: {what}\n"
            "All rows were shut down; make the environment anew to go on"
        )

    def _check_open(self) -> None:
        if self._closed_because is not None:
            raise UserError(
                f"{self._spec.task_id}: expected an open environment, but {self._closed_because}; make a new one"
            )

    def _check_description(self, found: Mapping[str, Any]) -> None:
        spec = self._spec
        expected = {
            "num_agents": spec.num_agents,
            "observation_size": spec.observation_size,
            "state_size": spec.state_size,
            "num_actions": spec.action.size,
            "max_steps": spec.max_steps,
        }
        wrong = [f"{name} {expected[name]}, got {found[name]}" for name in found if found[name] != expected[name]]
        if wrong:
            self.close()
            raise UserError(f"{spec.task_id}: expected {'; '.join(wrong)}: another version of the simulator?")

    def _show(self, row: int, frame: Frame) -> None:
        parts: dict[str, np.ndarray] = {"observations": self._observations, "mask": self._masks}
        if self._spec.state_size is not None:
            parts["state"] = self._states
        for name, kept in parts.items():
            value = np.asarray(getattr(frame, name))
            if value.shape != kept.shape[1:]:
                self.close()
                raise UserError(
                    f"{self._spec.task_id}: row {row}: expected {name} {list(kept.shape[1:])}, got {list(value.shape)}"
                )
            kept[row] = value

    def _checked(self, actions: Tensor) -> np.ndarray:
        """Integer actions [E, N], every one legal or its row finished."""
        task_id, size, shape = self._spec.task_id, self._spec.action.size, self._masks.shape[:2]
        fits = not (actions.is_floating_point() or actions.is_complex() or actions.dtype == torch.bool)
        if not fits or tuple(actions.shape) != shape or actions.device != self._device:
            raise UserError(
                f"{task_id}: expected actions as integers of shape {shape} on {self._device}, "
                f"got {actions.dtype} of shape {tuple(actions.shape)} on {actions.device}"
            )
        chosen = actions.cpu().numpy()
        in_range = (chosen >= 0) & (chosen < size)
        legal = np.take_along_axis(self._masks, np.where(in_range, chosen, 0)[..., None], -1)[..., 0]
        legal = in_range & (legal | (self._terminated | self._truncated)[:, None])
        if not legal.all():
            row, agent = np.argwhere(~legal)[0]
            raise UserError(
                f"{task_id}: row {row}, {self._spec.agents[agent]}: expected one of the legal actions "
                f"{np.flatnonzero(self._masks[row, agent]).tolist()}, got {chosen[row, agent]}; check the policy's mask"
            )
        return chosen

    def _time_step(self) -> TimeStep:
        def tensor(value: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=self._device)

        return TimeStep(
            observations=tensor(self._observations, self._dtype),
            rewards=tensor(self._rewards, self._dtype),
            terminated=tensor(self._terminated, torch.bool),
            truncated=tensor(self._truncated, torch.bool),
            action_mask=tensor(self._masks, torch.bool),
            state=None if self._spec.state_size is None else tensor(self._states, self._dtype),
            won=None if self._won is None else tensor(self._won, torch.bool),
        )


def _start(factory: bytes) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, factory), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def _shut_down(workers: list[Worker]) -> None:
    """Asks all workers to close, waits a little, and kills what is left of their groups."""
    for worker in workers:
        with suppress(OSError):
            worker.connection.send(("close", None))
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        multiprocessing.connection.wait([worker.process.sentinel], max(0.0, deadline - time.monotonic()))
    for worker in workers:
        _kill(worker.process)
        worker.process.join()
        worker.connection.close()
    workers.clear()


def _kill(process: SpawnProcess) -> None:
    """Kills a worker with its group. Comes before `join`: until then nobody else can have its number."""
    assert process.pid is not None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _death(process: SpawnProcess) -> str:
    """How a worker that closed its pipe ended."""
    multiprocessing.connection.wait([process.sentinel], GRACE_SECONDS)
    _kill(process)
    process.join()
    code = process.exitcode or 0
    if code >= 0:
        return f"its worker process ended with exit code {code}; what it had to say is on standard error"
    cause = "; out of memory? use fewer environments" if code == -signal.SIGKILL else ""
    return f"its worker process was killed by {signal.Signals(-code).name}{cause}"


def _serve(connection: Connection, factory: bytes) -> None:
    """A worker's life: build, describe, then answer until told to close or the pipe ends."""
    os.setsid()  # own group, and no Ctrl-C from the terminal: the program decides
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    env: SingleEnv | None = None
    try:
        env = pickle.loads(factory)()
        answer = env.describe()
        while True:
            connection.send(("answer", answer))
            call, argument = _next_question(connection)
            if call == "close":
                break
            answer = env.reset(argument) if call == "reset" else env.step(argument)
    except UserError as error:
        connection.send(("error", str(error)))
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    finally:
        if env is not None:
            env.close()


def _next_question(connection: Connection) -> tuple[str, Any]:
    try:
        return connection.recv()
    except EOFError:  # the pool is gone
        return "close", None


def _die_with_parent() -> None:
    """Notices the parent's end even while the environment is busy, and ends the whole group."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
