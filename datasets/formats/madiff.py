"""MADiff's and CoFlow's `.npy` files (MA-MuJoCo, SMAC): episodes end to end, with their lengths.

    obs [S, N, N + D], the one-hot agent id first; actions [S, N, A] or integers [S, N]; rewards [S, N];
    path_lengths [E]; discounts [S, N] (0 at an end); SMAC: legals [S, N, A], states [S, state]

`Guowei-Zou/coflow-release: scripts/transform_og_marl_dataset.py` writes them,
`diffuser/datasets/{mamujoco,smac_env}.py` read them. A final discount of 0 means failure or time limit: an episode of
exactly the task's limit is taken for a time limit, a shorter one for a termination. Without `discounts.npy` every
episode is taken to have ended with 0.

Our export adds what the layout lacks, in files of other names that other readers pass over: `task.json`,
`terminated.npy` [E] and, where final observations are there, `final_{observations,states,legals}.npy` [E, ...].
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from marl_flow.datasets.formats.agent_ids import check_width, width_with_ids, with_ids, without_ids
from marl_flow.datasets.formats.columns import Column, npy_column
from marl_flow.datasets.formats.episodes import Part, Rows, Run, Source, check_lengths, flagged
from marl_flow.datasets.formats.record import Record, check_task, parse_record, record_of
from marl_flow.datasets.formats.steps import final_frames, step_frames, store_pieces
from marl_flow.datasets.specs import has_agent_ids
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import TaskSpec, UserError

TASK = "task.json"
_REQUIRED = ("obs", "actions", "rewards", "path_lengths")
_FRAMES = {"observations": "obs", "state": "states", "action_mask": "legals"}  # in a store, in a file
_FINALS = {"observations": "final_observations", "state": "final_states", "action_mask": "final_legals"}


@contextmanager
def open_source(source: Path, spec: TaskSpec) -> Iterator[Source]:
    """The files in one quality's folder."""
    record, names = _listing(source, spec)
    columns = {name: npy_column(source / f"{name}.npy") for name in names}
    rows, episodes = columns["obs"].rows, columns["path_lengths"].rows
    check_width(spec, columns["obs"], width_with_ids(spec))
    agents, action = spec.num_agents, spec.action
    shapes: dict[str, tuple[int, ...]] = {
        "actions": (rows, agents) if action.is_discrete else (rows, agents, action.size),
        "rewards": (rows, agents),
        "discounts": (rows, agents),
        "path_lengths": (episodes,),
        "states": (rows, spec.state_size or 0),
        "legals": (rows, agents, action.size),
        "terminated": (episodes,),
        "final_observations": (episodes, agents, width_with_ids(spec)),
        "final_states": (episodes, spec.state_size or 0),
        "final_legals": (episodes, agents, action.size),
    }
    for name, shape in shapes.items():
        if name in columns:
            columns[name].expect(*shape)
    lengths = _lengths(columns["path_lengths"], rows, spec)
    yield Source(
        spec=spec,
        has_final_observation="final_observations" in columns,
        parts=[
            Part(lengths=lengths, terminated=_terminated(columns, lengths, spec), read=partial(_read, spec, columns))
        ],
        files=[*(source / f"{name}.npy" for name in names), *([source / TASK] if record else [])],
        provenance={
            "arrays_left_out": sorted({path.stem for path in source.glob("*.npy")} - set(names)),
            **({"exported_from": record.origin} if record else {}),
        },
    )


def record_in(source: Path) -> Record | None:
    """What a folder that we exported says of itself; None for another's."""
    if not (source / TASK).exists():
        return None
    try:
        return parse_record((source / TASK).read_text(encoding="utf-8"), TASK)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{TASK}: expected readable text, found: {error!r}") from error


def _listing(source: Path, spec: TaskSpec) -> tuple[Record | None, list[str]]:
    """Our own record, where we wrote the files, and the names of the arrays to read."""
    if not source.is_dir():
        raise UserError("expected a folder with obs.npy and its like, found none")
    optional = ["discounts", *(["states"] if spec.state_size else []), *(["legals"] if spec.action.is_discrete else [])]
    record = record_in(source)
    if record:
        check_task(spec, record.spec, TASK)
    present = [name for name in optional if (source / f"{name}.npy").exists()]
    ours = ["terminated"] if record else []
    if record and record.has_final_observation:
        ours += [final for name, final in _FINALS.items() if _FRAMES[name] in ("obs", *present)]
    return record, [*_REQUIRED, *present, *ours]


