"""D4RL's HDF5 layout: flat rows. One agent as published, several as our own extension of it.

    observations [M, O], actions [M, A], rewards, terminals [M]; optional timeouts [M], next_observations [M, O]
    [M, 1] counts as [M], as in D4RL's own loader
    N agents: observations [M, N, O], actions [M, N, A] or integers [M, N], rewards [M] the team's, and
    infos/agent_rewards [M, N]; infos/{state,action_mask} [M, ...] and infos/{next_state,next_action_mask}; the file's
    attribute `marl_flow` is a JSON record of the task

`Farama-Foundation/D4RL: d4rl/offline_env.py, README`. `terminals` are failures, `timeouts` time limits; an episode ends
at either. Files without timeouts are cut at terminals and at the task's step limit, so they need the task; rows after
the last end are left out and reported (`dropped_rows`). Stored next observations prove the order of the rows and give
the final ones; they are left out of an export whose final observations are absent.

One robot's published file (`scripts/generation/mujoco/collect_data.py` there) also has the engine's state before each
action, infos/qpos [M, Q] and infos/qvel [M, V]: imported as data of agents that share the robot, it becomes theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from marl_flow.datasets.formats import hdf5, robot
from marl_flow.datasets.formats.columns import Column
from marl_flow.datasets.formats.episodes import (
    Part,
    Rows,
    Run,
    Source,
    check_lengths,
    cut,
    final_rows,
    flagged,
    report_tail,
)
from marl_flow.datasets.formats.record import Record, check_task, parse_record, record_of
from marl_flow.datasets.formats.robot import SharedRobot
from marl_flow.datasets.formats.steps import final_frames, step_frames, store_pieces
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import ActionSpec, TaskSpec, UserError

ATTRIBUTE = "marl_flow"
NAME_TASK = "say of which known task they are (marl_flow.datasets.specs) by importing them as user/SUITE/TASK/NAME-v1"
TEAM_TOLERANCE = 1e-5  # by which a stored team reward may differ from the agents', relative to 1 or its size
_FRAMES = {"observations": "observations", "state": "infos/state", "action_mask": "infos/action_mask"}
_NEXT = {"observations": "next_observations", "state": "infos/next_state", "action_mask": "infos/next_action_mask"}
_OTHERS = ("actions", "rewards", "terminals", "timeouts", "infos/agent_rewards")


@contextmanager
def open_source(source: Path, spec: TaskSpec | None, shared: SharedRobot | None = None) -> Iterator[Source]:
    """The episodes of one file; the task is the requested one, our record's, or implied by a single agent's arrays.

    shared: where the file has one agent's arrays, they are divided among the agents of its task.
    """
    with hdf5.open_file(source) as file:
        record = _record(file)
        if spec and record:
            check_task(spec, record.spec, ATTRIBUTE)
        candidates = {name: hdf5.column(file, name) for name in (*_FRAMES.values(), *_NEXT.values(), *_OTHERS)}
        columns = {name: column for name, column in candidates.items() if column is not None}
        for name in ("rewards", "terminals", "timeouts"):
            if name in columns:
                columns[name] = columns[name].squeezed()
        missing = [name for name in ("observations", "actions", "rewards", "terminals") if name not in columns]
        if missing:
            raise UserError(f"expected the arrays {', '.join(missing)}, found none of that name")
        if record or len(columns["observations"].shape) != 2:
            shared = None
        if shared:
            spec = shared.single(columns["observations"].shape[1])
            found = [hdf5.column(file, name) for name in (robot.POSITIONS, robot.VELOCITIES)]
            columns["infos/state"] = shared.state(*found)
            columns.pop("infos/next_state", None)
        has_final = "next_observations" in columns
        if record and record.has_final_observation != has_final:
            raise UserError(f"next_observations: expected {'some' if not has_final else 'none'} by the file's record")
        known = record.spec if record else spec
        lengths, terminated, left = _cut(columns, known)
        report_tail(left, len(lengths), source.name)
        task = known or _implied(source, columns, lengths)
        if task.action.is_discrete:
            columns["actions"] = columns["actions"].squeezed()
        check_lengths(lengths, task, source.name)
        if left >= task.max_steps and known:
            raise UserError(
                f"expected an episode to end within {task.max_steps} steps, found {left} rows without an end"
            )
        _check_shapes(task, columns, has_final, state_follows=not shared)
        read_source = Source(
            spec=task,
            has_final_observation=has_final and not shared,
            parts=[Part(lengths=lengths, terminated=terminated, read=partial(_read, task, columns))],
            files=[source],
            provenance={"dropped_rows": left, **({"exported_from": record.origin} if record else {})},
        )
        yield shared.divided(read_source) if shared else read_source


def record_in(source: Path) -> Record | None:
    """What a file that we exported says of itself; None for another's."""
    with hdf5.open_file(source) as file:
        return _record(file)


