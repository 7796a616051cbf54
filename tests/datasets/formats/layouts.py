"""Writers of every published layout, exactly as the fact sheet has them, and stores whose every number names itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import ActionSpec, TaskSpec

DATASET_ID = "omar/mpe/simple_spread/expert-v1"


def small_task(
    suite: str = "mpe",
    *,
    agents: int = 3,
    observation_size: int = 4,
    action_size: int = 2,
    discrete: bool = False,
    state_size: int | None = None,
    max_steps: int = 5,
    team_reward: str = "shared",
) -> TaskSpec:
    bounds = () if discrete else (1.0,) * action_size
    return TaskSpec(
        task_id=f"{suite}/small",
        agents=tuple(f"agent_{index}" for index in range(agents)),
        observation_size=observation_size,
        action=ActionSpec(
            kind="discrete" if discrete else "continuous",
            size=action_size,
            low=tuple(-bound for bound in bounds),
            high=bounds,
        ),
        max_steps=max_steps,
        team_reward=team_reward,  # type: ignore[arg-type]
        state_size=state_size,
    )


def random_store(
    spec: TaskSpec,
    lengths: Sequence[int],
    seed: int = 0,
    *,
    final: bool = True,
    terminated: Sequence[bool] | None = None,
) -> EpisodeStore:
    """Random episodes; masks allow the choice taken, at least one choice everywhere, and forbid half of the others."""
    draw = np.random.default_rng(seed)
    steps, frames, agents, action = sum(lengths), sum(lengths) + len(lengths), spec.num_agents, spec.action
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    last = offsets[1:] + np.arange(len(lengths))
    arrays: dict[str, np.ndarray] = {
        "observations": draw.normal(size=(frames, agents, spec.observation_size)).astype(np.float32),
        "rewards": draw.normal(size=(steps, agents)).astype(np.float32),
    }
    if spec.team_reward == "shared":
        arrays["rewards"][:] = arrays["rewards"][:, :1]
    if spec.task_id.startswith("mamujoco/"):
        arrays["observations"][..., :agents] = np.eye(agents)
    if action.is_discrete:
        arrays["actions"] = draw.integers(0, action.size, size=(steps, agents)).astype(np.int16)
        mask = draw.random((frames, agents, action.size)) < 0.5
        mask[..., 0] = True
        stepping = np.setdiff1d(np.arange(frames), last)
        chosen = mask[stepping]
        np.put_along_axis(chosen, arrays["actions"][..., None].astype(np.int64), True, axis=-1)
        mask[stepping] = chosen
        arrays["action_mask"] = mask
    else:
        arrays["actions"] = draw.uniform(-1, 1, size=(steps, agents, action.size)).astype(np.float32)
    if spec.state_size:
        arrays["state"] = draw.normal(size=(frames, spec.state_size)).astype(np.float32)
    if not final:
        for name in ("observations", "state", "action_mask"):
            if name in arrays:
                arrays[name][last] = arrays[name][last - 1]
    ended = draw.random(len(lengths)) < 0.5 if terminated is None else np.array(terminated, dtype=bool)
    return EpisodeStore(
        spec=spec,
        dataset_id=DATASET_ID,
        offsets=offsets,
        terminated=ended,
        has_final_observation=final,
        provenance={"made_by": "hand"},
        **arrays,
    )


def assert_same(found: EpisodeStore, expected: EpisodeStore) -> None:
    """Same task, same arrays to the bit, same dtypes."""
    left, right = dict(found.arrays()), dict(expected.arrays())
    assert list(left) == list(right) and found.spec == expected.spec
    assert found.has_final_observation == expected.has_final_observation
    for name, array in right.items():
        np.testing.assert_array_equal(left[name], array, err_msg=name)
        assert left[name].dtype == array.dtype, name


def step_rows(store: EpisodeStore) -> np.ndarray:
    """Rows of `observations` that steps saw."""
    return np.arange(store.num_steps) + np.repeat(np.arange(store.num_episodes), store.lengths)


# Writers of the published layouts


def write_omar(
    folder: Path, store: EpisodeStore, *, dtype: str = "float64", next_obs: bool = True, prey: bool = False
) -> None:
    """One seed's folder as `ling-pan/OMAR: utils/buffer.py` fills it: float64, dones all zero."""
    folder.mkdir(parents=True)
    rows = step_rows(store)
    for agent in range(store.spec.num_agents):
        fields = {
            "obs": store.observations[rows, agent],
            "acs": store.actions[:, agent],
            "rews": store.rewards[:, agent],
            "dones": np.zeros(store.num_steps),
        }
        if next_obs:
            fields["next_obs"] = store.observations[rows + 1, agent]
        for field, values in fields.items():
            np.save(folder / f"{field}_{agent}.npy", values.astype(dtype))
    if prey:
        agent = store.spec.num_agents
        for field, width in (("obs", 14), ("next_obs", 14), ("acs", 2), ("rews", None), ("dones", None)):
            shape = (store.num_steps,) if width is None else (store.num_steps, width)
            np.save(folder / f"{field}_{agent}.npy", np.zeros(shape, dtype=dtype))


