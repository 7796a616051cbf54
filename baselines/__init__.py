"""The methods by name: those of the suite, those that installed packages offer, and any `module:Class`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marl_flow.algorithm import Algorithm

_CLASSES = (
    ("coflow", "marl_flow.coflow.algorithm", "CoFlow"),
    ("bc", "marl_flow.baselines.bc", "BehaviourCloning"),
    ("ma_td3_bc", "marl_flow.baselines.ma_td3_bc", "MATD3BC"),
    ("random", "marl_flow.baselines.random_policy", "RandomChoice"),
)
NAMES = tuple(name for name, _, _ in _CLASSES)
PUBLISHED_ONLY = ("omar", "madiff", "dof", "madt", "ma_cql", "ma-cql", "cql", "ma_icq", "ma-icq", "icq", "qmix", "iql")
"""Methods that people ask for, and that are here as published numbers at most."""


def get(name: str) -> type[Algorithm]:
    """The algorithm class of that name; only its module is imported.

    A name of the suite (`NAMES`), one that an installed package offers under the entry point group
    `marl_flow.algorithms`, or `module:Class`. The suite's own names come first.
    """
    from marl_flow.algorithm import ENTRY_POINTS, Algorithm
    from marl_flow.config import nearest
    from marl_flow.interfaces import UserError
    from marl_flow.plugins import load_object, offered_names, offered_reference

    own = {known: f"{module}:{attribute}" for known, module, attribute in _CLASSES}
    reference = own.get(name) or (name if ":" in name else offered_reference(ENTRY_POINTS, name))
    if reference is None and name.lower() in PUBLISHED_ONLY:
        raise UserError(
            f"{name.upper()} is not implemented (reports show published results of other methods beside yours); the "
            f"methods here are {', '.join(NAMES)}, and your own as module:Class"
        )
    if reference is None:
        raise UserError(
            f"unknown algorithm {name!r}; {nearest(name, (*NAMES, *offered_names(ENTRY_POINTS)))}; one of your own "
            "is named module:Class, e.g. my_methods:MyMethod"
        )
    found = load_object(reference, example="my_methods:MyMethod")
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(f"{reference}: expected a subclass of marl_flow.algorithm.Algorithm, found {found!r}")
    missing = [member for member in ("name", "presets") if not getattr(found, member, None)]
    if missing:
        raise UserError(
            f"{reference} lacks {' and '.join(missing)}; see marl_flow.algorithm, and marl_flow.checks.check_algorithm"
        )
    return found
