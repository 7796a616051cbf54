"""Workers behind `VectorEnv`: the contract, what reaches a worker, how it may die, and that nothing outlives a pool.

A spawned worker costs a second and a half of CPU, nearly all of it imports. Most tests fork theirs from a server that
has imported everything; those of whole programs, and one more, spawn them as users do.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from marl_flow.envs import checks
from marl_flow.envs.process_pool import ProcessPool
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

HERE = Path(__file__).parent
ONES = torch.ones(2, 2, dtype=torch.int64)


@pytest.fixture(scope="module")
def fakes() -> Iterator[ModuleType]:
    """The fake environments under a name that workers can import: they take over this process's path."""
    sys.path.insert(0, str(HERE))
    import pool_fakes

    yield pool_fakes
    sys.path.remove(str(HERE))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that start at once."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pytest", "marl_flow.envs.process_pool"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: {"spawn": server}[method])


@pytest.fixture
def pool(fakes: ModuleType, tmp_path: Path) -> Callable[..., ProcessPool]:
    """Makes pools of `Duel` whose workers and games are noted in tmp_path."""

    def make(num_envs: int, trouble: str = "none", **options) -> ProcessPool:
        return ProcessPool(partial(fakes.Duel, trouble, 7, str(tmp_path)), fakes.SPEC, num_envs, won=True, **options)

    return make


def alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be read out does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def noted(folder: Path) -> list[int]:
    """Every worker and every game that was started."""
    files = [path for path in folder.iterdir() if path.name.isdigit()]
    return sorted(int(number) for path in files for number in (path.name, path.read_text()))


