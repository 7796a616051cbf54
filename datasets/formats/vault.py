"""OG-MARL's vaults (flashbax): every array in one OCDBT store, read with tensorstore alone, without JAX.

    metadata.json     structure_shape (strings of tuples), structure_dtype: nested dicts with the leaves
    leaves            observations [B, T, N, D], actions, rewards, terminals, truncations [B, T, N], infos.state,
                      infos.legals; zarr arrays named by dotted path and a trailing dot, of nearly endless T
    vault_index [1]   how many rows of T are valid

`instadeepai/flashbax: flashbax/vault/vault.py`. An episode ends where all agents' terminals or truncations are set;
rows after the last end are left out and reported (`dropped_rows`). SMAC sets a terminal at the time limit too
(`instadeepai/og-marl: og_marl/wrapped_environments/smacv1.py`), so an episode of exactly the task's limit is a time
limit. Vaults hold no agent ids: MA-MuJoCo's are put on. B slots are the seeds of a converted OMAR set (1 otherwise),
whose tag and world carry the prey as a fourth agent, padded: the controlled ones are the first three. The row after
an end belongs to the next episode, so final observations are absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from marl_flow.datasets.formats.agent_ids import check_width, with_ids
from marl_flow.datasets.formats.columns import Column
from marl_flow.datasets.formats.episodes import Part, Rows, Run, Source, check_lengths, flagged, report_tail
from marl_flow.datasets.specs import has_agent_ids
from marl_flow.interfaces import TaskSpec, UserError

_REQUIRED = ("observations", "actions", "rewards", "terminals", "truncations")
_STATE, _LEGALS = "infos.state", "infos.legals"
_PREY_LAST = ("mpe",)  # suites whose vaults may carry agents that are not controlled, after those that are
_SHAPE = re.compile(r"\((\d{1,18}(?:, ?\d{1,18})*),?\)")
_CHUNK_BYTES = 1 << 30
_CACHE_BYTES = 1 << 28
_ERRORS = (OSError, RuntimeError, KeyError, IndexError, ValueError, TypeError, OverflowError, MemoryError)


@contextmanager
def open_source(source: Path, spec: TaskSpec) -> Iterator[Source]:
    """The episodes of one quality's folder, slot by slot."""
    shapes, dtypes = _structure(source)
    leaves = dict.fromkeys((*_REQUIRED, *_wanted(spec, shapes)))
    missing = [name for name in leaves if name not in shapes]
    if missing:
        raise UserError(f"metadata.json: expected the leaves {', '.join(_REQUIRED)}, found no {', '.join(missing)}")
    slots = shapes["observations"][0]
    reader = _Reader(source)
    rows = reader.index()
    arrays = {name: reader.leaf(name, shapes[name], dtypes[name], slots, rows) for name in leaves}
    parts, strata, dropped = [], [], 0
    for slot in range(slots):
        columns = {name: _column(spec, name, array, slot, rows) for name, array in arrays.items()}
        lengths, terminated, left = _ends(columns, spec, rows, f"slot {slot}")
        parts.append(Part(lengths=lengths, terminated=terminated, read=partial(_read, spec, columns)))
        strata.append({"seed": slot, "episodes": len(lengths)})
        dropped += left
    yield Source(
        spec=spec,
        has_final_observation=False,
        parts=parts,
        files=sorted(path for path in source.rglob("*") if path.is_file()),
        provenance={
            "strata": strata,
            "dropped_rows": dropped,
            "arrays_left_out": sorted(shapes.keys() - leaves.keys()),
            "agents_left_out": list(range(spec.num_agents, shapes["observations"][2])),
        },
    )


def _wanted(spec: TaskSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Optional leaves that a store of the task keeps."""
    optional = [*([_STATE] if spec.state_size else []), *([_LEGALS] if spec.action.is_discrete else [])]
    return [name for name in optional if name in shapes]


def _structure(source: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shape and dtype name of each leaf by its dotted path."""
    if source.is_dir() and not (source / "metadata.json").exists():
        inside = sorted(path.parent.name for path in source.glob("*/metadata.json"))
        raise UserError(
            "expected a quality's folder with metadata.json, found none"
            + (f"; choose one of its folders {', '.join(inside)}" if inside else "")
        )
    try:
        metadata = json.loads((source / "metadata.json").read_text(encoding="utf-8"))
        version = float(metadata["version"])
        shapes, dtypes = _flat(metadata["structure_shape"]), _flat(metadata["structure_dtype"])
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"metadata.json: expected a vault's description, found: {error!r}") from error
    if not 1 <= version < 2:
        raise UserError(f"metadata.json: expected version 1.x, found {version}")
    if shapes.keys() != dtypes.keys():
        raise UserError(f"metadata.json: expected one dtype per shape, found {sorted(shapes)} and {sorted(dtypes)}")
    parsed = {}
    for name, text in shapes.items():
        match = _SHAPE.fullmatch(text)
        if match is None or min(shape := tuple(int(part) for part in match[1].split(","))) < 1 or len(shape) < 3:
            raise UserError(f"metadata.json: expected a shape such as '(1, 1000, 2)' for {name}, found {text!r}")
        parsed[name] = shape
    return parsed, dtypes


