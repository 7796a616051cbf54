"""Minari datasets (HDF5 storage): one group per episode, the final observation included.

    <name>-v<k>/data/metadata.json, main_data.hdf5 with episode_<i>/ {observations [T + 1, O], actions [T, A],
    rewards, terminations, truncations [T], infos/...}
    N agents: observations [T + 1, N, O], actions [T, N, A] or integers [T, N], rewards [T, N], infos/state [T + 1, S],
    infos/action_mask [T + 1, N, A]; the metadata entry `marl_flow` is a record of the task

`Farama-Foundation/Minari: docs/content/dataset_standards.md, minari/dataset/_storages/hdf5_storage.py`. Minari itself
knows one agent; stacked agents pass through its library unchanged. An episode that ends with neither flag was stopped
by whoever collected it, which is no termination. Read with h5py alone; written by the library's own storage class,
piece by piece (`create_dataset_from_buffers` would put it where an environment variable says).

One robot's dataset whose infos have the engine's states, qpos [T + 1, Q] and qvel [T + 1, V], becomes that of the
agents that share the robot where it is imported as theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from marl_flow.datasets.formats import hdf5, robot
from marl_flow.datasets.formats.columns import Column
from marl_flow.datasets.formats.d4rl import NAME_TASK, agent_axis, single_agent
from marl_flow.datasets.formats.episodes import Part, Rows, Run, Source, check_lengths
from marl_flow.datasets.formats.record import Record, check_task, parse_record, record_of
from marl_flow.datasets.formats.robot import SharedRobot
from marl_flow.datasets.formats.steps import store_pieces
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import TaskSpec, UserError

_ENTRY = "marl_flow"
_NAME = re.compile(r"[-\w]+-v\d+")
_INFOS = {"state": "infos/state", "action_mask": "infos/action_mask"}


@contextmanager
def open_source(source: Path, spec: TaskSpec | None, shared: SharedRobot | None = None) -> Iterator[Source]:
    """The episodes of a dataset's folder; the task is the requested one, our record's, or implied by one agent's.

    shared: where the folder has one agent's arrays, they are divided among the agents of its task.
    """
    metadata_file, data_file = source / "data" / "metadata.json", source / "data" / "main_data.hdf5"
    metadata = _metadata(metadata_file)
    record = record_in(source)
    if spec and record:
        check_task(spec, record.spec, "metadata.json")
    with hdf5.open_file(data_file) as file:
        episodes = _episodes(file, metadata)
        lengths, terminated = _ends(file, episodes)
        if int(lengths.sum()) != metadata["total_steps"]:
            raise UserError(
                f"expected {metadata['total_steps']} steps (metadata.json), found {lengths.sum()} in the episodes"
            )
        observations = _need(file, f"{episodes[0]}/observations")
        if record or len(observations.shape) != 2:
            shared = None
        if shared:
            shared.check_recording(_environment(metadata))
            spec = shared.single(observations.shape[1])
        task = record.spec if record else spec or _implied(source, metadata, file, episodes, lengths)
        check_lengths(lengths, task, data_file.name)
        present = ["state"] if shared else [name for name in _optional(task) if _has(file, episodes, _INFOS[name])]
        read = partial(_read, task, file, episodes, present, shared)
        read_source = Source(
            spec=task,
            has_final_observation=record.has_final_observation if record else True,
            parts=[Part(lengths=lengths, terminated=terminated, read=read)],
            files=[metadata_file, data_file],
            provenance={"exported_from": record.origin} if record else {},
        )
        yield shared.divided(read_source) if shared else read_source


def record_in(source: Path) -> Record | None:
    """What a folder that we exported says of itself; None for another's."""
    metadata = _metadata(source / "data" / "metadata.json")
    return parse_record(json.dumps(metadata[_ENTRY]), f"metadata.json, {_ENTRY}") if _ENTRY in metadata else None


def _metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"expected a dataset folder with data/metadata.json (Minari 0.5), found: {error}") from error
    wanted = {"total_episodes": int, "total_steps": int}
    if not isinstance(metadata, dict) or any(
        type(metadata.get(name)) is not expected_type for name, expected_type in wanted.items()
    ):
        raise UserError("metadata.json: expected whole numbers total_episodes and total_steps, found none")
    if metadata.get("data_format") != "hdf5":
        raise UserError(f"metadata.json: expected data_format 'hdf5', found {metadata.get('data_format')!r}")
    return metadata