def write_madiff(folder: Path, store: EpisodeStore, *, discounts: bool = True) -> None:
    """As `Guowei-Zou/coflow-release: scripts/transform_og_marl_dataset.py` writes it, ids in front."""
    folder.mkdir(parents=True)
    rows, agents = step_rows(store), store.spec.num_agents
    observations = store.observations[rows]
    if not store.spec.task_id.startswith("mamujoco/"):
        ids = np.broadcast_to(np.eye(agents, dtype=np.float32), (len(rows), agents, agents))
        observations = np.concatenate([ids, observations], axis=-1)
    np.save(folder / "obs.npy", observations)
    np.save(folder / "actions.npy", store.actions.astype(np.int64) if store.spec.action.is_discrete else store.actions)
    np.save(folder / "rewards.npy", store.rewards)
    np.save(folder / "path_lengths.npy", store.lengths)
    if discounts:
        values = np.ones_like(store.rewards)
        values[store.offsets[1:] - 1] = 0
        np.save(folder / "discounts.npy", values)
    if store.action_mask is not None:
        np.save(folder / "legals.npy", store.action_mask[rows].astype(np.float32))
    if store.state is not None:
        np.save(folder / "states.npy", store.state[rows])


def vault_leaves(store: EpisodeStore, *, slots: int = 1, prey: int = 0, extra: int = 0) -> dict[str, np.ndarray]:
    """Leaves [B, T, ...] of a vault whose slots share the episodes equally; `extra` rows without an end follow."""
    assert store.num_episodes % slots == 0
    share = store.num_episodes // slots
    per_slot = [_slot(store.select(slice(slot * share, (slot + 1) * share)), prey, extra) for slot in range(slots)]
    assert len({len(leaves["rewards"]) for leaves in per_slot}) == 1, "slots of a vault are equally long"
    return {name: np.stack([leaves[name] for leaves in per_slot]) for name in per_slot[0]}


def _slot(store: EpisodeStore, prey: int, extra: int) -> dict[str, np.ndarray]:
    rows, agents, spec = step_rows(store), store.spec.num_agents, store.spec
    observations = store.observations[rows]
    if spec.task_id.startswith("mamujoco/"):
        observations = observations[..., agents:]
    last, limit = store.offsets[1:] - 1, store.lengths == spec.max_steps
    terminals = np.zeros((store.num_steps, agents), dtype=bool)
    truncations = terminals.copy()
    terminals[last[store.terminated | limit]] = True  # SMAC flags its time limit as a terminal
    truncations[last[~store.terminated & ~limit]] = True
    leaves = {
        "observations": observations,
        "actions": store.actions.astype(np.int32) if spec.action.is_discrete else store.actions,
        "rewards": store.rewards,
        "terminals": terminals,
        "truncations": truncations,
    }
    if store.state is not None:
        leaves["infos.state"] = store.state[rows]
    if store.action_mask is not None:
        leaves["infos.legals"] = store.action_mask[rows].astype(np.float32)
    for name, values in leaves.items():
        if prey and name != "infos.state":
            values = np.concatenate([values, np.repeat(values[:, :1], prey, axis=1)], axis=1)
        if extra:
            tail = np.repeat(values[-1:], extra, axis=0)
            values = np.concatenate([values, np.zeros_like(tail) if values.dtype == bool else tail])
        leaves[name] = values
    return leaves


