"""Datasets of a user's own, from arrays at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from marl_flow.datasets import catalog
from marl_flow.datasets.layout import FRAME_ARRAYS, check_values
from marl_flow.datasets.store import EpisodeStore, open_store
from marl_flow.datasets.writer import StoreWriter
from marl_flow.interfaces import TaskSpec, UserError

REQUIRED = ("observations", "actions", "rewards", "terminated")
OPTIONAL = ("state", "action_mask")
PIECE_STEPS = 50_000
"""Steps that are gathered before they are written, or one episode where that is longer: what bounds the memory."""


def write(
    dataset_id: str,
    episodes: Iterable[Mapping[str, Any]],
    spec: TaskSpec,
    *,
    root: Path | None = None,
    description: str = "",
    has_final_observation: bool = True,
) -> EpisodeStore:
    """Writes episodes as a new dataset `user/SUITE/TASK/NAME-vN` below `root` (None: the data root), whole or not at
    all, and opens it. `description` becomes part of its provenance.

    Every episode, of T steps of the task's N agents, is a mapping of arrays (NumPy, torch on the CPU, or lists):

        observations  [T + 1, N, O]   what every step saw, and the one after the last step
        actions       [T, N, A]       or integers [T, N] where actions are discrete
        rewards       [T, N]
        terminated    bool            whether the task's own rules ended it: false for a time limit
        state         [T + 1, S]      optional, in all episodes or none
        action_mask   [T + 1, N, A]   optional likewise, discrete actions only, true = legal

    With has_final_observation=False, observations, state and action_mask have T rows: what came after the last step is
    not known. `episodes` may be a generator: memory holds some of them only. What does not fit `spec`, is not finite or
    not legal is a UserError that names the episode.
    """
    provenance = {"made_by": "marl_flow.datasets.write", "description": description}
    writer = user_writer(dataset_id, spec, root, provenance, has_final_observation)
    with writer:
        for piece in _pieces(dataset_id, episodes, spec, has_final_observation):
            writer.append(piece)
        if not writer.num_episodes:
            raise UserError(f"{dataset_id}: expected at least one episode, found none")
    return open_store(writer.folder)


def user_writer(
    dataset_id: str,
    spec: TaskSpec,
    root: Path | None,
    provenance: Mapping[str, Any],
    has_final_observation: bool = True,
) -> StoreWriter:
    """A writer of a user's dataset; its id must name the task of `spec`, where an id can."""
    identity = catalog.find(dataset_id).dataset_id
    if identity.origin != "user":
        raise UserError(f"expected a name like user/{identity.task_id}/NAME-v1 for data of your own, got {dataset_id}")
    if spec.task_id != identity.task_id and catalog.is_task_id(spec.task_id):
        raise UserError(f"{dataset_id}: the data are of task {spec.task_id}; name them user/{spec.task_id}/NAME-v1")
    return StoreWriter(
        catalog.folder_of(dataset_id, root),
        spec=spec,
        dataset_id=str(identity),
        provenance=provenance,
        has_final_observation=has_final_observation,
    )


def _pieces(
    dataset_id: str, episodes: Iterable[Mapping[str, Any]], spec: TaskSpec, has_final_observation: bool
) -> Iterator[EpisodeStore]:
    """Checked episodes in stores of about PIECE_STEPS steps."""
    batch: list[EpisodeStore] = []
    names: set[str] = set()
    for number, episode in enumerate(episodes):
        try:
            arrays = _arrays(episode, spec, has_final_observation)
            names = names or set(arrays)
            if set(arrays) != names:
                raise UserError(f"expected {sorted(names)} as in the first episode, found {sorted(arrays)}")
            store = EpisodeStore(
                spec=spec, dataset_id=dataset_id, has_final_observation=has_final_observation, **arrays
            )
            if store.num_steps > spec.max_steps:
                raise UserError(f"expected at most {spec.max_steps} steps ({spec.task_id}), found {store.num_steps}")
            check_values(spec, arrays, first_episode=number)
        except UserError as error:
            raise UserError(f"{dataset_id}, episode {number}: {error}") from error
        batch.append(store)
        if sum(store.num_steps for store in batch) >= PIECE_STEPS:
            yield joined(batch)
            batch = []
    if batch:
        yield joined(batch)


def _arrays(episode: Mapping[str, Any], spec: TaskSpec, has_final_observation: bool) -> dict[str, Any]:
    """The arrays of a store that holds one episode; their shapes are still to be checked."""
    if not isinstance(episode, Mapping):
        raise UserError(f"expected a mapping from names to arrays, found {type(episode).__name__}")
    missing = [name for name in REQUIRED if name not in episode]
    unknown = [name for name in episode if name not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        raise UserError(
            f"expected the entries {', '.join(REQUIRED)} and perhaps {', '.join(OPTIONAL)}, found "
            f"{', '.join(map(str, episode))}"
        )
    given = {name: _array(name, value) for name, value in episode.items() if value is not None or name in REQUIRED}
    arrays: dict[str, Any] = {}
    if "action_mask" in given and not spec.action.is_discrete:
        raise UserError("action_mask: expected none, since the actions are continuous; leave it out")
    for name, array in given.items():
        if name != "terminated" and not array.ndim:
            raise UserError(f"{name}: expected an array with a first axis of time, found {array!r}")
        allowed, dtype = {
            "actions": ("iu", "int64") if spec.action.is_discrete else ("fiu", "float32"),
            "terminated": ("b", "bool"),
            "action_mask": ("b", "bool"),
        }.get(name, ("fiu", "float32"))
        if array.dtype.kind not in allowed:
            wanted = {"b": "true or false", "iu": "integers, one choice an agent"}.get(allowed, "numbers")
            raise UserError(f"{name}: expected {wanted}, found {array.dtype}")
        with np.errstate(over="ignore"):  # what float32 cannot hold is found to be infinite
            arrays[name] = array.astype(dtype)
        if name in FRAME_ARRAYS and not has_final_observation:
            arrays[name] = np.concatenate([arrays[name], arrays[name][-1:]])
    if given["terminated"].size != 1:
        raise UserError(f"terminated: expected one bool, found an array {list(given['terminated'].shape)}")
    steps = len(given["rewards"]) if given["rewards"].ndim else 0
    if len(given["observations"]) == steps and has_final_observation:
        raise UserError(
            f"observations: expected {steps + 1} rows for {steps} steps, found {steps}; add what came after the last "
            "step, or pass has_final_observation=False"
        )
    return arrays | {"terminated": arrays["terminated"].reshape(1), "offsets": np.array([0, steps])}


def _array(name: str, value: Any) -> np.ndarray:
    """A value as an array; a tensor may be on any device and may carry gradients."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: expected an array, found {type(value).__name__} ({error})") from error


def joined(stores: list[EpisodeStore]) -> EpisodeStore:
    """The episodes of several stores of one task and layout, in order."""
    if len(stores) == 1:
        return stores[0]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(store, name) for store in stores])
        for name, _ in stores[0].arrays()
        if name != "offsets"
    }
    first = stores[0]
    return EpisodeStore(
        spec=first.spec,
        dataset_id=first.dataset_id,
        has_final_observation=first.has_final_observation,
        offsets=np.concatenate([[0], np.cumsum([length for store in stores for length in np.diff(store.offsets)])]),
        **arrays,
    )