def _record(file: Any) -> Record | None:
    text = hdf5.text_attribute(file, ATTRIBUTE)
    return None if text is None else parse_record(text, ATTRIBUTE)


def _cut(columns: Mapping[str, Column], spec: TaskSpec | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Lengths [K] and terminations [K] of the episodes, and the rows left over."""
    rows = columns["rewards"].rows
    terminals = flagged([columns["terminals"].expect(rows)], rows, "terminals")
    if "timeouts" in columns:
        timeouts = flagged([columns["timeouts"].expect(rows)], rows, "timeouts")
        ends = np.union1d(terminals, timeouts)
        lengths, left = np.diff(ends, prepend=-1), rows - (int(ends[-1]) + 1 if len(ends) else 0)
    elif spec is None:
        raise UserError("expected timeouts, found none, so the step limit is unknown; " + NAME_TASK)
    else:
        lengths, left = cut(terminals, rows, spec.max_steps)
    return lengths, np.isin(np.cumsum(lengths) - 1, terminals), left


def _implied(source: Path, columns: Mapping[str, Column], lengths: np.ndarray) -> TaskSpec:
    """The task of a published file: one agent, actions from -1 to 1, limit = its longest episode."""
    return single_agent(f"d4rl/{source.stem}", columns["observations"], columns["actions"], lengths)


def single_agent(task_id: str, observations: Column, actions: Column, lengths: np.ndarray) -> TaskSpec:
    """The task that one agent's arrays imply; raises, saying what to pass, where they imply none."""
    if len(observations.shape) != 2 or len(actions.shape) != 2 or actions.dtype.kind != "f" or not len(lengths):
        raise UserError(
            f"expected one agent's observations [M, O] and continuous actions [M, A], found {list(observations.shape)} "
            f"and {actions.dtype} {list(actions.shape)}; {NAME_TASK}"
        )
    size = actions.shape[1]
    return TaskSpec(
        task_id=task_id,
        agents=("agent_0",),
        observation_size=observations.shape[1],
        action=ActionSpec(kind="continuous", size=size, low=(-1.0,) * size, high=(1.0,) * size),
        max_steps=int(lengths.max()),
        team_reward="shared",
    )


def agent_axis(spec: TaskSpec) -> tuple[int, ...]:
    """The axis of N agents in an array's shape; single-agent files have none."""
    return (spec.num_agents,) if spec.num_agents > 1 else ()


def _check_shapes(
    spec: TaskSpec, columns: Mapping[str, Column], has_final: bool, *, state_follows: bool = True
) -> None:
    """state_follows: whether the states that follow are stored where the observations that follow are."""
    rows, axis, action = columns["rewards"].rows, agent_axis(spec), spec.action
    tails: dict[str, tuple[int, ...]] = {
        "observations": (*axis, spec.observation_size),
        "state": (spec.state_size or 0,),
        "action_mask": (*axis, action.size),
    }
    columns["rewards"].expect(rows)
    columns["actions"].expect(rows, *axis, *(() if action.is_discrete else (action.size,)))
    if "infos/agent_rewards" in columns:
        columns["infos/agent_rewards"].expect(rows, spec.num_agents)
    elif spec.num_agents > 1 and spec.team_reward != "shared":
        raise UserError(f"infos/agent_rewards: expected [{rows}, {spec.num_agents}] ({spec.task_id}), found none")
    for name in _stored(spec):
        both = [column for column in (columns.get(_FRAMES[name]), columns.get(_NEXT[name])) if column is not None]
        for column in both:
            column.expect(rows, *tails[name])
        follows = has_final and (name != "state" or state_follows)
        if both and (_FRAMES[name] not in columns or follows != (_NEXT[name] in columns)):
            raise UserError(
                f"{_FRAMES[name]}: expected it {'with' if has_final else 'without'} {_NEXT[name]}, as observations are"
            )


def _stored(spec: TaskSpec) -> list[str]:
    """Frame arrays a store of the task may have."""
    return [
        "observations",
        *(["state"] if spec.state_size else []),
        *(["action_mask"] if spec.action.is_discrete else []),
    ]


def _read(spec: TaskSpec, columns: Mapping[str, Column], run: Run) -> Rows:
    start, stop, agents = run.rows.start, run.rows.stop, spec.num_agents
    rows = stop - start
    actions = columns["actions"]
    steps = {
        "actions": actions.choices(start, stop, spec.action.size).reshape(rows, agents)
        if spec.action.is_discrete
        else actions.floats(start, stop).reshape(rows, agents, spec.action.size),
        "rewards": _rewards(spec, columns, start, stop),
    }
    finals = {}
    for name in _stored(spec):
        if _FRAMES[name] not in columns:
            continue
        current = steps[name] = _frames(spec, name, columns[_FRAMES[name]], start, stop)
        if _NEXT[name] in columns:
            following = _frames(spec, name, columns[_NEXT[name]], start, stop)
            finals[name] = final_rows(current, following, run, _NEXT[name])
    return Rows(steps=steps, finals=finals)


def _frames(spec: TaskSpec, name: str, column: Column, start: int, stop: int) -> np.ndarray:
    values = column.flags(start, stop) if name == "action_mask" else column.floats(start, stop)
    return values if name == "state" else values.reshape(stop - start, spec.num_agents, -1)


def _rewards(spec: TaskSpec, columns: Mapping[str, Column], start: int, stop: int) -> np.ndarray:
    """Rewards per agent [M, N]; where the team's are stored beside them, the two must agree."""
    team = columns["rewards"].floats(start, stop)
    if "infos/agent_rewards" not in columns:
        return np.repeat(team[:, None], spec.num_agents, axis=1)
    rewards = columns["infos/agent_rewards"].floats(start, stop)
    expected = _team_rewards(spec, rewards)
    wrong = np.abs(team - expected) > TEAM_TOLERANCE * np.maximum(1.0, np.abs(rewards).max(axis=1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"rewards: expected {expected[row]} at row {start + row}, the team reward of infos/agent_rewards "
            f"({spec.team_reward}), found {team[row]}"
        )
    return rewards


def _team_rewards(spec: TaskSpec, rewards: np.ndarray) -> np.ndarray:
    """Team reward of each step, [M] float64, of the agents' rewards [M, N]."""
    return spec.team_return(torch.from_numpy(rewards.astype(np.float64))).numpy()


def write(store: EpisodeStore, path: Path, target: Path) -> None:
    """Writes the file at `path`, to be named `target`."""
    spec, rows, single = store.spec, store.num_steps, store.spec.num_agents == 1
    with hdf5.library().File(path, "w") as file:

        def put(name: str, start: int, values: np.ndarray, *, per_agent: bool) -> None:
            values = values[:, 0] if per_agent and single else values
            if name not in file:
                file.create_dataset(name, shape=(rows, *values.shape[1:]), dtype=values.dtype)
            file[name][start : start + len(values)] = values

        for run, piece in store_pieces(store):
            start = run.rows.start
            put("actions", start, piece.actions, per_agent=True)
            put("rewards", start, _team_rewards(spec, piece.rewards).astype(np.float32), per_agent=False)
            if not single:
                put("infos/agent_rewards", start, piece.rewards, per_agent=False)
            for name, ended in (("terminals", piece.terminated), ("timeouts", ~piece.terminated)):
                flags = np.zeros(piece.num_steps, dtype=bool)
                flags[run.last_rows] = ended
                put(name, start, flags, per_agent=False)
            for name, array_path in _FRAMES.items():
                if getattr(piece, name) is None:
                    continue
                current = step_frames(piece, name)
                put(array_path, start, current, per_agent=name != "state")
                if store.has_final_observation:
                    following = np.concatenate([current[1:], current[:1]])
                    following[run.last_rows] = final_frames(piece, name)
                    put(_NEXT[name], start, following, per_agent=name != "state")
        file.attrs[ATTRIBUTE] = np.bytes_(json.dumps(record_of(store)))
