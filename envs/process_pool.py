"""Single environments in worker processes behind `VectorEnv`: one process per row, for simulators without batches.

A worker leads a process group of its own, to which everything that its environment starts (a game) belongs. The whole
group is killed when the pool is closed, garbage-collected or left behind by a killed program, so that no process
remains. POSIX only.

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
from typing import Any, NoReturn, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from marl_flow.envs.base import ArrayEnv
from marl_flow.interfaces import TaskSpec, TimeStep, UserError

GRACE_SECONDS = 8.0  # for a worker to close its environment before its group is killed


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What one environment returns: observations [N, O], legal actions as mask [N, A] bool, state [S] or None."""

    observations: np.ndarray
    mask: np.ndarray
    state: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one step. reward: of the team, or [N]; won: None in tasks that cannot be won."""

    frame: Frame
    reward: float | np.ndarray
    terminated: bool
    truncated: bool
    won: bool | None = None


class SingleEnv(Protocol):
    """One discrete environment in a worker. A UserError that it raises reaches the caller as a message, any other
    exception with its traceback; both end the pool."""

    def describe(self) -> Mapping[str, Any]:
        """The simulator's own description: some of num_agents, observation_size, state_size, num_actions,
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


class ProcessPool(ArrayEnv):
    """E worker processes, each with the environment that `make()` built in it.

    make: picklable, importable by the worker. won: whether time steps say who won. start_timeout_seconds limits
    building and `reset` (a game is launched there), step_timeout_seconds a step. A worker that dies, raises or does not
    answer ends the pool with a UserError that names its row; no process remains. Use it as a context manager, or call
    `close`.
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
        super().__init__(spec, num_envs, won=won, device=device, dtype=dtype)
        if min(start_timeout_seconds, step_timeout_seconds) <= 0:
            raise self._error(
                f"expected positive time limits, got start_timeout_seconds={start_timeout_seconds} "
                f"and step_timeout_seconds={step_timeout_seconds}"
            )
        if not spec.action.is_discrete:
            raise self._error(f"a ProcessPool needs discrete actions, got {spec.action.kind} ones")
        self._start_timeout_seconds, self._step_timeout_seconds = start_timeout_seconds, step_timeout_seconds
        self._num_steps = 0
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
        replies = self._request(dict.fromkeys(range(num_envs)), "starting", start_timeout_seconds)
        self._check_description(replies[0])

    def __reduce__(self) -> NoReturn:
        self._refuse_copy("what its worker processes hold", "make another one where it is needed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, seeds: Sequence[int]) -> TimeStep:
        """First step of E new episodes; what a seed decides depends on the environment."""
        requests = {row: ("reset", seed) for row, seed in enumerate(self._check_seeds(seeds))}
        frames = self._request(requests, "resetting", self._start_timeout_seconds)
        self._clear()
        for row, frame in frames.items():
            self._store_frame(row, frame)
        self._num_steps, self._has_begun = 0, True
        return self._time_step()

    def step(self, actions: Tensor) -> TimeStep:
        """One step of every unfinished row under integer actions [E, N]."""
        self._check_open()
        self._require_started()
        chosen = self._check_legal(actions)
        running = np.flatnonzero(~self._finished()).tolist()
        requests = {row: ("step", chosen[row].tolist()) for row in running}
        outcomes = self._request(requests, f"at step {self._num_steps + 1}", self._step_timeout_seconds)
        self._num_steps += 1
        self._rewards[...] = 0
        for row, outcome in outcomes.items():
            self._store_frame(row, outcome.frame)
            self._rewards[row] = outcome.reward
            self._terminated[row], self._truncated[row] = outcome.terminated, outcome.truncated
            if self._won is not None:
                self._won[row] = bool(outcome.won)
        return self._time_step()

    def close(self) -> None:
        """Ends every worker and the processes it started. May be called again."""
        self._closed_because = self._closed_because or "it was closed"
        self._shut_down()

    def _request(self, requests: Mapping[int, Any], activity: str, timeout_seconds: float) -> dict[int, Any]:
        """Replies to requests, by row; a request None sends nothing and only waits. Anything but replies ends the pool,
        an interrupt too: late replies would be mistaken for those to the next request.

        activity: what the rows do meanwhile, for error messages.
        """
        self._check_open()
        try:
            return self._exchange(requests, activity, timeout_seconds)
        except BaseException as error:
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            self._closed_because = self._closed_because or f"it was shut down ({reason})"
            self.close()
            raise

    def _exchange(self, requests: Mapping[int, Any], activity: str, timeout_seconds: float) -> dict[int, Any]:
        for row, request in requests.items():
            if request is not None:
                with suppress(OSError):  # a dead worker is found below, with the reason
                    self._workers[row].connection.send(request)
        rows = {self._workers[row].connection: row for row in requests}
        replies: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_seconds
        while rows:
            ready = multiprocessing.connection.wait(list(rows), max(0.0, deadline - time.monotonic()))
            if not ready:
                silent = sorted(rows.values())
                for row in silent:
                    _kill(self._workers[row].process)
                raise self._row_error(silent[0], activity, f"rows {silent} did not answer within {timeout_seconds:g} s")
            for connection in ready:
                row = rows.pop(connection)  # type: ignore[call-overload]
                try:
                    status, value = self._workers[row].connection.recv()
                except (EOFError, OSError):
                    raise self._row_error(row, activity, _exit_reason(self._workers[row].process)) from None
                if status != "reply":
                    raise self._row_error(row, activity, value)
                replies[row] = value
        return replies

    def _row_error(self, row: int, activity: str, reason: str) -> UserError:
        return self._error(
            f"row {row}, {activity}: {reason}\nAll rows were shut down; make a new environment to continue"
        )

    def _check_open(self) -> None:
        if self._closed_because is not None:
            raise self._error(f"expected an open environment, but {self._closed_because}; make a new one")

    def _check_description(self, description: Mapping[str, Any]) -> None:
        spec = self._spec
        expected = {
            "num_agents": spec.num_agents,
            "observation_size": spec.observation_size,
            "state_size": spec.state_size,
            "num_actions": spec.action.size,
            "max_steps": spec.max_steps,
        }
        wrong = [
            f"{name} {expected[name]}, got {value}" for name, value in description.items() if value != expected[name]
        ]
        if wrong:
            self.close()
            raise self._error(f"expected {'; '.join(wrong)}: is it another version of the simulator?")

    def _store_frame(self, row: int, frame: Frame) -> None:
        arrays: dict[str, np.ndarray] = {"observations": self._observations, "mask": self._masks}
        if self._spec.state_size is not None:
            arrays["state"] = self._states
        for name, stored in arrays.items():
            value = np.asarray(getattr(frame, name))
            if value.shape != stored.shape[1:]:
                self.close()
                raise self._error(f"row {row}: expected {name} {list(stored.shape[1:])}, got {list(value.shape)}")
            stored[row] = value


def _start(factory: bytes) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, factory), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def _shut_down(workers: list[Worker]) -> None:
    """Tells all workers to close, waits a little, and kills what remains of their groups."""
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
    """Kills a worker with its group. Must precede `join`: until then no other process can get its number."""
    assert process.pid is not None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _exit_reason(process: SpawnProcess) -> str:
    """How a worker that closed its pipe ended."""
    multiprocessing.connection.wait([process.sentinel], GRACE_SECONDS)
    _kill(process)
    process.join()
    code = process.exitcode or 0
    if code >= 0:
        return f"its worker process ended with exit code {code}; its last messages are on standard error"
    cause = "; out of memory? use fewer environments" if code == -signal.SIGKILL else ""
    return f"its worker process was killed by {signal.Signals(-code).name}{cause}"


def _serve(connection: Connection, factory: bytes) -> None:
    """A worker: build, describe, then reply to requests until it is told to close or the pipe ends."""
    os.setsid()  # own group, without Ctrl-C from the terminal: the main program decides
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    env: SingleEnv | None = None
    try:
        built: SingleEnv = pickle.loads(factory)()
        env = built
        reply: Any = env.describe()
        while True:
            connection.send(("reply", reply))
            call, argument = _next_request(connection)
            if call == "close":
                break
            reply = env.reset(argument) if call == "reset" else env.step(argument)
    except UserError as error:
        connection.send(("error", str(error)))
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    finally:
        if env is not None:
            env.close()


def _next_request(connection: Connection) -> tuple[str, Any]:
    try:
        return connection.recv()
    except EOFError:  # the pool has ended
        return "close", None


def _die_with_parent() -> None:
    """Ends the whole group when the parent ends, even while the environment is busy."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