def write_vault(folder: Path, leaves: dict[str, np.ndarray], *, rows: int | None = None, **metadata: object) -> None:
    """As `instadeepai/flashbax: flashbax/vault/vault.py` lays it out."""
    tensorstore = pytest.importorskip("tensorstore")
    folder.mkdir(parents=True)

    def open_leaf(name: str, shape: tuple[int, ...], dtype: str, **extra: object):
        store = {"driver": "ocdbt", "base": f"file://{folder}", "path": name}
        spec = {"driver": "zarr", "kvstore": store, "metadata": extra}
        return tensorstore.open(spec, shape=shape, dtype=dtype, create=True).result()

    shapes: dict[str, object] = {}
    dtypes: dict[str, object] = {}
    for name, values in leaves.items():
        shape = (values.shape[0], int(10e12), *values.shape[2:])
        array = open_leaf(f"{name}.", shape, values.dtype.name, compressor={"id": "gzip", "level": 5})
        array[:, : values.shape[1]].write(values).result()
        head, _, tail = name.partition(".")
        for tree, text in ((shapes, str((values.shape[0], 1000, *values.shape[2:]))), (dtypes, values.dtype.name)):
            if tail:
                tree.setdefault(head, {})[tail] = text  # type: ignore[index]
            else:
                tree[head] = text
    index = open_leaf("vault_index", (1,), "int32")
    index.write(np.array([next(iter(leaves.values())).shape[1] if rows is None else rows], dtype=np.int32)).result()
    content = {"version": 1.2, "structure_shape": shapes, "structure_dtype": dtypes, **metadata}
    (folder / "metadata.json").write_text(json.dumps(content))


def write_d4rl(path: Path, store: EpisodeStore, *, timeouts: bool = True, next_observations: bool = True) -> None:
    """A single agent's file as D4RL publishes them: gzip, infos and metadata beside the arrays."""
    rows = step_rows(store)
    last = store.offsets[1:] - 1
    flags = np.zeros((2, store.num_steps), dtype=bool)
    flags[0, last], flags[1, last] = store.terminated, ~store.terminated
    with h5py.File(path, "w") as file:
        for name, values in (
            ("observations", store.observations[rows, 0]),
            ("actions", store.actions[:, 0]),
            ("rewards", store.rewards[:, 0]),
            ("terminals", flags[0]),
            *([("timeouts", flags[1])] if timeouts else []),
            *([("next_observations", store.observations[rows + 1, 0])] if next_observations else []),
            ("infos/qpos", np.zeros((store.num_steps, 3))),
        ):
            file.create_dataset(name, data=values, compression="gzip")
        file["metadata/algorithm"] = "SAC"


def write_minari(folder: Path, store: EpisodeStore, **metadata: object) -> None:
    """A single agent's dataset as Minari's collector leaves it."""
    (folder / "data").mkdir(parents=True)
    size = store.spec.action.size
    box = {"type": "Box", "dtype": "float32", "shape": [size], "low": [-1.0] * size, "high": [1.0] * size}
    with h5py.File(folder / "data" / "main_data.hdf5", "w", track_order=True) as file:
        for k in range(store.num_episodes):
            episode = store.select([k])
            last = np.arange(episode.num_steps) == episode.num_steps - 1
            group = file.create_group(f"episode_{k}")
            group.attrs["id"], group.attrs["total_steps"] = k, episode.num_steps
            for name, values in (
                ("observations", episode.observations[:, 0].astype(np.float64)),
                ("actions", episode.actions[:, 0]),
                ("rewards", episode.rewards[:, 0].astype(np.float64)),
                ("terminations", last & episode.terminated[0]),
                ("truncations", last & ~episode.terminated[0]),
                ("infos/qpos", np.zeros((episode.num_steps + 1, 2))),
            ):
                group.create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))
    content = {
        "total_episodes": store.num_episodes,
        "total_steps": store.num_steps,
        "data_format": "hdf5",
        "action_space": json.dumps(box),
        "dataset_id": folder.name,
        "minari_version": "0.5.4",
        **metadata,
    }
    (folder / "data" / "metadata.json").write_text(json.dumps(content))
