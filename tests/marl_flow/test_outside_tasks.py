"""A task of another package through the command line: `--task module:factory` on data recorded in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from marl_flow import cli, datasets, envs, results
from marl_flow.interfaces import VectorEnv

GAME = '''
"""A game of somebody else's: two agents walk on a line and are paid for being near its middle."""

import torch

from marl_flow.interfaces import ActionSpec, TaskSpec, TimeStep


class Walk:
    spec = TaskSpec(
        task_id="mygame/walk", agents=("left", "right"), observation_size=2, max_steps=5, team_reward="sum",
        action=ActionSpec(kind="continuous", size=1, low=(-1.0,), high=(1.0,)),
    )
    device = torch.device("cpu")

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def reset(self, seeds):
        self.steps = 0
        self.places = torch.tensor([[[seed % 7 - 3.0], [seed % 5 - 2.0]] for seed in seeds])
        return self.now(torch.zeros(self.num_envs, 2))

    def step(self, actions):
        if self.steps == 5:
            return self.now(torch.zeros(self.num_envs, 2))
        self.steps += 1
        self.places = self.places + actions.clamp(-1, 1)
        return self.now(-self.places[..., 0].abs())

    def now(self, rewards):
        over = torch.full((self.num_envs,), self.steps == 5)
        seen = torch.cat([self.places, torch.full_like(self.places, float(self.steps))], dim=-1)
        return TimeStep(observations=seen, rewards=rewards, terminated=torch.zeros_like(over), truncated=over)


def make_walk(num_envs):
    return Walk(num_envs)
'''
DATASET = "user/mygame/walk/centred-v1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the game's module and, below it, data recorded in the game."""
    (tmp_path / "mygame.py").write_text(GAME, encoding="utf-8")
    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    game: VectorEnv = envs.make("mygame:make_walk", 16)
    recorder = datasets.Recorder(game)
    step = recorder.reset(range(16))
    while not bool(step.finished.all()):
        step = recorder.step(-step.observations[..., :1].clamp(-1, 1))
    recorder.save(DATASET)
    return tmp_path


def marl_flow(*arguments: str) -> subprocess.CompletedProcess:
    """The installed command: unlike `python -m`, it does not have the current folder on its path by itself."""
    code = "import sys; sys.path.remove(''); from marl_flow.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_task_of_ones_own_is_trained_on_evaluated_and_reported(folder: Path) -> None:
    """Catches a factory that is not found in the current folder, not handed on, or not needed."""
    settings = ("hidden=8", "updates=60", "batch_size=64", "learning_rate=0.03", "tensorboard=false")
    trained = marl_flow("train", DATASET, "bc", "--out", "run", "--task", "mygame:make_walk", *settings)
    assert trained.returncode == 0, trained.stderr
    assert "next: marl-flow eval run --task mygame:make_walk" in trained.stdout
    without = marl_flow("eval", "run", "--episodes", "4")
    assert without.returncode == 2 and "unknown task 'mygame/walk'" in without.stderr, without.stderr
    done = marl_flow("eval", "run", "--episodes", "4", "--task", "mygame:make_walk")
    assert done.returncode == 0, done.stderr
    (row,) = results.load("run")
    assert row.task_id == "mygame/walk" and row.score is None
    still = sum(abs(seed % 7 - 3) + abs(seed % 5 - 2) for seed in row.seeds) * 5 / len(row.seeds)
    assert row.team_return_mean > -0.7 * still  # it walks to the middle, as the data do
    reported = marl_flow("report", "run", "--out", "report")
    assert reported.returncode == 0 and "mygame" in reported.stdout, reported.stderr


def test_a_task_of_other_data_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches training on one task's data that names another one's environment, which only `eval` would find out."""
    assert cli.main(["train", "user/mygame/run/any-v1", "bc", "--task", "mygame:make_walk"]) == 2
    assert "makes mygame/walk, but user/mygame/run/any-v1 is of mygame/run" in capsys.readouterr().err


def test_an_environment_unlike_the_data_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches training on data of a task whose environment has other observations or another length."""
    longer = GAME.replace("max_steps=5", "max_steps=6")
    (folder / "longer.py").write_text(longer, encoding="utf-8")
    assert cli.main(["train", DATASET, "bc", "--task", "longer:make_walk", "updates=1"]) == 2
    assert "max_steps: 5 there, 6 here" in capsys.readouterr().err


def test_a_factory_that_does_not_exist_is_refused(folder: Path) -> None:
    """Catches a traceback for a mistyped --task."""
    done = marl_flow("train", DATASET, "bc", "--task", "mygame:make_wlak")
    assert done.returncode == 2 and "make_walk" in done.stderr and "Traceback" not in done.stderr, done.stderr
