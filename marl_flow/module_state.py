"""Flat tensors of modules and optimisers, under names that a checkpoint file can hold, and strictly back again."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Stateful = Mapping[str, nn.Module | torch.optim.Optimizer]


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flat tensors of an optimiser: `state/<parameter>/<name>`, and `group/<index>/lr`, which schedules move.

    Other options of the groups belong to the config that built the optimiser and are not stored.
    """
    record = optimizer.state_dict()
    packed = {
        f"state/{parameter}/{name}": torch.as_tensor(value)
        for parameter, values in record["state"].items()
        for name, value in values.items()
        if value is not None
    }
    rates = {
        f"group/{i}/lr": torch.as_tensor(group["lr"], dtype=torch.float64)
        for i, group in enumerate(record["param_groups"])
    }
    return packed | rates


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    """Puts a packed state into an optimiser of the same parameters; anything missing, unknown or misshapen raises.

    A parameter without any state never had a gradient; the others must all carry the same entries.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rates = {f"group/{i}/lr" for i in range(len(groups))}
    state: dict[int, dict[str, Tensor]] = {}
    unknown = []
    for key, value in packed.items():
        match = re.fullmatch(r"state/(\d+)/(\w+)", key)
        if match and int(match[1]) < len(parameters):
            state.setdefault(int(match[1]), {})[match[2]] = value.clone()
        elif key not in rates:
            unknown.append(key)
    missing = sorted(rates - set(packed))
    entries = {name for values in state.values() for name in values}
    for index, values in state.items():
        missing += [f"state/{index}/{name}" for name in sorted(entries - set(values))]
        for name, value in values.items():
            if value.dim() and value.shape != parameters[index].shape:
                raise ValueError(
                    f"optimiser state/{index}/{name}: expected {list(parameters[index].shape)}, "
                    f"found {list(value.shape)}"
                )
    if unknown or missing:
        raise ValueError(f"optimiser state of {len(parameters)} parameters: missing {missing}, unknown {unknown}")
    rates_by_group = [{**group, "lr": float(packed[f"group/{i}/lr"])} for i, group in enumerate(groups)]
    optimizer.load_state_dict({"state": state, "param_groups": rates_by_group})


def pack_state(parts: Stateful, updates_done: int) -> dict[str, Tensor]:
    """Flat tensors `part/name` of named modules and optimisers, and `updates_done`."""
    state = {"updates_done": torch.tensor(updates_done)}
    for part, item in parts.items():
        values = item.state_dict() if isinstance(item, nn.Module) else pack_optimizer(item)
        state |= {f"{part}/{name}": value for name, value in values.items()}
    return state


def unpack_state(parts: Stateful, state: Mapping[str, Tensor]) -> int:
    """Puts a packed state back, strictly, and returns `updates_done`."""
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for key, value in state.items():
        part, _, name = key.partition("/")
        if part in found:
            found[part][name] = value
        elif key != "updates_done":
            raise ValueError(f"unknown entry {key!r}, expected updates_done and {', '.join(parts)}")
    for part, item in parts.items():
        if isinstance(item, nn.Module):
            item.load_state_dict(found[part])
        else:
            unpack_optimizer(item, found[part])
    return int(state["updates_done"])