def _episodes(file: Any, metadata: Mapping[str, Any]) -> list[str]:
    """Names of the episodes' groups, in order."""
    found, total = set(hdf5.names(file)), metadata["total_episodes"]
    wanted = [f"episode_{index}" for index in range(len(found))]
    if not wanted or total != len(found) or found != set(wanted):
        raise UserError(
            f"expected the groups episode_0 to episode_{total - 1} (metadata.json), found {len(found)} groups"
        )
    return wanted


def _need(file: Any, path: str) -> Column:
    column = hdf5.column(file, path)
    if column is None:
        raise UserError(f"{path}: expected an array, found none")
    return column


def _has(file: Any, episodes: list[str], path: str) -> bool:
    """Whether every episode has the array; raises where only some have."""
    lacking = [episode for episode in episodes if hdf5.member(file, f"{episode}/{path}") is None]
    if lacking and len(lacking) < len(episodes):
        raise UserError(f"{lacking[0]}/{path}: expected an array, as other episodes have, found none")
    return not lacking


def _ends(file: Any, episodes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths [K] and terminations [K]; flags may be set at an episode's last step only."""
    lengths, terminated = [], []
    for episode in episodes:
        steps = _need(file, f"{episode}/rewards").rows
        flags = {}
        for name in ("terminations", "truncations"):
            column = _need(file, f"{episode}/{name}").squeezed().expect(steps)
            flags[name] = column.flags(0, steps)
            if flags[name][:-1].any():
                raise UserError(
                    f"{column.name}: expected a flag at the last step ({steps - 1}) only, found one at step "
                    f"{int(np.argmax(flags[name]))}"
                )
        lengths.append(steps)
        terminated.append(flags["terminations"][-1])
    return np.array(lengths, dtype=np.int64), np.array(terminated, dtype=bool)


def _implied(
    source: Path, metadata: Mapping[str, Any], file: Any, episodes: list[str], lengths: np.ndarray
) -> TaskSpec:
    """The task of one agent with actions from -1 to 1; raises, saying what to pass, where it is another kind."""
    space = metadata.get("action_space")
    if space is not None:
        try:
            box = json.loads(space)
            fits = box["type"] == "Box" and all(
                np.all(np.asarray(box[side], dtype=np.float64) == bound)
                for side, bound in (("low", -1.0), ("high", 1.0))
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"metadata.json: expected a readable action_space, found: {error!r}") from error
        if not fits:
            raise UserError(f"expected actions in a box from -1 to 1, found {space[:200]}; {NAME_TASK}")
    observations, actions = _need(file, f"{episodes[0]}/observations"), _need(file, f"{episodes[0]}/actions")
    return single_agent(f"minari/{source.name}", observations, actions, lengths)


def _environment(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded environment's specification, as gymnasium writes it."""
    try:
        environment = json.loads(metadata["env_spec"])
        if not isinstance(environment, dict) or not isinstance(environment.get("kwargs") or {}, dict):
            raise TypeError("not a record")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"metadata.json: expected env_spec to say what was recorded, found: {error!r}") from error
    return environment


def _optional(spec: TaskSpec) -> list[str]:
    return [*(["state"] if spec.state_size else []), *(["action_mask"] if spec.action.is_discrete else [])]


def _read(
    spec: TaskSpec, file: Any, episodes: list[str], present: list[str], shared: SharedRobot | None, run: Run
) -> Rows:
    agents, action, axis = spec.num_agents, spec.action, agent_axis(spec)
    steps: dict[str, list[np.ndarray]] = {}
    finals: dict[str, list[np.ndarray]] = {}
    for episode, length in zip(episodes[run.episodes], np.diff(run.offsets).tolist(), strict=True):
        actions, rewards = _need(file, f"{episode}/actions"), _need(file, f"{episode}/rewards")
        if action.is_discrete and agents == 1:
            actions = actions.squeezed()
        actions.expect(length, *axis, *(() if action.is_discrete else (action.size,)))
        if action.is_discrete:
            steps.setdefault("actions", []).append(actions.choices(0, length, action.size).reshape(length, agents))
        else:
            steps.setdefault("actions", []).append(actions.floats(0, length).reshape(length, agents, action.size))
        steps.setdefault("rewards", []).append(_rewards(spec, rewards, length))
        frames = {
            "observations": _need(file, f"{episode}/observations").expect(length + 1, *axis, spec.observation_size)
        }
        for name in present:
            tail = (spec.state_size or 0,) if name == "state" else (*axis, action.size)
            if shared:
                found = [hdf5.column(file, f"{episode}/{part}") for part in (robot.POSITIONS, robot.VELOCITIES)]
                frames[name] = shared.state(*found).expect(length + 1, *tail)
            else:
                frames[name] = _need(file, f"{episode}/{_INFOS[name]}").expect(length + 1, *tail)
        for name, column in frames.items():
            values = column.flags(0, length + 1) if name == "action_mask" else column.floats(0, length + 1)
            values = values if name == "state" else values.reshape(length + 1, agents, -1)
            steps.setdefault(name, []).append(values[:-1])
            finals.setdefault(name, []).append(values[-1:])
    return Rows(
        steps={name: np.concatenate(parts) for name, parts in steps.items()},
        finals={name: np.concatenate(parts) for name, parts in finals.items()},
    )


def _rewards(spec: TaskSpec, column: Column, length: int) -> np.ndarray:
    """Rewards per agent, [T, N]; one number per step is everybody's where the task shares its reward."""
    if len(column.shape) == 1 and (spec.num_agents == 1 or spec.team_reward == "shared"):
        return np.repeat(column.expect(length).floats(0, length)[:, None], spec.num_agents, axis=1)
    return column.expect(length, spec.num_agents).floats(0, length)


def write(store: EpisodeStore, folder: Path, target: Path) -> None:
    """Writes a new dataset folder, to be named `target`, whose name is the dataset's id."""
    if not _NAME.fullmatch(target.name):
        raise UserError(f"expected a folder name like spread-expert-v0 (Minari's dataset id), found {target.name!r}")
    hdf5.library()
    try:
        import minari
        from gymnasium import spaces
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise UserError('writing a Minari dataset needs minari; pip install "marl_flow[minari]"') from error
    spec, axis = store.spec, agent_axis(store.spec)
    action = spec.action
    choice: spaces.Space
    if action.is_discrete:
        choice = spaces.MultiDiscrete([action.size] * spec.num_agents) if axis else spaces.Discrete(action.size)
    else:
        shape = (*axis, action.size)
        low, high = (np.broadcast_to(np.array(side, dtype=np.float32), shape) for side in (action.low, action.high))
        choice = spaces.Box(low, high, dtype=np.float32)
    folder.mkdir()
    storage = MinariStorage.new(
        (folder / "data").resolve(),  # the library would join a relative path to itself
        observation_space=spaces.Box(-np.inf, np.inf, (*axis, spec.observation_size), dtype=np.float32),
        action_space=choice,
        data_format="hdf5",
        jpeg_encoding=False,
    )
    storage.update_metadata(
        {
            "dataset_id": target.name,
            "minari_version": minari.__version__,
            "description": f"{store.dataset_id}, {spec.num_agents} agents of {spec.task_id}, exported by marl_flow",
            _ENTRY: record_of(store),
        }
    )
    for _, piece in store_pieces(store):
        storage.update_episodes(EpisodeBuffer(**_buffer(piece.select([k]))) for k in range(piece.num_episodes))


def _buffer(episode: EpisodeStore) -> dict[str, Any]:
    """One episode as Minari's buffer; single agents have no agent axis."""
    single_agent = episode.spec.num_agents == 1
    last = np.zeros(episode.num_steps, dtype=bool)
    last[-1] = True
    infos = {}
    if episode.state is not None:
        infos["state"] = episode.state
    if episode.action_mask is not None:
        infos["action_mask"] = episode.action_mask[:, 0] if single_agent else episode.action_mask
    per_agent = {"observations": episode.observations, "actions": episode.actions, "rewards": episode.rewards}
    return {
        **{name: array[:, 0] if single_agent else array for name, array in per_agent.items()},
        "terminations": last & episode.terminated[0],
        "truncations": last & ~episode.terminated[0],
        "infos": infos or None,
    }
