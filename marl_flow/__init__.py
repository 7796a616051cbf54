"""Offline multi-agent reinforcement learning benchmark suite around CoFlow (arXiv 2605.01457).

`train`, `evaluate`, `load_policy`, `results`, `envs` and `datasets` are imported when they are first used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if not (Path(__file__).parent / "envs" / "__init__.py").is_file():
    raise ImportError(
        "marl_flow is incomplete: its folders envs, datasets, baselines and benchmarks are symbolic links to those "
        "beside it, and this copy has none (an unpacked zip, or git with core.symlinks=false). Clone it with `git "
        "clone -c core.symlinks=true`, on Windows in developer mode, or install a wheel or sdist"
    )

if TYPE_CHECKING:
    from marl_flow import datasets, envs, results
    from marl_flow.api import evaluate, load_policy, train

    __version__: str

__all__ = ["__version__", "datasets", "envs", "evaluate", "load_policy", "results", "train"]


def __getattr__(name: str) -> Any:
    import importlib
    import importlib.metadata

    if name == "__version__":
        try:
            return importlib.metadata.version("marl_flow")
        except importlib.metadata.PackageNotFoundError:
            return "unknown (not installed)"
    if name in ("datasets", "envs", "results"):
        return importlib.import_module(f"marl_flow.{name}")
    if name in ("evaluate", "load_policy", "train"):
        return getattr(importlib.import_module("marl_flow.api"), name)
    raise AttributeError(f"module 'marl_flow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
