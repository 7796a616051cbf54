"""The methods of the suite by name. Only the module asked for is imported."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marl_flow.interfaces import Algorithm

_CLASSES = (
    ("coflow", "marl_flow.coflow.algorithm", "CoFlow"),
    ("bc", "marl_flow.baselines.bc", "BehaviourCloning"),
    ("ma_td3_bc", "marl_flow.baselines.ma_td3_bc", "MATD3BC"),
    ("random", "marl_flow.baselines.random_policy", "RandomChoice"),
)
NAMES = tuple(name for name, _, _ in _CLASSES)


def get(name: str) -> type[Algorithm]:
    """The algorithm class of that name."""
    from marl_flow.config import nearest
    from marl_flow.interfaces import UserError

    for known, module, kind in _CLASSES:
        if known == name:
            return getattr(importlib.import_module(module), kind)
    raise UserError(f"unknown algorithm {name!r}; {nearest(name, NAMES)}")
