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
TOLERANCE = 1e-5  # by which a continuous action may exceed its bounds: rounding to float32
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


def check_values(
    spec: TaskSpec, arrays: Mapping[str, np.ndarray], *, first_episode: int = 0, block: int = 1 << 20
) -> None:
    """Raises a UserError unless every number is finite and every action is one that its agent could take there.

    `first_episode` is the number that messages give to the arrays' first episode.
    """
    for name, array in arrays.items():
        is_choice = name == "actions" and spec.action.is_discrete
        if array.dtype.kind != "f" and not is_choice:
            continue
        flat = array.reshape(-1)
        for start in range(0, len(flat), block):  # in blocks that stay in the processor's cache
            values = flat[start : start + block]
            wrong = (values < 0) | (values >= spec.action.size) if is_choice else ~np.isfinite(values)
            if wrong.any():
                at = start + int(np.argmax(wrong))
                where = [int(index) for index in np.unravel_index(at, array.shape)]
                wanted = f"choices from 0 to {spec.action.size - 1}" if is_choice else "finite numbers"
                raise UserError(f"{name}: expected {wanted}, found {flat[at]} at {where}")
    _check_actions(spec, arrays, first_episode, block)


def _check_actions(spec: TaskSpec, arrays: Mapping[str, np.ndarray], first_episode: int, block: int) -> None:
    """Raises unless continuous actions are within the bounds, and discrete ones legal where there are masks.

    Choices must be in range already. Masks of final frames, where nobody acts, may say anything.
    """
    actions, offsets, masks = arrays["actions"], arrays["offsets"], arrays.get("action_mask")
    if spec.action.is_discrete and masks is None:
        return
    low = np.array(spec.action.low, dtype=np.float32) - np.float32(TOLERANCE)
    high = np.array(spec.action.high, dtype=np.float32) + np.float32(TOLERANCE)
    rows = max(1, block // (spec.num_agents * spec.action.size))
    for start in range(0, len(actions), rows):
        part = actions[start : start + rows]
        if masks is None:
            wrong = (part < low) | (part > high)  # [rows, N, A]
        else:
            steps = np.arange(start, start + len(part))
            legal = masks[steps + np.searchsorted(offsets, steps, side="right") - 1]  # [rows, N, A]
            wrong = ~np.take_along_axis(legal, part[..., None].astype(np.int64), axis=-1)[..., 0]  # [rows, N]
        if wrong.any():
            row, agent = (int(index) for index in np.argwhere(wrong)[0, :2])
            episode = int(np.searchsorted(offsets, start + row, side="right")) - 1
            where = (
                f"episode {first_episode + episode}, step {start + row - int(offsets[episode])}, {spec.agents[agent]}"
            )
            found = part[row, agent].tolist()
            if masks is None:
                wanted = f"numbers from {list(spec.action.low)} to {list(spec.action.high)}"
            elif legal[row, agent].any():
                wanted = f"one of the legal choices {np.flatnonzero(legal[row, agent]).tolist()}"
            else:
                raise UserError(f"action_mask: expected at least one legal choice, found none at {where}")
            raise UserError(f"actions: expected {wanted}, found {found} at {where}")


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
