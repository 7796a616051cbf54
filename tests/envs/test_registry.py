"""Tasks of other packages: an installed one with entry points, `module:factory`, and registration in Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from marl_flow import envs
from marl_flow.envs import registry
from marl_flow.envs.checks import check_vector_env
from marl_flow.interfaces import UserError

SOURCE = Path(__file__).with_name("outside_tasks.py")
CONTENT = """
import sys
from marl_flow import envs
from marl_flow.envs.checks import check_vector_env

for task_id in ("mygame/duel", "mygame/glide", "mygame/steer"):
    assert envs.knows(task_id) and envs.spec(task_id).task_id == task_id
    check_vector_env(lambda num_envs: envs.make(task_id, num_envs))
spec = envs.spec("mygame/duel")
assert (spec.action.is_discrete, spec.max_steps, spec.team_reward) == (True, 5, "sum")
sys.stdout.write("checked")
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module's name, importable in this process as it is from the command line's current folder."""
    name = "outside_tasks_here"
    (tmp_path / f"{name}.py").write_bytes(SOURCE.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(registry, "_registered", {})
    return name


def test_an_installed_package_brings_its_tasks(tmp_path: Path) -> None:
    """Catches entry points that are not read, names with a slash that an installer drops, and an id that differs."""
    project, site = tmp_path / "project", tmp_path / "site"
    (project / "mygame").mkdir(parents=True)
    (project / "mygame" / "__init__.py").write_text("")
    (project / "mygame" / "tasks.py").write_bytes(SOURCE.read_bytes())
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "mygame"\nversion = "1.0"\n[tool.setuptools]\npackages = ["mygame"]\n'
        '[project.entry-points."marl_flow.tasks"]\n"mygame/duel" = "mygame.tasks:Duel"\n'
        '"mygame/glide" = "mygame.tasks:Glide"\n"mygame/steer" = "mygame.tasks:Steer"\n'
    )
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, str(project)], check=True, capture_output=True)
    path = os.pathsep.join([str(site), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", CONTENT], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "checked", done.stderr


@pytest.mark.parametrize(
    ("attribute", "task_id"),
    [
        ("Glide", "mygame/glide"),
        ("Duel", "outside_tasks_here/duel"),
        ("Steer", "mygame/steer"),
        ("GlideWithOptions", "mygame/glide-options"),
    ],
)
def test_a_factory_is_loaded_under_its_own_id(outside: str, attribute: str, task_id: str) -> None:
    """Catches a flag `--task module:factory` after which the commands do not find the id that runs and data store."""
    with pytest.raises(UserError, match=rf"unknown task '{task_id}'.*module:factory.*group marl_flow\.tasks"):
        envs.make(task_id)
    assert not envs.knows(task_id) and envs.make(f"{outside}:{attribute}", 2).spec.task_id == task_id
    assert envs.load_factory(f"{outside}:{attribute}") == task_id
    assert envs.knows(task_id) and envs.make(task_id).num_envs == 1 and envs.spec(task_id).task_id == task_id
    check_vector_env(lambda num_envs: envs.make(task_id, num_envs))


def test_arguments_reach_the_factories_that_take_them(outside: str) -> None:
    """Catches a device or precision that is dropped, or passed to a factory without such a parameter."""
    env = envs.make(f"{outside}:GlideWithOptions", 2, dtype=torch.float64, opponent="somebody")  # type: ignore[arg-type]
    assert env.given == (torch.device("cpu"), torch.float64, "somebody")  # type: ignore[attr-defined]
    assert envs.make(f"{outside}:Glide", 2, dtype=torch.float64).reset([0, 1]).observations.dtype == torch.float32
    assert envs.make(f"{outside}:Duel", 2, dtype=torch.float64).reset([0, 1]).observations.dtype == torch.float64
    with pytest.raises(UserError, match="leave `opponent` out"):
        envs.make(f"{outside}:Glide", 2, opponent="somebody")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one environment, got num_envs=0"):
        envs.make(f"{outside}:Glide", 0)
    moved = envs.make(f"{outside}:Glide", 2, device="meta")
    step = moved.reset([0, 1])
    assert moved.device.type == step.observations.device.type == step.truncated.device.type == "meta"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_game:make", r"cannot import the module no_such_game \(No module named 'no_such_game'\); install"),
        ("{}:Glyde", r"has no attribute Glyde; it defines .*Glide"),
        ("{}:", r"expected module:name such as mygame\.tasks:make_duel"),
        ("{}:NOT_CALLABLE", r"expected a callable factory, got 3"),
        ("{}:returns_text", r"must return a VectorEnv .*returned builtins\.str"),
        ("{}:returns_gymnasium", r"returns a PettingZoo ParallelEnv, .* it returned gymnasium\.core\.Env"),
        ("{}:parallel_although_batched", r"has a parameter `num_envs`, so it must return a VectorEnv .*Duel"),
        ("{}:forgets_num_envs", r"returned a VectorEnv, so it needs a parameter `num_envs`"),
        ("{}:needs_a_size", r"expected a factory with a parameter `num_envs`.* it requires size"),
        ("{}:one_too_many", r"expected an environment of 1 episodes, got num_envs=2"),
        ("{}:Endless", r"expected the step limit as `metadata\['max_steps'\]` of .*Endless, got None; add it, or"),
        ("{}:Unpaid", r"`metadata\['team_reward'\]` as one of mean, sum, shared, got 'best'"),
        ("{}:Unnamed", r"expected a task id suite/task of letters, digits, - and _, got 'glide'; rename"),
        ("{}:Foreign", r"task id 'mpe/glide': its suite is marl_flow's own"),
        (
            "{}:Misshapen",
            r"breaks the contract .*reset: observations has shape \[1, 2\], the spec makes it \[1, 2, 1\]",
        ),
    ],
)
def test_what_is_wrong_with_a_factory_is_said(outside: str, reference: str, message: str) -> None:
    """Catches a traceback, or a fault that shows up only when a trained policy is evaluated."""
    with pytest.raises(UserError, match=message):
        envs.load_factory(reference.format(outside))


def test_registration(outside: str) -> None:
    """Catches an id of ours that is taken over, one that no dataset can be named after, and a spec of another task."""
    module = __import__(outside)
    envs.register("mygame/glide", module.Glide)
    assert envs.make("mygame/glide", 3).num_envs == 3
    envs.register("mygame/gilde", module.Glide)
    with pytest.raises(
        UserError, match=r"mygame/gilde: expected an environment whose spec has this task id, got 'mygame/gl"
    ):
        envs.make("mygame/gilde")
    envs.register("other/duel", module.Duel)  # a ParallelEnv takes the id it is registered under
    assert envs.spec("other/duel").task_id == "other/duel"
    for task_id in ("mpe/simple_spread", "smac-sc2/mine", "glide", "my/game/glide", "my game/glide"):
        with pytest.raises(UserError, match=r"its suite is marl_flow's own|expected a task id suite/task"):
            envs.register(task_id, module.Glide)
    with pytest.raises(UserError, match="expected a callable factory, got None"):
        envs.register("mygame/none", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"unknown task 'mygame/glade'; nearest: .*mygame/glide"):
        envs.make("mygame/glade")


def test_two_packages_with_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an environment taken from whichever package comes first on the path."""
    for name in ("first", "second"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[marl_flow.tasks]\nmygame/duel = {name}:Duel\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError,
        match=r"mygame/duel is an entry point of marl_flow.tasks in several packages \(first:Duel, second:Duel\)",
    ):
        envs.make("mygame/duel")


def test_own_tasks_are_known_and_families_are_not() -> None:
    """Catches data of the real game that are refused because a game that is not installed is believed to be here."""
    assert envs.knows("smac/3m") and envs.knows("mpe/simple_tag")
    assert not any(map(envs.knows, ("smac-sc2/3m", "mamujoco/v1/Ant/2x4", "smac/4m", "mygame/duel")))
    assert envs.make("mpe/simple_spread").num_envs == 1
