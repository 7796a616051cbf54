"""Episode stores: whole episodes end to end in flat arrays, and the folder of `.npy` files they live in.

Two episodes of 3 and 2 steps, aligned; an episode shows one frame more than it has steps:

    episode                 0   0   0   0 | 1   1   1
    observations, state     s0  s1  s2  s3| s0  s1  s2     sum(T + 1) rows: s_t is what step t saw, the last one is
    action_mask             m0  m1  m2  m3| m0  m1  m2     where the episode ended
    actions                 a0  a1  a2    | a0  a1         sum T rows: a_t was taken at s_t,
    rewards                 r0  r1  r2    | r0  r1         r_t belongs to (s_t, a_t, s_t+1)
    offsets                 0               3          5   K + 1 entries: first step of each episode, then the end
    first_frames            0               4              offsets[k] + k
    terminated              no              yes            K entries: ended by the task's rules, not by a time limit

Imported data may lack the last frame. Then `has_final_observation` is False, the row is there all the same and repeats
the one before it, and nothing treats it as real.

On disk: one `.npy` file per array and `manifest.json`. A folder is written under a temporary name and renamed when it
is whole, so a store is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from marl_flow.datasets import catalog
from marl_flow.datasets.layout import (
    ARRAYS,
    FRAME_ARRAYS,
    REQUIRED,
    check_structure,
    check_values,
    returns_to_go,
    take_runs,
)
from marl_flow.files import open_npy
from marl_flow.interfaces import TaskSpec, UserError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EpisodeStore:
    """K episodes of one task in raw units; arrays are read-only and laid out as drawn above.

    observations [sum(T + 1), N, O] float32; actions [sum T, N, A] float32, or integers [sum T, N] for discrete tasks;
    rewards [sum T, N] float32; offsets [K + 1] int64; terminated [K] bool; action_mask [sum(T + 1), N, A] bool, true =
    legal; state [sum(T + 1), S] float32. `provenance` holds plain JSON values. `digest` identifies the content of a
    store that was opened from disk; None for one in memory or a selection.
    """

    spec: TaskSpec
    dataset_id: str
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    offsets: np.ndarray
    terminated: np.ndarray
    state: np.ndarray | None = None
    action_mask: np.ndarray | None = None
    has_final_observation: bool = True
    provenance: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    _folder: ClassVar[Path | None] = None
    """Where the store was opened. No field: what `dataclasses.replace` makes of a store is not what lies there."""

    def __post_init__(self) -> None:
        arrays = dict(self.arrays())
        check_structure(self.spec, arrays)
        for name, array in arrays.items():
            view = array.view(np.ndarray)
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies: a store opened from disk is opened there again, one in memory takes its arrays along."""
        if self._folder is not None:
            return _open_again, (self._folder, self.dataset_id, self.digest)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return _from_values, (values | {"provenance": dict(self.provenance)},)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and array of everything stored, in a fixed order."""
        for name in ARRAYS:
            array = getattr(self, name)
            if array is not None:
                yield name, array

    @property
    def num_episodes(self) -> int:
        return len(self.terminated)

    @property
    def num_steps(self) -> int:
        return len(self.rewards)

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, [K] int64."""
        return np.diff(self.offsets)

    @property
    def first_frames(self) -> np.ndarray:
        """Row of each episode's first frame in `observations`, [K] int64."""
        return self.offsets[:-1] + np.arange(self.num_episodes)

    @property
    def real_frames(self) -> np.ndarray | None:
        """Which rows of `observations` the environment showed, [sum(T + 1)] bool; None when it showed them all."""
        if self.has_final_observation:
            return None
        real = np.ones(len(self.observations), dtype=bool)
        real[self.offsets[1:] + np.arange(self.num_episodes)] = False
        return real

    def returns_to_go(self, discount: float) -> np.ndarray:
        """Sum of discount^(u - t) r_u from each step t to its episode's end, per agent, [sum T, N] float32."""
        return returns_to_go(self.rewards, self.offsets, discount)

    def agent_returns(self) -> np.ndarray:
        """Undiscounted return of each episode and agent, [K, N] float64."""
        return np.add.reduceat(self.rewards, self.offsets[:-1], axis=0, dtype=np.float64)

    def team_returns(self) -> np.ndarray:
        """Undiscounted team return of each episode by the task's rule, [K] float64."""
        return self.spec.team_return(torch.from_numpy(self.agent_returns())).numpy()

    def select(self, episodes: Sequence[int] | np.ndarray | slice) -> EpisodeStore:
        """A store of the chosen episodes, in the given order.

        Neighbours in order (a slice, a range) are views and cost nothing; any other choice copies the chosen rows, so
        that every store is packed and none holds rows that were left out.
        """
        wanted = episodes if isinstance(episodes, slice) else np.asarray(episodes)
        if not isinstance(wanted, slice) and wanted.size and wanted.dtype.kind not in "iub":
            raise ValueError(f"select needs numbers of episodes, got {episodes} ({wanted.dtype})")
        empty = not isinstance(wanted, slice) and not wanted.size
        chosen = np.arange(0) if empty else np.arange(self.num_episodes)[wanted]
        if chosen.ndim != 1 or chosen.size == 0:
            raise ValueError(f"select needs at least one of the {self.num_episodes} episodes, got {episodes}")
        lengths = self.lengths[chosen]
        changes: dict[str, Any] = {}
        for name, array in self.arrays():
            if name == "offsets":
                changes[name] = np.concatenate([[0], np.cumsum(lengths)])
            elif name == "terminated":
                changes[name] = array[chosen]
            elif name in FRAME_ARRAYS:
                changes[name] = take_runs(array, self.first_frames[chosen], lengths + 1)
            else:
                changes[name] = take_runs(array, self.offsets[chosen], lengths)
        return EpisodeStore(
            spec=self.spec,
            dataset_id=self.dataset_id,
            has_final_observation=self.has_final_observation,
            provenance=self.provenance,
            **changes,
        )

    def __repr__(self) -> str:
        absent = "" if self.has_final_observation else ", final observations absent"
        head = f"EpisodeStore {self.dataset_id}: {self.num_episodes:,} episodes, {self.num_steps:,} steps{absent}"
        return "\n".join([head, *(f"  {n:<13} {a.dtype!s:<8} {list(a.shape)}" for n, a in self.arrays())])


