"""Installed in each of four ways, the package imports, finds its data files and brings its command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("wheel", "sdist", "editable", "git")

PROBE = """
import importlib, json, sys
from importlib.resources import files

import marl_flow

names = ["envs.mpe.env", "envs.smac.env", "envs.mamujoco.env", "datasets.native", "baselines.bc",
         "benchmarks.report", "coflow.algorithm", "commands.train"]
data = {
    "marl_flow.envs.mpe": "weights/*.safetensors",
    "marl_flow.datasets": "policies/*.safetensors",
    "marl_flow.benchmarks": "published/*.csv",
}
for name in names:
    importlib.import_module(f"marl_flow.{name}")
from marl_flow import envs
from marl_flow.benchmarks import suite

envs.make("mpe/simple_tag", 1).reset([0])  # reads the shipped prey
assert suite.dataset_means()
found = {package: sorted(path.name for path in files(package).glob(pattern)) for package, pattern in data.items()}
json.dump({"file": marl_flow.__file__, "data": found}, sys.stdout)
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout, its links kept."""
    copy = tmp_path / "checkout"
    drop = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info", "tests", "docs")
    shutil.copytree(ROOT, copy, ignore=drop, symlinks=True)
    return copy


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A virtual environment's folder with the packages of this one, except this package: the path is added without the
    `.pth` files on it, of which an editable installation is one."""
    folder = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "packages_of_the_tests.pth").write_text("\n".join(sorted(paths)) + "\n")
    return folder


def source(way: str, checkout: Path) -> list[str]:
    """What `pip install` is given."""
    if way == "editable":
        return ["--editable", str(checkout)]
    if way == "git":
        run("git", "init", "--quiet", cwd=checkout)
        run("git", "add", "--all", cwd=checkout)
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        run("git", *identity, "commit", "--quiet", "--no-verify", "--message", "everything", cwd=checkout)
        return [f"git+file://{checkout}"]
    run(sys.executable, "-m", "build", f"--{way}", "--no-isolation", "--outdir", checkout / "dist", checkout)
    (built,) = (checkout / "dist").iterdir()
    return [str(built)]


def names(folder: str, pattern: str) -> list[str]:
    """What the checkout has; at least one file."""
    found = sorted(path.name for path in (ROOT / folder).glob(pattern))
    assert found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_installed_package_works(way: str, checkout: Path, fresh: Path, tmp_path: Path) -> None:
    """Catches modules or data files that one way of installing loses: links that an archive or git drops, a package
    that is not listed, weights that are read from the checkout."""
    pip = (sys.executable, "-m", "pip", "--python", fresh / "bin/python", "install", "--quiet")
    run(*pip, "--no-deps", "--no-build-isolation", "--disable-pip-version-check", *source(way, checkout), cwd=tmp_path)
    if way != "editable":
        shutil.rmtree(checkout)  # what is installed must not need it
    found = json.loads(run(fresh / "bin/python", "-I", "-c", PROBE, cwd=tmp_path))
    expected_root = checkout if way == "editable" else fresh
    assert Path(found["file"]).resolve().is_relative_to(expected_root.resolve())
    assert found["data"] == {
        "marl_flow.envs.mpe": names("envs/mpe/weights", "*.safetensors"),
        "marl_flow.datasets": names("datasets/policies", "*.safetensors"),
        "marl_flow.benchmarks": names("benchmarks/published", "*.csv"),
    }
    assert "train" in run(fresh / "bin/marl-flow", "--help", cwd=tmp_path)
