"""The arrays of an episode store: their names, what makes them well formed, and returns computed on them.

The layout itself is drawn in store.py, beside `EpisodeStore`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from marl_flow.interfaces import TaskSpec, UserError

FRAME_ARRAYS = ("observations", "state", "action_mask")  # T + 1 rows per episode; the other long ones have T
REQUIRED = ("observations", "actions", "rewards", "offsets", "terminated")
ARRAYS = (*REQUIRED, "state", "action_mask")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")  # what torch can index with


def check_structure(spec: TaskSpec, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a UserError unless the arrays have the dtypes and shapes of `EpisodeStore` and fit each other."""
    agents, action = spec.num_agents, spec.action
    offsets = arrays["offsets"]
    if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) < 2:
        raise UserError(f"offsets: expected int64 [episodes + 1], found {offsets.dtype} {list(offsets.shape)}")
    wrong = np.flatnonzero(np.diff(offsets, prepend=-1) < 1) if offsets[0] == 0 else np.zeros(1, dtype=int)
    if wrong.size:
        raise UserError(
            "offsets: expected to start at 0 and to rise by at least one step per episode, "
            f"found {offsets[wrong[0]]} at position {wrong[0]}"
        )
    episodes, steps = len(offsets) - 1, int(offsets[-1])
    frames = steps + episodes
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "observations": (("float32",), (frames, agents, spec.observation_size)),
        "actions": (INTEGERS, (steps, agents)) if action.is_discrete else (("float32",), (steps, agents, action.size)),
        "rewards": (("float32",), (steps, agents)),
        "terminated": (("bool",), (episodes,)),
        "action_mask": (("bool",), (frames, agents, action.size)),
        "state": (("float32",), (frames, spec.state_size or 0)),
    }
    if "state" in arrays and spec.state_size is None:
        raise UserError(f"state: task {spec.task_id} has none, found an array {list(arrays['state'].shape)}")
    for name, (dtypes, shape) in expected.items():
        array = arrays.get(name)
        if array is not None and (str(array.dtype) not in dtypes or array.shape != shape):
            raise UserError(
                f"{name}: expected {' or '.join(dtypes)} {list(shape)} ({episodes} episodes, {steps} steps, "
                f"{agents} agents of {spec.task_id}), found {array.dtype} {list(array.shape)}"
            )


def check_values(spec: TaskSpec, arrays: Mapping[str, np.ndarray], block: int = 1 << 20) -> None:
    """Raises a UserError unless every number is finite and every discrete choice is one of the task's."""
    for name, array in arrays.items():
        is_choice = name == "actions" and spec.action.is_discrete
        if array.dtype.kind != "f" and not is_choice:
            continue
        flat = array.reshape(-1)
        for start in range(0, len(flat), block):  # in blocks that stay in the processor's cache
            part = flat[start : start + block]
            wrong = (part < 0) | (part >= spec.action.size) if is_choice else ~np.isfinite(part)
            if wrong.any():
                at = start + int(np.argmax(wrong))
                where = [int(index) for index in np.unravel_index(at, array.shape)]
                wanted = f"choices from 0 to {spec.action.size - 1}" if is_choice else "finite numbers"
                raise UserError(f"{name}: expected {wanted}, found {flat[at]} at {where}")


def returns_to_go(rewards: np.ndarray, offsets: np.ndarray, discount: float) -> np.ndarray:
    """Discounted sum of rewards [sum T, N] from each step to the end of its episode, [sum T, N] float32.

    Runs backwards in time over all episodes at once; sums are kept in float64.
    """
    lengths = np.diff(offsets)
    longest_first = np.argsort(-lengths, kind="stable")
    first, lengths = offsets[:-1][longest_first], lengths[longest_first]
    running = np.zeros((len(lengths), rewards.shape[1]))
    result = np.empty(rewards.shape, dtype=np.float32)
    for t in range(int(lengths[0]) - 1, -1, -1):
        longer = int(np.searchsorted(-lengths, -t, side="left"))  # how many episodes have a step t
        rows = first[:longer] + t
        running[:longer] = rewards[rows] + discount * running[:longer]
        result[rows] = running[:longer]
    return result


def take_runs(array: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows first[k] to first[k] + counts[k] for every k, end to end: a view where the runs follow each other."""
    if (first[1:] == first[:-1] + counts[:-1]).all():
        return array[first[0] : first[-1] + counts[-1]]
    begin = np.cumsum(counts) - counts
    return array[np.arange(counts.sum()) + np.repeat(first - begin, counts)]