def assert_gone(folder: Path, count: int, seconds: float = 10.0) -> None:
    pids, deadline = noted(folder), time.monotonic() + seconds
    assert len(pids) == count
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.mark.usefixtures("forked")
def test_contract(pool: Callable[..., ProcessPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches rows mixed up, finished rows that are stepped or paid, reused buffers, masks let through, and workers
    that live on when their pool is forgotten without `close`."""
    monkeypatch.setattr(checks, "ROWS", 2)
    checks.check_vector_env(pool)
    gc.collect()
    assert_gone(tmp_path, 2 * (2 + 2 + 1), seconds=1.0)


def test_ends_are_told_apart_and_frozen(fakes: ModuleType, pool: Callable[..., ProcessPool], tmp_path: Path) -> None:
    """Catches won, lost and timed-out rows confused, rewards not copied to every agent, numbers or device changed on
    the way, refused actions that move a worker, and a `close` that fails or leaves something the second time."""
    with pool(2, dtype=torch.float64) as env:
        first = env.reset([1, 3])
        starts = [fakes.Duel() for _ in range(2)]
        frames = [start.reset(seed) for start, seed in zip(starts, [1, 3], strict=True)]
        assert first.observations.tolist() == [frame.observations.tolist() for frame in frames]
        assert first.state.tolist() == [frame.state.tolist() for frame in frames]
        assert first.action_mask.tolist() == [frame.mask.tolist() for frame in frames]
        assert first.observations.dtype == torch.float64 and not first.won.any()

        with pytest.raises(UserError, match=r"fake/duel: row 1, agent_0: expected one of the legal actions \[0, 1, 2"):
            env.step(torch.tensor([[1, 1], [3, 1]]))
        with pytest.raises(UserError, match=r"row 0, agent_1: expected one of the legal actions \[0, 1, 2\], got -1"):
            env.step(torch.tensor([[1, -1], [1, 1]]))
        for wrong in (ONES.float(), ONES[:1], ONES[..., None], ONES.bool(), ONES.to("meta")):
            with pytest.raises(UserError, match=r"expected actions as integers of shape \(2, 2\) on cpu, got"):
                env.step(wrong)
        with pytest.raises(UserError, match="expected 2 seeds, one per environment, got 3"):
            env.reset([1, 2, 3])
        with pytest.raises(UserError, match=r"seeds must be in \[0, 2\*\*63\), got -1 to 1"):
            env.reset([1, -1])

        step = env.step(torch.tensor([[2, 2], [0, 1]]))
        assert step.rewards.tolist() == [[4, 4], [1, 1]] and step.observations[:, 0, 1].tolist() == [1, 1]
        for _ in range(5):
            step = env.step(torch.tensor([[2, 2], [1, 1]]))
        # row 0 starts at 3.1, passes 12 in step 3 and stays there; row 1 starts at 0.5 and is at 11.5 after six steps
        assert step.won.tolist() == [True, False] == step.terminated.tolist()
        assert step.truncated.tolist() == [False, True] and step.rewards.tolist() == [[0, 0], [2, 2]]
        assert step.state[:, 1].tolist() == [3, 6]
        env.reset([3, 1])
        for choice in (0, 1, 0, 1):
            step = env.step(torch.full((2, 2), choice))
        assert step.terminated.tolist() == [True, False] and not (step.won | step.truncated).any()
    env.close()
    with pytest.raises(UserError, match="expected an open environment, but it was closed; make a new one"):
        env.step(ONES)
    with pytest.raises(UserError, match="expected an open environment"):
        env.reset([1, 2])
    assert_gone(tmp_path, 4, seconds=0.0)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("trouble", "rows", "message"),
    [
        ("exit", 1, r"fake/duel: row 0, at step 2: its worker process ended with exit code 3; its last messages"),
        ("kill", 1, r"fake/duel: row 0, at step 2: its worker process was killed by SIGKILL; out of memory\?"),
        ("hang", 2, r"fake/duel: row 1, at step 2: rows \[1\] did not answer within 0.3 s"),
        ("raise", 1, r"row 0, at step 2: EOFError: the game said nothing\n[\s\S]*in misbehave[\s\S]*All rows were"),
    ],
    ids=["exit", "kill", "hang", "raise"],
)
def test_trouble_in_the_last_row(
    pool: Callable[..., ProcessPool], tmp_path: Path, trouble: str, rows: int, message: str
) -> None:
    """Catches a dead, silent or failing worker that hangs the program, goes unnamed, or leaves a process behind."""
    env = pool(rows, trouble)
    env.reset([1, 7][-rows:])
    env.step(ONES[:rows])
    env._step_timeout_seconds = 0.3 if trouble == "hang" else 60.0
    with pytest.raises(UserError, match=message):
        env.step(ONES[:rows])
    assert_gone(tmp_path, 2 * rows, seconds=1.0)
    with pytest.raises(UserError, match=rf"but it was shut down \(fake/duel: row {rows - 1}, at step 2: "):
        env.reset(range(rows))


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("build", r"row 0, starting: no such map\nAll rows were shut down; make a new environment to continue$"),
        ("size", r"fake/duel: expected observation_size 3, got 4: is it another version of the simulator\?"),
        ("shape", r"fake/duel: row 0: expected observations \[2, 3\], got \[3\]"),
    ],
    ids=["build", "size", "shape"],
)
def test_an_unfit_environment(pool: Callable[..., ProcessPool], tmp_path: Path, trouble: str, message: str) -> None:
    """Catches an environment that cannot be built, or whose arrays would be stretched to fit."""
    with pytest.raises(UserError, match=message):
        env = pool(1, trouble)
        env.reset([1])
        env.step(ONES[:1])
    assert_gone(tmp_path, 0 if trouble == "build" else 2, seconds=1.0)


@pytest.mark.usefixtures("forked")
def test_interrupted(pool: Callable[..., ProcessPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches late answers taken for the next step's after Ctrl-C."""
    env, wait, calls = pool(1), multiprocessing.connection.wait, []
    env.reset([1])
    assert len(noted(tmp_path)) == 2 and all(map(alive, noted(tmp_path)))

    def interrupted(*arguments) -> list:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(multiprocessing.connection, "wait", interrupted)
        env.step(ONES[:1])
    with pytest.raises(UserError, match=r"it was shut down \(KeyboardInterrupt\)"):
        env.step(ONES[:1])
    assert_gone(tmp_path, 2, seconds=1.0)


@pytest.mark.parametrize("how", ["sleep", "leave"])
def test_nothing_outlives_the_program(tmp_path: Path, how: str) -> None:
    """Catches workers and games left behind by a killed program, though the worker is deep in a step and hears no
    pipe; and a program that hangs at its end, or leaves them, because it did not close its pool."""
    program = subprocess.Popen([sys.executable, HERE / "pool_fakes.py", how, tmp_path])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline and program.poll() is None:
            time.sleep(0.05)
        if how == "sleep":
            time.sleep(0.3)
            assert all(map(alive, noted(tmp_path)))
            program.kill()
        assert program.wait(30) == (-signal.SIGKILL if how == "sleep" else 0)
    finally:
        program.kill()
    assert_gone(tmp_path, 2)


def test_arguments() -> None:
    """Catches a pool that starts workers before it knows that it cannot serve."""
    box = ActionSpec(kind="continuous", size=1, low=(0.0,), high=(1.0,))
    space = {"observation_size": 1, "max_steps": 1, "team_reward": "shared", "agents": ("a",)}
    spec = TaskSpec(task_id="t", action=ActionSpec(kind="discrete", size=2), **space)
    continuous = TaskSpec(task_id="t", action=box, **space)
    for given, count, options, message in (
        (spec, 0, {}, "t: expected at least one environment, got num_envs=0"),
        (spec, 1, {"dtype": torch.int32}, "t: expected dtype float32 or float64, got torch.int32"),
        (spec, 1, {"step_timeout_seconds": 0.0}, "t: expected positive time limits"),
        (continuous, 1, {}, "t: a ProcessPool needs discrete actions, got continuous ones"),
    ):
        with pytest.raises(UserError, match=message):
            ProcessPool(int, given, count, **options)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_pool_is_not_copied(pool: Callable[..., ProcessPool], copied: Callable[[object], object]) -> None:
    """Catches a copy that shares the original's workers, and a refusal that is about some lock inside."""
    with (
        pool(1) as env,
        pytest.raises(UserError, match="what its worker processes hold cannot be copied; make another"),
    ):
        copied(env)
