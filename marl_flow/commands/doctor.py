"""What this machine has, what is wrong with it and how to fix it: the findings of `marl-flow doctor`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MIN_FREE_GIB = 2.0
"""Below this much free disk a build of datasets or a long run is likely to fail."""

OPTIONAL = {  # import name -> (what it is for, how to get it)
    "tensorstore": ("importing OG-MARL vaults", 'pip install "marl_flow[vault]"'),
    "minari": ("importing and exporting Minari datasets", 'pip install "marl_flow[minari]"'),
    "mpe2": ("cross-checks of the particle tasks against MPE2", 'pip install "mpe2>=1.1"'),
    "smacv2": ("the real StarCraft II game", "see github.com/oxwhirl/smacv2; it also needs StarCraft II itself"),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check. Of a problem, `advice` or the end of `message` says how to fix it."""

    level: Literal["ok", "absent", "problem"]
    subject: str
    message: str
    advice: str = ""


def findings() -> Iterator[Finding]:
    """Every check, in reading order; none of them changes anything."""
    yield Finding(level="ok", subject="python", message=f"{platform.python_version()} at {sys.executable}")
    yield from _libraries()
    yield from _devices()
    yield _compiler()
    yield from _data()
    yield from _optional()


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match.group().split("."))) if match else ()


def library(requirement: str, tested: dict[str, str]) -> Finding | None:
    """A finding about one requirement `name>=version`; None when the line is for an extra."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+)\s*(?:>=\s*([\w.]+))?", requirement)
    if match is None:
        return None
    name, minimum = match.group(1), match.group(2) or "0"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        advice = f'pip install "{requirement}"'
        return Finding(level="problem", subject=name, message="not installed", advice=advice)
    if release(version) < release(minimum):
        advice = f'pip install --upgrade "{requirement}"'
        return Finding(level="problem", subject=name, message=f"{version}, older than {minimum}", advice=advice)
    tested_version = tested.get(name.lower())
    same = tested_version is None or release(version) == release(tested_version)
    return Finding(
        level="ok", subject=name, message=version if same else f"{version} (the tests ran with {tested_version})"
    )


def _libraries() -> Iterator[Finding]:
    constraints = Path(__file__).resolve().parents[1] / "constraints.txt"  # beside a checkout, not in a wheel
    tested: dict[str, str] = {}
    if constraints.is_file():
        lines = constraints.read_text(encoding="utf-8").splitlines()
        tested = {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}
    for requirement in importlib.metadata.requires("marl_flow") or []:
        finding = library(requirement, tested)
        if finding is not None:
            yield finding


def _devices() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    yield Finding(level="ok", subject="cpu", message=f"{cores} cores, torch uses {threads} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            yield Finding(level="ok", subject=f"cuda:{index}", message=f"{properties.name}, {memory:.0f} GiB")
    elif torch.version.cuda is not None:
        advice = "check the driver with nvidia-smi; everything also runs with --device cpu"
        message = f"torch is built for CUDA {torch.version.cuda} but sees no device"
        yield Finding(level="absent", subject="cuda", message=message, advice=advice)
    else:
        yield Finding(level="absent", subject="cuda", message="torch is a CPU build; everything runs with --device cpu")


def _compiler() -> Finding:
    from marl_flow.training import CXX, cpp_compiler

    compiler = cpp_compiler()
    if compiler is None:
        name = os.environ.get("CXX") or CXX
        advice = "only compile=true needs one: install it, or name another in the variable CXX"
        return Finding(level="absent", subject="compiler", message=f"no C++ compiler ({name})", advice=advice)
    return Finding(level="ok", subject="compiler", message=f"{compiler}, for compile=true")


def _data() -> Iterator[Finding]:
    from marl_flow.datasets import behaviour, catalog, native
    from marl_flow.datasets.store import open_store
    from marl_flow.interfaces import UserError

    root = catalog.data_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**30
    message = f"{root}, {free:.1f} GiB free"
    move = "set MARL_FLOW_DATA to another folder"
    if not os.access(existing, os.W_OK):
        yield Finding(level="problem", subject="data root", message=f"{root} cannot be written", advice=move)
    elif free < MIN_FREE_GIB:
        yield Finding(level="problem", subject="data root", message=message, advice=f"free some space, or {move}")
    else:
        yield Finding(level="ok", subject="data root", message=message)
    policies: dict[str, str | None] = {}
    for task_id, finding in _policies():
        path = behaviour.behaviour_file(task_id)
        policies[task_id] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        yield finding
    for name in (*catalog.CATALOG, *catalog.user_datasets()):
        entry, folder = catalog.find(name), catalog.folder_of(name)
        if not folder.exists() and not folder.is_symlink():
            if entry.dataset_id.origin == "native":
                yield Finding(level="absent", subject=name, message="not built; training builds it on first use")
            continue  # published data that are not here are `marl-flow data list`'s to show
        try:
            catalog.refuse_dangling(folder)
            store = open_store(folder, verify=False, dataset_id=name)
        except UserError as error:
            yield Finding(level="problem", subject=name, message=str(error))
            continue
        used, shipped = store.provenance.get("policy_sha256"), policies.get(entry.dataset_id.task_id)
        if used is not None and shipped is not None and used != shipped:
            message = "built from behaviour policies other than those of this version"
            advice = f"marl-flow data build {name} --force; runs that were trained on it keep their results"
            yield Finding(level="problem", subject=name, message=message, advice=advice)
        else:
            yield Finding(
                level="ok", subject=name, message=native.unlike_recipe(store) or f"{store.num_episodes:,} episodes"
            )


def _policies() -> Iterator[tuple[str, Finding]]:
    """Task and finding of each shipped file of behaviour policies; every quality in it must be readable."""
    from marl_flow.datasets import behaviour, catalog, native
    from marl_flow.interfaces import UserError

    names = [catalog.parse(name) for name in native.RECIPES]
    for task_id in dict.fromkeys(name.task_id for name in names):
        path, subject = behaviour.behaviour_file(task_id), f"policies of {task_id}"
        try:
            for name in names:
                if name.task_id == task_id and name.quality != "random":  # uniform actions, no network
                    behaviour.read_stack(path, name.quality)
        except UserError as error:
            yield task_id, Finding(level="problem", subject=subject, message=str(error))
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield task_id, Finding(level="ok", subject=subject, message=f"sha256 {digest[:16]}")


def _optional() -> Iterator[Finding]:
    for name, (purpose, install) in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            yield Finding(level="absent", subject=name, message=f"not installed; it is for {purpose}", advice=install)
        else:
            yield Finding(level="ok", subject=name, message=f"{importlib.metadata.version(name)}, for {purpose}")