def _lengths(column: Column, rows: int, spec: TaskSpec) -> np.ndarray:
    """Path lengths, whose sum is the number of rows, [E] int64."""
    if column.dtype.kind not in "iu":
        raise UserError(f"{column.name}: expected integers, found {column.dtype}")
    values = column.fetch(0, column.rows)
    check_lengths(values, spec, column.name)
    lengths = values.astype(np.int64)
    if int(lengths.sum()) != rows:
        raise UserError(f"{column.name}: expected lengths that add up to the {rows} rows of obs, found {lengths.sum()}")
    return lengths


def _terminated(columns: Mapping[str, Column], lengths: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Which episodes ended by the task's rules, [E] bool; discounts may fall to 0 only at an episode's end."""
    zero = np.ones(len(lengths), dtype=bool)
    if "discounts" in columns:
        discounts = columns["discounts"]
        continues = Column(
            name=discounts.name,
            shape=discounts.shape,
            dtype=np.dtype(bool),
            fetch=lambda start, stop: discounts.floats(start, stop) == 0,
        )
        ends = flagged([continues], discounts.rows, discounts.name)
        last = np.cumsum(lengths) - 1
        inside = np.setdiff1d(ends, last)
        if inside.size:
            raise UserError(
                f"{discounts.name}: expected 0 at the last step of an episode only, found it at row {inside[0]}, "
                "inside one of path_lengths.npy"
            )
        zero = np.isin(last, ends)
    if "terminated" in columns:
        return columns["terminated"].flags(0, len(lengths))
    return zero & (lengths < spec.max_steps)


def _read(spec: TaskSpec, columns: Mapping[str, Column], run: Run) -> Rows:
    start, stop, episodes = run.rows.start, run.rows.stop, run.episodes
    actions = columns["actions"]
    steps = {
        "observations": without_ids(spec, columns["obs"].floats(start, stop), columns["obs"].name, start),
        "actions": actions.choices(start, stop, spec.action.size)
        if spec.action.is_discrete
        else actions.floats(start, stop),
        "rewards": columns["rewards"].floats(start, stop),
    }
    finals: dict[str, np.ndarray] = {}
    if "states" in columns:
        steps["state"] = columns["states"].floats(start, stop)
    if "legals" in columns:
        steps["action_mask"] = columns["legals"].flags(start, stop)
    if "final_observations" in columns:
        column = columns["final_observations"]
        values = column.floats(episodes.start, episodes.stop)
        finals["observations"] = without_ids(spec, values, column.name, episodes.start)
    if "final_states" in columns:
        finals["state"] = columns["final_states"].floats(episodes.start, episodes.stop)
    if "final_legals" in columns:
        finals["action_mask"] = columns["final_legals"].flags(episodes.start, episodes.stop)
    return Rows(steps=steps, finals=finals)


def write(store: EpisodeStore, folder: Path, target: Path) -> None:
    """Writes a new folder, to be named `target`."""
    folder.mkdir()
    rows, episodes = store.num_steps, store.num_episodes
    files: dict[str, np.memmap] = {}

    def put(name: str, total: int, start: int, values: np.ndarray) -> None:
        if name not in files:
            files[name] = np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+", dtype=values.dtype, shape=(total, *values.shape[1:])
            )
        files[name][start : start + len(values)] = values

    put("path_lengths", episodes, 0, store.lengths)
    put("terminated", episodes, 0, store.terminated)
    for run, piece in store_pieces(store):
        start = run.rows.start
        put("actions", rows, start, piece.actions)
        put("rewards", rows, start, piece.rewards)
        discounts = np.ones_like(piece.rewards)
        discounts[run.last_rows] = 0.0
        put("discounts", rows, start, discounts)
        for name, file in _FRAMES.items():
            if getattr(piece, name) is None:
                continue
            put(file, rows, start, _outside(store.spec, name, step_frames(piece, name)))
            if store.has_final_observation:
                last = _outside(store.spec, name, final_frames(piece, name))
                put(_FINALS[name], episodes, run.episodes.start, last)
    for file_map in files.values():
        file_map.flush()
    (folder / TASK).write_text(json.dumps(record_of(store), indent=1) + "\n", encoding="utf-8")


def _outside(spec: TaskSpec, name: str, values: np.ndarray) -> np.ndarray:
    """A store's frames as the layout has them: ids first, masks as float32."""
    if name == "action_mask":
        return values.astype(np.float32)
    return with_ids(spec, values) if name == "observations" and not has_agent_ids(spec) else values
