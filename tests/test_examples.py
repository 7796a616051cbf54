"""Every example runs as a user would run it, at a tiny size: scripts as programs, the notebook in a kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = {
    "train_and_evaluate.py": ["--updates", "3", "--episodes", "4", "--out", "runs/small"],
    "sweep_over_k.py": ["--updates", "3", "--episodes", "4", "--k", "1", "2"],
    "load_results.py": ["runs", "--picture", "returns.png"],
    "play_policy.py": ["runs/small/bc", "--episodes", "2"],
    "own_environment.py": ["--updates", "3", "--data-episodes", "20", "--episodes", "4"],
    "own_vector_env.py": ["--updates", "3", "--data-episodes", "20", "--episodes", "4"],
    "own_method.py": ["--dataset", "mpe/simple_spread/expert", "--updates", "3", "--episodes", "4"],
    "own_data.py": ["--updates", "3", "--data-episodes", "20", "--episodes", "4"],
}
"""In the order in which they run: later ones read what earlier ones left in the folder."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder to run in, beside it small data."""
    from marl_flow.commands.data import build_dataset

    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARL_FLOW_DATA", str(folder / "data"))
        build_dataset("mpe/simple_spread/expert", episodes=40)
    return folder


def variables(place: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    threads = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::FutureWarning"}
    return {**os.environ, "MARL_FLOW_DATA": str(place / "data"), "PYTHONPATH": path, **threads, **more}


def test_the_list_is_whole() -> None:
    """Catches an example that no test runs, or that the page of examples does not show."""
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == set(SCRIPTS)
    page = (ROOT / "docs/examples.md").read_text(encoding="utf-8")
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]:
        assert f"(../examples/{path.name})" in page, f"docs/examples.md does not show {path.name}"


@pytest.mark.slow
def test_scripts_run(place: Path) -> None:
    """Catches a script that a user would copy and that does not run, or leaves nothing behind."""
    for name, arguments in SCRIPTS.items():
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        done = subprocess.run(
            command, cwd=place, env=variables(place), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{name} printed nothing"
    assert (place / "runs/small/report/report.md").is_file()
    assert (place / "returns.png").is_file()
    assert (place / "data/user/mygame/rendezvous/noisy-v1/manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_data.py", "own_environment.py", "own_vector_env.py"])
def test_scripts_that_make_data_run_again(place: Path, name: str) -> None:
    """Catches a script that fails the second time, because its dataset is there already."""
    command = [sys.executable, str(EXAMPLES / name), *SCRIPTS[name], "--out", f"runs/again/{name}"]
    for time in ("first", "second"):
        done = subprocess.run(
            command, cwd=place, env=variables(place), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{name}, {time} time\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_results_of_different_settings_are_not_averaged(place: Path) -> None:
    """Catches a table that mixes runs of different budgets into one line; training seeds of one setting share one."""
    settings = {"a": ("3", "0"), "b": ("3", "1"), "c": ("4", "0")}
    for folder, (updates, seed) in settings.items():
        train = ["train", "mpe/simple_spread/expert", "bc", f"updates={updates}", "--seed", seed]
        for words in ([*train, "--out", f"runs/mixed/{folder}"], ["eval", f"runs/mixed/{folder}", "--episodes", "4"]):
            command = [sys.executable, "-m", "marl_flow", *words]
            subprocess.run(command, cwd=place, env=variables(place), capture_output=True, timeout=300, check=True)
    command = [sys.executable, str(EXAMPLES / "load_results.py"), "runs/mixed", "--picture", "mixed.png"]
    done = subprocess.run(
        command, cwd=place, env=variables(place), capture_output=True, text=True, timeout=300, check=True
    )
    header, *lines = done.stdout.splitlines()[:-1]  # the last names the picture
    at = header.split().index("training_seeds")
    assert [line.split()[at] for line in lines] in (["2", "1"], ["1", "2"])


@pytest.mark.slow
def test_the_notebook_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cell that fails, and a notebook that was committed with its outputs."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "first_look.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    for name, value in variables(place, UPDATES="3", EPISODES="4").items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("text/html" in output.get("data", {}) for output in shown), "the table of results is missing"
