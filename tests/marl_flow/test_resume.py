"""Killed and continued equals never stopped, bit for bit: real processes, real files, SIGKILL at random instants."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from marl_flow import baselines, checkpoint
from marl_flow.algorithm import Algorithm
from marl_flow.interfaces import ActingConfig, Metrics
from marl_flow.run_log import read_lines
from marl_flow.training import TrainResult

UPDATES = 300


def untimed(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if not name.startswith("seconds_")}
        for line in read_lines(folder / "metrics.jsonl")
    ]


def assert_same_bits(one: Path, other: Path) -> None:
    """Weights, targets, optimisers, counters, normalisers, generators and every metric."""
    left, right = (checkpoint.load(path) for path in (checkpoint.latest(one), checkpoint.latest(other)))
    assert left.header.update == right.header.update and left.header.run == right.header.run
    a, b = left.tensors(), right.tensors()
    assert a.keys() == b.keys() and {name.partition("/")[0] for name in a} == {"algorithm", "normalizer", "generator"}
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert untimed(one) == untimed(other)


@pytest.fixture
def nursery() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported everything. For each folder it is told, it forks a training there, and answers with
    the process id, then with how it ended. (A fork of the test's own process could not train on a machine with a GPU.)
    """
    code = """if True:
        import os, sys
        import tiny_run, torch, torch._dynamo
        torch.set_num_threads(1)
        for line in iter(sys.stdin.readline, ''):
            folder, updates = line.split()
            pid = os.fork()
            if not pid:
                tiny_run.run(tiny_run.Path(folder), training=tiny_run.training(updates=int(updates)))
                os._exit(0)
            print(pid, flush=True)
            sys.stdin.readline()  # until then the process id stays taken
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, **pipes) as process:
        yield process
        process.stdin.close()


def ended(nursery: subprocess.Popen[str]) -> int:
    nursery.stdin.write("reap\n")
    nursery.stdin.flush()
    return int(nursery.stdout.readline())


def start(nursery: subprocess.Popen[str], folder: Path) -> int:
    nursery.stdin.write(f"{folder} {UPDATES}\n")
    nursery.stdin.flush()
    return int(nursery.stdout.readline())


def size(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


@pytest.mark.slow
def test_sigkill_at_random_instants(tiny: ModuleType, tmp_path: Path, nursery: subprocess.Popen[str]) -> None:
    """Catches any piece of state that a checkpoint lacks, and any file that a kill leaves unreadable."""
    tiny.run(tmp_path / "whole", training=tiny.training(updates=UPDATES))
    folder, reached = tmp_path / "killed", []
    for _ in range(5):
        before, patience = size(folder), time.monotonic() + 60
        pid = start(nursery, folder)
        while size(folder) == before and time.monotonic() < patience:
            time.sleep(0.002)
        time.sleep(random.uniform(0.0, 0.3))  # the instant need not be repeatable: every one must do
        os.kill(pid, signal.SIGKILL)
        status = ended(nursery)
        newest = checkpoint.latest(folder)
        reached.append(0 if newest is None else checkpoint.load(newest).header.update)
        if status != -signal.SIGKILL:
            break
    assert reached == sorted(reached) and reached[0] < UPDATES, "it finished before it could be killed"
    start(nursery, folder)
    assert ended(nursery) == 0
    assert_same_bits(tmp_path / "whole", folder)
    assert not list(folder.rglob("*.writing*"))


def actions(algorithm: Algorithm) -> torch.Tensor:
    """What it does at a fixed observation."""
    sampled = {"num_sampling_steps": 2, "target_return": 0.5} if algorithm.samples_in_steps else {}
    policy = algorithm.policy(ActingConfig(**sampled))
    policy.reset(1, torch.Generator().manual_seed(0))
    spec = algorithm.spec
    return policy.act(torch.ones(1, spec.num_agents, spec.observation_size), None, torch.zeros(1, spec.num_agents))


# As small as goes, and every draw and schedule there is: agents shown, returns dropped, a running average that starts.
COFLOW = {"width": 16, "heads": 1, "token_blocks": 1, "embedding_width": 8, "horizon": 2, "history": 1}
COFLOW |= {"conditioning": "mixed", "condition_dropout": 0.3, "ema_start": 5, "ema_every": 2}


@pytest.mark.parametrize(
    ("name", "settings", "tensorboard"),
    [("ma_td3_bc", {}, False), ("bc", {"learning_rate": 0.01}, True), ("coflow", COFLOW, False)],
)
def test_stopping_at_every_update_and_going_on(
    tiny: ModuleType, tmp_path: Path, name: str, settings: dict, tensorboard: bool
) -> None:
    """Catches state that only matters between two particular updates, such as the delayed actor's turn, and state
    that only acting needs, such as a running average: the algorithm as trained acts as the one from the file.
    """
    trained: list[Algorithm] = []

    class Watched(baselines.get(name)):
        def update(self, *arguments: Any) -> Metrics:
            trained[:] = [self]
            return super().update(*arguments)

    algorithm = Watched
    small = {"updates": 12, "batch_size": 16} | ({} if name == "coflow" else {"hidden": (8,)})
    config = dataclasses.replace(next(iter(algorithm.presets.values())), **small | settings)

    def run(place: str, updates: int) -> TrainResult:
        training = tiny.training(updates=updates, log_every=1, tensorboard=tensorboard)
        return tiny.run(tmp_path / place, algorithm=algorithm, config=config, training=training)

    for updates in range(1, 13):
        result = run("pieces", updates)
        assert result.header.update == updates and result.resumed_from == (updates - 1 or None)
    fine = run("fine", 12)
    left, right = (checkpoint.load(each.checkpoint).tensors() for each in (fine, result))
    assert left.keys() == right.keys() and [key for key in left if not torch.equal(left[key], right[key])] == []
    assert untimed(tmp_path / "fine") == untimed(tmp_path / "pieces")
    assert (tmp_path / "pieces" / "tensorboard").exists() == tensorboard
    loaded, _ = checkpoint.load_algorithm(result.checkpoint, lambda _: algorithm, device=torch.device("cpu"))
    assert torch.equal(actions(trained[0]), actions(loaded))
