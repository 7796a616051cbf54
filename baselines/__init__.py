"""The methods by name: those of the suite, those that installed packages offer, and any `module:Class`."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marl_flow.algorithm import Algorithm

_CLASSES = (
    ("coflow", "marl_flow.coflow.algorithm", "CoFlow"),
    ("bc", "marl_flow.baselines.bc", "BehaviourCloning"),
    ("ma_td3_bc", "marl_flow.baselines.ma_td3_bc", "MATD3BC"),
    ("random", "marl_flow.baselines.random_policy", "RandomChoice"),
)
NAMES = tuple(name for name, _, _ in _CLASSES)


def get(name: str) -> type[Algorithm]:
    """The algorithm class of that name; only its module is imported.

    A name of the suite (`NAMES`), one that an installed package offers under the entry point group
    `marl_flow.algorithms`, or `module:Class`. The suite's own names come first.
    """
    from marl_flow.algorithm import ENTRY_POINTS
    from marl_flow.config import nearest
    from marl_flow.interfaces import UserError

    offered = {entry.name: entry.value for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    places = offered | {known: f"{module}:{attribute}" for known, module, attribute in _CLASSES}
    if name not in places and ":" not in name:
        raise UserError(
            f"unknown algorithm {name!r}; {nearest(name, places)}; one of your own is named module:Class, e.g. "
            "my_methods:MyMethod"
        )
    return _loaded(name, places.get(name, name))


def _loaded(name: str, place: str) -> type[Algorithm]:
    from marl_flow.algorithm import Algorithm
    from marl_flow.interfaces import UserError

    module, _, path = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"algorithm {name!r}: expected a Python module {module!r} that can be imported, found: {error}; "
            "install it, or run the command in the folder that holds it"
        ) from error
    for attribute in path.split("."):
        found = getattr(found, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(
            f"algorithm {name!r}: expected {path!r} in {module} to be a subclass of marl_flow.algorithm.Algorithm, "
            f"found {'nothing of that name' if found is None else repr(found)}"
        )
    missing = [member for member in ("name", "presets") if not getattr(found, member, None)]
    if missing:
        raise UserError(
            f"algorithm {name!r}: {place} lacks {' and '.join(missing)}; see marl_flow.algorithm, and "
            "marl_flow.checks.check_algorithm"
        )
    return found
