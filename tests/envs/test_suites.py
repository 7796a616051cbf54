"""The door to every suite: what is listed can be made, what is not is refused before anything is imported."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from marl_flow import envs
from marl_flow.envs import SUITES, Suite
from marl_flow.interfaces import UserError, VectorEnv


@pytest.mark.parametrize("task_id", envs.TASKS)
def test_every_listed_task_is_made(task_id: str) -> None:
    """Catches a name in the table that its module does not know, and a spec of another task."""
    env = envs.make(task_id, 2)
    assert isinstance(env, VectorEnv) and env.num_envs == 2
    assert env.spec == envs.spec(task_id) and env.spec.task_id == task_id


def test_a_further_suite_is_one_more_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a dispatcher that knows the suites by name."""
    calls = []
    module = SimpleNamespace(make=lambda *arguments: calls.append(arguments), spec=lambda task_id: task_id.upper())
    monkeypatch.setitem(sys.modules, "toy_suite", module)
    suite = Suite(module="toy_suite", tasks=("drift",), family="big/<size>")
    monkeypatch.setattr(envs, "SUITES", {**SUITES, "toy": suite})
    envs.make("toy/drift", 3, opponent=None)
    assert calls == [("toy/drift", 3, "cpu", None, None)]
    assert envs.spec("toy/big/7") == "TOY/BIG/7"
    for name in ("toy/big", "toy/big/", "toy/big/7/8", "toy/bag/7", "toy", "toys/drift"):
        with pytest.raises(UserError, match=r"unknown task '.*further ids: .*toy/big/<size>"):
            envs.spec(name)


def test_a_refusal_imports_no_suite() -> None:
    """Catches a mistyped name that first loads an engine."""
    code = (
        "import sys\nfrom marl_flow import envs\ntry:\n    envs.make('mamujoco/2ants', 1)\nexcept ValueError:\n"
        "    sys.stdout.write(' '.join(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "marl_flow.envs" in loaded and "mujoco" not in loaded and "marl_flow.envs.mamujoco.env" not in loaded


def test_the_table_names_modules_of_ours() -> None:
    """Catches a module renamed or moved without its entry."""
    for suite in SUITES.values():
        module = import_module(suite.module)
        assert callable(module.make) and callable(module.spec)


@pytest.mark.parametrize("task_id", ["mpe/simple_spread", "smac/3m", "mamujoco/2ant", "mamujoco/v1/Ant/2x4"])
@pytest.mark.parametrize("seeds", [[1.5], ["2"], [None], 3, torch.tensor([1.0]), [[1]]])
def test_seeds_are_whole_numbers(task_id: str, seeds: object) -> None:
    """Catches 1.5 that plays the episode of 1, and "2" that plays the one of 2: no message says which was played."""
    env = envs.make(task_id, 1)
    with pytest.raises(UserError, match=rf"{task_id}: expected a whole number as seed of each environment, got"):
        env.reset(seeds)
    first = env.reset([3]).observations
    for same in (torch.tensor([3]), np.array([3], np.int16), (3,), range(3, 4)):
        assert torch.equal(env.reset(same).observations, first)