def _flat(nested: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of nested dicts by dotted path."""
    if not isinstance(nested, dict):
        raise UserError(f"metadata.json: expected a tree of texts, found {nested!r} at {prefix or 'its root'}")
    leaves: dict[str, str] = {}
    for key, value in nested.items():
        leaves |= {f"{prefix}{key}": value} if isinstance(value, str) else _flat(value, f"{prefix}{key}.")
    return leaves


class _Reader:
    """Opens a vault's arrays; whatever tensorstore raises over damaged files becomes one message."""

    def __init__(self, source: Path) -> None:
        try:
            import tensorstore
        except ImportError as error:
            raise UserError('reading a vault needs tensorstore; pip install "marl_flow[vault]"') from error
        self.library = tensorstore
        self.base = {"driver": "file", "path": f"{source.resolve()}/"}
        self.context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})

    def open(self, name: str) -> Any:
        place = {"driver": "ocdbt", "base": self.base, "path": f"{name}/"}
        store = {"driver": "zarr", "kvstore": place, "fill_missing_data_reads": False}  # the vault's fill value is null
        with _damage(name):
            array: Any = self.library.open(store, open=True, read=True, context=self.context).result()
            chunk = math.prod(array.chunk_layout.read_chunk.shape or ()) * array.dtype.numpy_dtype.itemsize
        if chunk > _CHUNK_BYTES:
            raise UserError(f"{name}: expected chunks of at most {_CHUNK_BYTES:,} bytes, found {chunk:,}")
        return array

    def index(self) -> int:
        """Number of valid rows."""
        array = self.open("vault_index")
        if array.dtype.name != "int32" or tuple(array.shape) != (1,):
            raise UserError(f"vault_index: expected int32 [1], found {array.dtype.name} {list(array.shape)}")
        with _damage("vault_index"):
            rows = int(array.read().result()[0])
        if rows < 1:
            raise UserError(f"vault_index: expected at least one row, found {rows}")
        return rows

    def leaf(self, name: str, shape: tuple[int, ...], dtype: str, slots: int, rows: int) -> Any:
        """One array, which must be as metadata.json says and long enough."""
        array = self.open(f"{name}.")
        found = tuple(array.shape)
        if (found[:1], found[2:]) != ((slots,), shape[2:]) or shape[0] != slots or array.dtype.name != dtype:
            raise UserError(
                f"{name}: expected {dtype} {[slots, 'T', *shape[2:]]} (metadata.json), "
                f"found {array.dtype.name} {list(found)}"
            )
        if found[1] < rows:
            raise UserError(f"{name}: expected the {rows} rows of vault_index, found {found[1]}")
        return array


@contextmanager
def _damage(name: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise UserError(f"{name}: expected a readable array of the vault, found: {error}") from error


def _column(spec: TaskSpec, name: str, array: Any, slot: int, rows: int) -> Column:
    """One slot of a leaf, without the agents that are not controlled; its shape must be the task's."""
    label, shape, agents = f"{name} of slot {slot}", tuple(array.shape[2:]), spec.num_agents
    if name == _STATE:
        whole, tail = slice(None), (spec.state_size or 0,)
    else:
        padded = spec.task_id.partition("/")[0] in _PREY_LAST and shape[0] > agents
        if shape[0] != agents and not padded:
            raise UserError(f"{name}: expected {agents} agents ({spec.task_id}), found {shape[0]}")
        size = spec.action.size
        tails = {
            "observations": shape[1:],
            "actions": () if spec.action.is_discrete else (size,),
            _LEGALS: (size,),
        }
        whole, tail = slice(agents), (agents, *tails.get(name, ()))
        shape = (agents, *shape[1:])

    def fetch(start: int, stop: int) -> np.ndarray:
        with _damage(label):
            return array[slot, start:stop, whole].read().result()

    column = Column(name=label, shape=(rows, *shape), dtype=array.dtype.numpy_dtype, fetch=fetch)
    if name == "observations":
        check_width(spec, column, spec.observation_size - (agents if has_agent_ids(spec) else 0))
    return column.expect(rows, *tail)


def _ends(columns: Mapping[str, Column], spec: TaskSpec, rows: int, where: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Lengths [K] and terminations [K] of a slot's episodes, and the rows left over."""
    terminals, truncations = columns["terminals"], columns["truncations"]
    either = Column(
        name=f"ends of {where}",
        shape=terminals.shape,
        dtype=np.dtype(bool),
        fetch=lambda start, stop: terminals.flags(start, stop) | truncations.flags(start, stop),
    )
    ends = flagged([either], rows, either.name)
    lengths, left = np.diff(ends, prepend=-1), rows - (int(ends[-1]) + 1 if len(ends) else 0)
    report_tail(left, len(lengths), where)
    check_lengths(lengths, spec, where)
    if left >= spec.max_steps:
        raise UserError(f"{where}: expected an episode to end within {spec.max_steps} steps, found {left} rows without")
    failed = np.isin(ends, flagged([terminals], rows, terminals.name))
    return lengths, failed & (lengths < spec.max_steps), left


def _read(spec: TaskSpec, columns: Mapping[str, Column], run: Run) -> Rows:
    start, stop, actions = run.rows.start, run.rows.stop, columns["actions"]
    observations = columns["observations"].floats(start, stop)
    steps = {
        "observations": with_ids(spec, observations) if has_agent_ids(spec) else observations,
        "actions": actions.choices(start, stop, spec.action.size)
        if spec.action.is_discrete
        else actions.floats(start, stop),
        "rewards": columns["rewards"].floats(start, stop),
    }
    if _STATE in columns:
        steps["state"] = columns[_STATE].floats(start, stop)
    if _LEGALS in columns:
        steps["action_mask"] = columns[_LEGALS].flags(start, stop)
    return Rows(steps=steps)
