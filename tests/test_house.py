"""The house rules, checked on the source: which way imports go, what no file may call, what the wheel carries."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("marl_flow", "envs", "datasets", "baselines", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

BOTTOM = {
    "interfaces",
    "config",
    "seeding",
    "normalize",
    "module_state",
    "policies",
    "tensors",
    "rollout",
    "files",
    "tasks",
    "plugins",
}
CORE = BOTTOM | {"algorithm"}
COFLOW = {
    "config": CORE,
    "network": CORE,
    "model": CORE | {"coflow/config", "coflow/network"},
    "loss": CORE | {"coflow/config", "coflow/model"},
    "inputs": CORE | {"coflow/config", "coflow/loss", "coflow/model"},
    "sampler": CORE,
    "policy": CORE | {"coflow/inputs", "coflow/model", "coflow/sampler"},
    "released_weights": CORE | {"coflow/model"},
    "algorithm": CORE | {"coflow"},
}
EVERYTHING = {"*"}
MAY_IMPORT = {  # file or folder of ours -> files and folders of ours it may import; the longest entry that fits counts
    "__init__": {"api", "datasets", "envs", "results"},
    "interfaces": set(),
    "seeding": set(),
    "config": {"interfaces"},
    "tasks": {"interfaces", "config"},
    "normalize": {"interfaces", "config"},
    "tensors": set(),
    "rollout": {"interfaces"},
    "files": {"interfaces"},
    "progress": set(),
    "run_folder": BOTTOM,
    "module_state": set(),
    "plugins": {"interfaces"},
    "policies": {"interfaces"},
    "algorithm": BOTTOM,
    "checks": BOTTOM | {"algorithm", "datasets"},
    "checkpoint": BOTTOM | {"algorithm", "run_folder"},
    "run_log": BOTTOM,
    "evaluation": BOTTOM | {"algorithm", "run_log", "checkpoint", "progress"},
    "training": BOTTOM | {"algorithm", "run_folder", "run_log", "checkpoint", "progress"},
    **{f"coflow/{name}": allowed for name, allowed in COFLOW.items()},
    "coflow/__init__": set(),
    "results": EVERYTHING,
    "api": EVERYTHING,
    "cli": EVERYTHING,
    "cli_data": EVERYTHING,
    "__main__": EVERYTHING,
    "commands": EVERYTHING,
    "envs": BOTTOM | {"envs"},
    "envs/base": BOTTOM,
    "envs/mpe": BOTTOM | {"envs/base", "envs/mpe"},
    "envs/smac": BOTTOM | {"envs/base", "envs/smac"},
    "envs/mamujoco": BOTTOM | {"envs/base", "envs/mamujoco", "envs/pettingzoo"},
    "datasets": BOTTOM | {"datasets"},
    "baselines": CORE | {"baselines/networks"},
    "benchmarks": EVERYTHING,
}
MAY_PRINT = {"marl_flow/cli.py", "marl_flow/cli_data.py", "benchmarks/speed/__main__.py"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module a file imports, anywhere in it, as a dotted name; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its dotted name, `x.y.f` or `f`; an unnamed receiver reads `?`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            parts, target = [], node.func
            while isinstance(target, ast.Attribute):
                parts.append(target.attr)
                target = target.value
            parts.append(target.id if isinstance(target, ast.Name) else "?")
            yield ".".join(reversed(parts)), node


def parsed() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield name_of(path), ast.parse(path.read_text(encoding="utf-8"))


def is_within(name: str, entry: str) -> bool:
    """Whether a file or folder is the entry, or inside it."""
    return name == entry or name.startswith(f"{entry}/")


def direction_faults(name: str, tree: ast.AST) -> list[str]:
    stem = name.removesuffix(".py").removeprefix("marl_flow/")
    rules = [entry for entry in MAY_IMPORT if is_within(stem, entry)]
    if not rules:
        return [f"{name}: has no entry in MAY_IMPORT; decide what it may import"]
    allowed = MAY_IMPORT[max(rules, key=len)]
    faults = []
    for module in imports(tree):
        first, _, inside = module.partition(".")
        imported = inside.replace(".", "/")
        if first in PACKAGES[1:]:
            faults.append(f"{name}: `{module}` is imported outside marl_flow (a second copy, or another library)")
        elif first == "marl_flow" and allowed != EVERYTHING and not any(is_within(imported, a) for a in allowed):
            faults.append(f"{name}: must not import {module}")
    return faults


DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "normal", "bernoulli", "poisson"}
DRAWS_IN_PLACE = {
    "normal_",
    "uniform_",
    "random_",
    "bernoulli_",
    "exponential_",
    "cauchy_",
    "log_normal_",
    "geometric_",
}


def random_faults(name: str, tree: ast.AST) -> list[str]:
    """Draws from a global generator. Initialisers of torch.nn are exempt: they run inside `seeding.global_scope`."""
    faults = [
        f"{name}: imports the global module random" for module in imports(tree) if module.split(".")[0] == "random"
    ]
    for called, node in calls(tree):
        head, _, last = called.rpartition(".")
        has_generator = any(keyword.arg == "generator" for keyword in node.keywords)
        like = head == "torch" and last.startswith("rand") and last.endswith("_like")  # takes no generator
        drawn = (head == "torch" and last in DRAWS) or (last in DRAWS_IN_PLACE and not head.endswith("init"))
        if like or (drawn and not has_generator):
            faults.append(f"{name}:{node.lineno}: {called} without a generator")
        elif head in ("np.random", "numpy.random") and (
            last not in ("default_rng", "Generator", "PCG64") or not node.args
        ):
            faults.append(f"{name}:{node.lineno}: {called} draws from, or seeds, global or unknown state")
        elif name != "marl_flow/seeding.py" and (
            called == "torch.manual_seed" or head in ("torch.random", "torch.cuda.random")
        ):
            faults.append(f"{name}:{node.lineno}: {called} belongs in seeding.py")
    return faults


def call_faults(name: str, tree: ast.AST) -> list[str]:
    banned = {"eval", "exec", "breakpoint"} | (set() if name in MAY_PRINT else {"print"})
    return [f"{name}:{node.lineno}: calls {called}" for called, node in calls(tree) if called in banned]


def test_imports_go_one_way() -> None:
    """Catches a simulator reaching into an algorithm, baselines into each other, and `import envs`."""
    assert [fault for name, tree in parsed() for fault in direction_faults(name, tree)] == []


def test_no_file_of_the_packages_prints_or_evaluates_text() -> None:
    """Catches print debugging, and names resolved by eval or exec."""
    assert [fault for name, tree in parsed() for fault in call_faults(name, tree)] == []


def test_randomness_comes_from_a_generator() -> None:
    """Catches numbers drawn from global state, which make a run depend on what ran before it."""
    assert [fault for name, tree in parsed() for fault in random_faults(name, tree)] == []


@pytest.mark.parametrize(
    ("check", "name", "text"),
    [
        (direction_faults, "envs/mpe.py", "from marl_flow.datasets import store"),
        (direction_faults, "envs/mpe.py", "def f():\n    import marl_flow.coflow.algorithm"),
        (direction_faults, "baselines/bc.py", "from marl_flow.baselines.ma_td3_bc import MATD3BC"),
        (direction_faults, "benchmarks/report.py", "import envs"),
        (direction_faults, "benchmarks/report.py", "from datasets import load"),
        (direction_faults, "marl_flow/new_room.py", "import torch"),
        (call_faults, "envs/mpe.py", "print(1)"),
        (call_faults, "marl_flow/cli.py", "eval('1')"),
        (random_faults, "envs/mpe.py", "import random"),
        (random_faults, "envs/mpe.py", "import torch\ntorch.rand(3)"),
        (random_faults, "envs/mpe.py", "import torch\ntorch.randn_like(x, dtype=d)"),
        (random_faults, "envs/mpe.py", "x.uniform_(0, 1)"),
        (random_faults, "envs/mpe.py", "np.random.normal(3)"),
        (random_faults, "envs/mpe.py", "np.random.default_rng()"),
        (random_faults, "envs/mpe.py", "torch.manual_seed(0)"),
    ],
)
def test_the_checks_see_what_they_look_for(check, name: str, text: str) -> None:
    """Catches a check that passes everything."""
    assert len(check(name, ast.parse(text))) == 1


def test_every_config_field_is_read() -> None:
    """Catches options that reach nothing: every field of a *Config dataclass is read outside its own validation."""
    fields, read = set(), set()
    for _, tree in parsed():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                fields |= {
                    (node.name, item.target.id)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
                checks = [
                    item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__post_init__"
                ]
                own = {id(inner) for check in checks for inner in ast.walk(check)}
                read |= {i.attr for i in ast.walk(node) if isinstance(i, ast.Attribute) and id(i) not in own}
        outside = [node for node in tree.body if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config"))]
        read |= {i.attr for node in outside for i in ast.walk(node) if isinstance(i, ast.Attribute)}
    assert fields, "no config was found: the check looks in the wrong place"
    assert sorted((kind, name) for kind, name in fields if name not in read) == []


def test_files_name_no_machine() -> None:
    """Catches absolute paths of somebody's machine and package-index addresses in anything that is shipped."""
    places = "|".join(["home", "root", "work", "Users", "mnt", "opt"])
    banned = re.compile(rf"(?<![\w.~:/-])/(?:{places})/\w|--(?:extra-)?index-url|https?://[^\s/]*pypi")
    suffixes = {".py", ".md", ".cfg", ".toml", ".txt", ".csv", ".yaml", ".yml", ".cff", ".json"}
    skipped = {".git", ".venv", "runs", "build", "dist", "__pycache__"}
    found = []
    for path in sorted(ROOT.rglob("*")):
        if skipped & set(path.relative_to(ROOT).parts) or not path.is_file():
            continue
        if path.suffix in suffixes or path.name in ("Makefile", "run"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if banned.search(line):
                    found.append(f"{name_of(path)}:{number}: {line.strip()}")
    assert found == []


HEAVY = ("matplotlib", "tyro", "PIL", "gymnasium", "pettingzoo", "mpe2", "mujoco", "pygame", "smac", "smacv2")


def loaded_by(statement: str) -> set[str]:
    """Which heavy libraries a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nsys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()} & {*HEAVY, "torch", "tensorboard"}


def test_importing_the_package_loads_nothing() -> None:
    """Catches work at import: the bare package must not even load torch."""
    assert loaded_by("import marl_flow") == set()


def test_importing_every_folder_loads_no_simulator_plotting_or_cli_library() -> None:
    """Catches an optional library imported at the top of a module that the core needs."""
    core = [f"marl_flow.{path.stem}" for path in sorted((ROOT / "marl_flow").glob("*.py"))]
    core = [
        name
        for name in core
        if name.rpartition(".")[2] not in ("__init__", "__main__", "cli", "cli_data", "quickstart", "doctor")
    ]
    modules = [*core, *(f"marl_flow.{package}" for package in PACKAGES[1:])]
    assert loaded_by("import " + ", ".join(modules)) <= {"torch"}


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built from a copy of the checkout, its links kept, or from the sdist made of that copy."""
    pytest.importorskip("setuptools", reason="building the wheel needs setuptools in this environment")
    copy = tmp_path_factory.mktemp("checkout") / "copy"
    drop = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info", "tests", "docs")
    shutil.copytree(ROOT, copy, ignore=drop, symlinks=True)
    source = copy
    if request.param == "sdist":
        command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(copy), str(copy)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        (source,) = copy.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(copy)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, text=True)
    (built,) = copy.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_a_copy_without_links_says_so(tmp_path: Path) -> None:
    """Catches a zip or a Windows checkout, whose links are text files, that fails with a word about nothing."""
    for place in ("marl_flow/__init__.py", "marl_flow/envs"):
        target = tmp_path / place
        target.parent.mkdir(exist_ok=True)
        target.write_text((ROOT / place).read_text() if place.endswith(".py") else "../envs")
    command = [sys.executable, "-c", "import marl_flow"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "are symbolic links" in done.stderr


def test_the_folders_are_linked_into_the_package() -> None:
    """Catches a checkout without its links, in which tools and a bare clone find no `marl_flow.envs`."""
    for package in PACKAGES[1:]:
        link = ROOT / "marl_flow" / package
        assert link.is_symlink() and link.readlink() == Path("..") / package


def test_the_wheel_carries_every_module_and_data_file(wheel: set[str]) -> None:
    """Catches a nested package or data file that works editable and is gone once installed, or lost in the sdist."""
    expected = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                inside = path.relative_to(ROOT).as_posix()
                expected.add(inside if package == "marl_flow" else f"marl_flow/{inside}")
    assert (
        "marl_flow/benchmarks/published/published_results.csv" in expected and "marl_flow/envs/__init__.py" in expected
    )
    assert sorted(expected - wheel) == []


def test_the_wheel_puts_nothing_generic_into_site_packages(wheel: set[str]) -> None:
    """Catches a top-level `datasets` or `envs` beside marl_flow, and tests or runs shipped by accident."""
    assert {name.partition("/")[0] for name in wheel if ".dist-info/" not in name} == {"marl_flow"}
    assert not [name for name in wheel if "/tests/" in name or "/runs/" in name]