def _from_values(values: Mapping[str, Any]) -> EpisodeStore:
    """A store in memory, from a pickle."""
    return EpisodeStore(**values)


def _open_again(folder: Path, dataset_id: str, digest: str) -> EpisodeStore:
    """The store in a folder, which must still be the one that was pickled or copied."""
    store = open_store(folder, verify=False, dataset_id=dataset_id)
    if store.digest != digest:
        raise UserError(
            f"expected {dataset_id} in {folder} as it was when its store was pickled (digest {digest[:16]}), found "
            f"digest {str(store.digest)[:16]}: it was built again meanwhile; load it instead"
        )
    return store


def as_tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor: the same memory on the CPU (nobody may write to it), one transfer elsewhere."""
    alias = array.view(np.ndarray)
    try:
        alias.flags.writeable = True  # torch warns of read-only memory; `open_store` maps copy-on-write for this
    except ValueError:
        alias = array.copy()  # its owner handed it over read-only
    return torch.from_numpy(alias).to(device)


def open_store(folder: Path, *, verify: bool = True, dataset_id: str | None = None) -> EpisodeStore:
    """The store in a folder, memory-mapped: nothing is copied.

    Structure is always checked; `verify` also reads everything once: the hash of each file, and that all numbers are
    finite. `dataset_id` is the one that must be found there (None: any). A fault is a UserError that names what was
    expected, what was found, and the command that rebuilds the dataset.
    """
    folder = Path(folder)
    name = dataset_id or "<dataset>"
    try:
        manifest = _read_manifest(folder)
        found_id = manifest["dataset_id"]
        if dataset_id not in (None, found_id):
            raise UserError(f"expected {dataset_id}, found {found_id}")
        name = found_id
        store = _open_arrays(folder, manifest)
        if verify:
            entries = manifest["arrays"]
            for array, entry in entries.items():
                actual = file_hash(folder / f"{array}.npy")
                if actual != entry["sha256"]:
                    raise UserError(f"{array}: expected sha256 {entry['sha256'][:16]}..., found {actual[:16]}...")
            if content_digest(store.spec, store.has_final_observation, entries) != manifest["digest"]:
                raise UserError(f"{MANIFEST}: its digest does not match its entries; it was edited")
            check_values(store.spec, dict(store.arrays()))
        return store
    except UserError as error:
        raise UserError(f"dataset in {folder} is not usable: {error}; {_remedy(name)}") from error


def _remedy(name: str) -> str:
    """How to get an unusable dataset back, as part of a sentence."""
    try:
        entry = catalog.find(name)
    except UserError:
        return "remove the folder and make the dataset again"
    if entry.dataset_id.origin == "native":
        return f"rebuild it with `marl-flow data build {name} --force`"
    return f"remove the folder, then {entry.how_to_get}"


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"expected a readable {MANIFEST}, found: {error}") from error
    keys = {"format_version", "dataset_id", "task", "episodes", "steps", "has_final_observation", "arrays", "digest"}
    missing = sorted((keys | {"provenance"}) - set(manifest)) if isinstance(manifest, dict) else sorted(keys)
    if missing:
        raise UserError(f"{MANIFEST}: expected the entries {missing}, found none")
    if manifest["format_version"] != FORMAT_VERSION:
        raise UserError(f"{MANIFEST}: expected format_version {FORMAT_VERSION}, found {manifest['format_version']}")
    return manifest


def _open_arrays(folder: Path, manifest: Mapping[str, Any]) -> EpisodeStore:
    entries = manifest["arrays"]
    if not set(REQUIRED) <= set(entries) <= set(ARRAYS):
        raise UserError(f"{MANIFEST}: expected the arrays {list(REQUIRED)}, found {sorted(entries)}")
    try:
        spec = TaskSpec.from_json(manifest["task"])
        arrays = {name: _map(folder / f"{name}.npy", name, entry) for name, entry in entries.items()}
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{MANIFEST}: expected a task and array entries, found a malformed one: {error!r}") from error
    store = EpisodeStore(
        spec=spec,
        dataset_id=manifest["dataset_id"],
        has_final_observation=manifest["has_final_observation"],
        provenance=manifest["provenance"],
        digest=manifest["digest"],
        **arrays,
    )
    if (store.num_episodes, store.num_steps) != (manifest["episodes"], manifest["steps"]):
        raise UserError(
            f"{MANIFEST}: expected {manifest['episodes']} episodes of {manifest['steps']} steps, "
            f"found {store.num_episodes} of {store.num_steps} in the arrays"
        )
    object.__setattr__(store, "_folder", folder.absolute())
    return store


def _map(path: Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    """The array in a `.npy` file, mapped copy-on-write: readable as is, and writing would never reach the file."""
    dtype, shape, file = np.dtype(entry["dtype"]), tuple(entry["shape"]), open_npy(path)
    if (file.dtype, file.shape, file.fortran_order) != (dtype, shape, False):
        raise UserError(f"{name}: expected {dtype} {list(shape)}, found {file.dtype} {list(file.shape)}")
    return file.map("c")


def content_digest(spec: TaskSpec, has_final_observation: bool, entries: Mapping[str, Mapping[str, Any]]) -> str:
    """sha256 of what the data are: task, layout and array hashes; not of where or by which versions they were made."""
    arrays = {name: [entry["dtype"], entry["shape"], entry["sha256"]] for name, entry in sorted(entries.items())}
    record = {"task": spec.to_json(), "has_final_observation": has_final_observation, "arrays": arrays}
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
