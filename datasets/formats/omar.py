"""OMAR's `.npy` files (MPE): flat transitions, one file per agent and field, one folder per training seed.

    <quality>/seed_<k>_data/{obs,acs,rews,next_obs,dones}_<agent>.npy
    obs, next_obs [M, O]; acs [M, A]; rews, dones [M]; float32 or float64

`ling-pan/OMAR: main.py, utils/buffer.py`. Episodes are not marked: the environment never sets done, so they are cut
where all dones are set or at the task's step limit, as `zbzhu99/madiff: diffuser/datasets/mpe.py` does; an end at the
limit is a time limit, not a termination. A trailing partial episode is left out there and here; here the log and the
provenance (`dropped_rows`) say so. Stored next observations prove the order of the rows and give the final one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from marl_flow.datasets.formats.columns import Column, npy_column
from marl_flow.datasets.formats.episodes import Part, Rows, Run, Source, cut, final_rows, flagged, report_tail
from marl_flow.interfaces import TaskSpec, UserError

_FIELDS = ("obs", "acs", "rews", "dones")
_FILE = re.compile(r"(obs|acs|rews|next_obs|dones)_(\d+)\.npy")
_SEED = re.compile(r"seed_(\d+)_data")


@dataclass(frozen=True, kw_only=True)
class _Seed:
    """One folder's columns, per controlled agent. `next_obs` is empty where the files are absent."""

    name: str
    obs: list[Column]
    acs: list[Column]
    rews: list[Column]
    dones: list[Column]
    next_obs: list[Column]


@contextmanager
def open_source(source: Path, spec: TaskSpec) -> Iterator[Source]:
    """All seeds below a quality's folder in numeric order, or the files of one folder."""
    parts, files, strata, others, finals = [], [], [], set(), set()
    dropped = 0
    for seed, folder in _folders(source):
        found, more = _listing(folder, spec)
        columns = _open(folder, found, spec)
        rows = columns.obs[0].rows
        ends = flagged(columns.dones, rows, f"{columns.name}/dones")
        lengths, left = cut(ends, rows, spec.max_steps)
        report_tail(left, len(lengths), str(folder))
        parts.append(Part(lengths=lengths, terminated=lengths < spec.max_steps, read=partial(_read, spec, columns)))
        files += [folder / name for name in found]
        strata.append({"seed": seed, "episodes": len(lengths)})
        others |= more
        finals.add(bool(columns.next_obs))
        dropped += left
    if len(finals) > 1:
        raise UserError("expected next_obs files in every seed's folder or in none, found them in some")
    yield Source(
        spec=spec,
        has_final_observation=finals.pop(),
        parts=parts,
        files=files,
        provenance={"strata": strata, "dropped_rows": dropped, "agents_left_out": sorted(others)},
    )


def _folders(source: Path) -> list[tuple[int | None, Path]]:
    """Seed and folder of each set of files."""
    if not source.is_dir():
        raise UserError(
            f"expected a folder of seeds, or of .npy files, found {'a file' if source.exists() else 'none'}"
        )
    seeds: dict[int | None, Path] = {}
    for path in source.iterdir():
        match = _SEED.fullmatch(path.name)
        if match is None and path.name.startswith("seed_"):
            raise UserError(f"expected folders seed_<number>_data, found {path.name}")
        if match is not None:
            if int(match[1]) in seeds:
                raise UserError(f"expected one folder per seed, found {path.name} and {seeds[int(match[1])].name}")
            seeds[int(match[1])] = path
    flat = any(_FILE.fullmatch(path.name) for path in source.iterdir())
    if flat and seeds:
        raise UserError("expected folders of seeds or .npy files, found both; pass the folder of one seed")
    if flat:
        own = _SEED.fullmatch(source.name)
        return [(int(own[1]) if own else None, source)]
    if not seeds:
        raise UserError("expected folders seed_<number>_data, or obs_0.npy and its like, found neither")
    return sorted(seeds.items())


def _listing(folder: Path, spec: TaskSpec) -> tuple[list[str], set[int]]:
    """Names of the files to read, and the numbers of agents beyond the controlled ones (a prey's, as a rule)."""
    if not folder.is_dir():
        raise UserError(f"{folder.name}: expected a folder of .npy files, found a file")
    matches = [match for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))]
    found = {match[0] for match in matches}
    fields = [*_FIELDS, *(["next_obs"] if any(match[1] == "next_obs" for match in matches) else [])]
    wanted = [f"{field}_{agent}.npy" for field in fields for agent in range(spec.num_agents)]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{folder.name}: expected {', '.join(wanted)}, found no {', '.join(missing)}")
    return wanted, {int(match[2]) for match in matches} - set(range(spec.num_agents))


def _open(folder: Path, names: list[str], spec: TaskSpec) -> _Seed:
    columns = {name: npy_column(folder / name) for name in names}
    rows = columns["obs_0.npy"].rows
    tails = {"obs": (spec.observation_size,), "next_obs": (spec.observation_size,), "acs": (spec.action.size,)}
    fields: dict[str, list[Column]] = {field: [] for field in (*_FIELDS, "next_obs")}
    for name, column in columns.items():
        field = name.rpartition("_")[0]
        fields[field].append(column.expect(rows, *tails.get(field, ())))
    return _Seed(name=folder.name, **fields)


def _read(spec: TaskSpec, seed: _Seed, run: Run) -> Rows:
    def stacked(columns: list[Column]) -> np.ndarray:
        return np.stack([column.floats(run.rows.start, run.rows.stop) for column in columns], axis=1)

    observations = stacked(seed.obs)
    steps = {"observations": observations, "actions": stacked(seed.acs), "rewards": stacked(seed.rews)}
    if not seed.next_obs:
        return Rows(steps=steps)
    finals = final_rows(observations, stacked(seed.next_obs), run, f"{seed.name}/next_obs")
    return Rows(steps=steps, finals={"observations": finals})
