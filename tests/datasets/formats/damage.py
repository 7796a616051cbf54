"""Ways to break files and arrays, and the judge: damaged input is refused, or read as a plain reader would read it."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marl_flow.datasets.formats import import_dataset
from marl_flow.datasets.layout import FRAME_ARRAYS
from marl_flow.datasets.store import EpisodeStore
from marl_flow.interfaces import TaskSpec, UserError

Files = dict[str, bytes]


class Judge:
    """Imports damaged sources. Passes a refusal that leaves nothing on disk, and a reading that equals the oracle's."""

    def __init__(self, root: Path) -> None:
        self.source, self.place = root / "source", root / "place"
        self.refused = self.read = 0
        self.messages: set[str] = set()
        self.place.mkdir(parents=True)

    def __call__(
        self,
        layout: str,
        source: Path,
        spec: TaskSpec | None,
        oracle: Callable[[Path, TaskSpec], Mapping[str, Any]],
        what: str,
    ) -> None:
        try:
            store = import_dataset(layout, source, self.place / "data", dataset_id="x/y", spec=spec, provenance={})
        except UserError as error:
            self.refused += 1
            self.messages.add(str(error))
            assert str(error).startswith(f"cannot import {source}"), what
            assert list(self.place.iterdir()) == [], what
            return
        except Exception as error:
            raise AssertionError(f"{what}: {error!r} instead of a refusal") from error
        self.read += 1
        compare(store, oracle(source, store.spec), what)
        shutil.rmtree(self.place / "data")


def compare(store: EpisodeStore, expected: Mapping[str, Any], what: str) -> None:
    """The store against an oracle's arrays: `lengths`, `terminated`, steps by name, final frames as `final_<name>`."""
    np.testing.assert_array_equal(store.lengths, expected["lengths"], err_msg=what)
    assert store.lengths.max() <= store.spec.max_steps, what
    np.testing.assert_array_equal(store.terminated, expected["terminated"], err_msg=what)
    for name in ("observations", "actions", "rewards", "state", "action_mask"):
        found = getattr(store, name)
        assert (found is None) == (name not in expected), (what, name)
        if found is None:
            continue
        wanted = []
        for k, (first, length) in enumerate(zip(store.offsets[:-1], store.lengths, strict=True)):
            rows = np.asarray(expected[name][first : first + length])
            last = expected[f"final_{name}"][k : k + 1] if f"final_{name}" in expected else rows[-1:]
            wanted += [rows, last] if name in FRAME_ARRAYS else [rows]
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(found, np.concatenate(wanted).astype(found.dtype), err_msg=f"{what}: {name}")
    assert store.has_final_observation == ("final_observations" in expected), what


def files_of(folder: Path) -> Files:
    """Every file below a folder by its name, or the one file by ''."""
    if folder.is_file():
        return {"": folder.read_bytes()}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def lay(folder: Path, files: Files) -> Path:
    """The files, and nothing else, at `folder`; what is there already as it should be is not written again."""
    before = files_of(folder) if folder.exists() else {}
    for name in before.keys() - files.keys():
        (folder / name if name else folder).unlink()
    for name, data in files.items():
        if before.get(name) != data:
            path = folder / name if name else folder
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for path in sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else []:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return folder


def break_bytes(files: Files, draw: np.random.Generator, head: int = 128) -> tuple[Files, str]:
    """The files with one of them cut, flipped, filled, lengthened, emptied, missing, or in another's place."""
    files = dict(files)
    name = str(draw.choice(sorted(files)))
    data = bytearray(files[name])
    kind = str(
        draw.choice(["cut", "flip", "flip", "flip head", "flip head", "fill", "lengthen", "empty", "missing", "swap"])
    )
    if kind == "cut":
        data = data[: int(draw.integers(len(data)))]
    elif kind in ("flip", "flip head"):
        for _ in range(int(draw.integers(1, 5))):
            data[int(draw.integers(min(head, len(data)) if kind == "flip head" else len(data)))] ^= int(
                draw.integers(1, 256)
            )
    elif kind == "fill":
        start = int(draw.integers(len(data)))
        stop = min(len(data), start + int(draw.integers(1, 64)))
        data[start:stop] = bytes([int(draw.choice([0, 255]))]) * (stop - start)
    elif kind == "lengthen":
        data += bytes(int(draw.integers(1, 32)))
    elif kind == "empty":
        data = bytearray()
    elif kind == "swap":
        other = str(draw.choice(sorted(files)))
        files[other], data = bytes(data), bytearray(files[other])
    files[name] = bytes(data)
    if kind == "missing":
        del files[name]
    return files, f"{kind} {name}"


def break_array(array: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, str]:
    """An array of another dtype, rank, width, length, order, or with one strange entry."""
    array = array.copy()
    flat, at = array.reshape(-1), int(draw.integers(array.size))
    strange = [np.nan, np.inf, -np.inf, 1e39, -1.5, 1.5, 1 + 1e-6, 2, -1, 7, 0, 1, 1e300]
    kind = str(draw.choice(["dtype", "rank", "width", "rows", "order", "entry", "entry", "entry", "shuffle", "swap"]))
    with np.errstate(all="ignore"):
        if kind == "dtype":
            kinds = [
                "f2",
                "f4",
                "f8",
                ">f8",
                ">f4",
                "i1",
                "i2",
                ">i4",
                "i8",
                "u1",
                "u2",
                "u8",
                "?",
                "c8",
                "O",
                "U3",
                "S2",
                "M8[s]",
            ]
            kind = str(draw.choice(kinds))
            array = array.astype(float).astype("i8").astype(kind) if kind == "M8[s]" else array.astype(kind)
        elif kind == "rank":
            array = array[None] if draw.random() < 0.3 else array[..., None] if draw.random() < 0.5 else flat
        elif kind == "width":
            array = np.concatenate([array, array[..., :1]], axis=-1) if draw.random() < 0.5 else array[..., :-1]
        elif kind == "rows":
            array = array[int(draw.integers(0, 3)) :] if draw.random() < 0.5 else np.concatenate([array, array[:1]])
        elif kind == "order":
            array = np.asfortranarray(array)
        elif kind == "shuffle":
            array = array[draw.permutation(len(array))]
        elif kind == "swap":
            array = array[..., ::-1]
        else:
            value = strange[int(draw.integers(len(strange)))]
            flat[at] = value if array.dtype.kind == "f" or (np.isfinite(value) and abs(value) < 100) else 3
            kind = f"entry {value} at {at}"
    return array, kind


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    """The array as a `.npy` file; object arrays as numpy pickles them."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=True)
    return buffer.getvalue()


def npy_of(data: bytes) -> np.ndarray:
    """The array in a `.npy` file's bytes."""
    return np.load(io.BytesIO(data), allow_pickle=False)


def lying_header(data: bytes, draw: np.random.Generator) -> bytes:
    """A `.npy` file whose header claims another shape, huge and negative ones among them."""
    array = npy_of(data)
    width = int(draw.choice([-1, 0, 1, 2**31, 2**40, 2**62, 2**63, 10**30]))
    shape = list(array.shape)
    shape[int(draw.integers(len(shape)))] = width
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    header = text.encode().ljust(245) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + array.tobytes()


def break_json(text: str, draw: np.random.Generator) -> tuple[str, str]:
    """JSON text with one value replaced, removed or added somewhere, or cut, or with bytes that are no JSON."""
    record = json.loads(text)
    kind = str(draw.choice(["replace", "replace", "replace", "remove", "add", "cut", "garbage"]))
    if kind == "cut":
        return text[: int(draw.integers(len(text)))], kind
    if kind == "garbage":
        at = int(draw.integers(len(text)))
        return text[:at] + str(draw.choice(["\x00", "}", '"', "[" * 3000, "NaN", "\\"])) + text[at:], kind
    record = copy.deepcopy(record)
    places = [
        (holder, key)
        for holder in _holders(record)
        for key in (holder if isinstance(holder, dict) else range(len(holder)))
    ]
    holder, key = places[int(draw.integers(len(places)))]
    values: Sequence[Any] = [
        None,
        -1,
        0,
        1,
        2,
        3,
        1.5,
        True,
        "x",
        "",
        "shared",
        "sum",
        [],
        {},
        [1],
        10**30,
        float("nan"),
        "(1, 2, 3)",
        "(0,)",
        "float32",
    ]
    if kind == "remove":
        del holder[key]
    elif kind == "add" and isinstance(holder, dict):
        holder["unknown"] = 1
    else:
        value = values[int(draw.integers(len(values)))]
        kind, holder[key] = f"{key} = {value!r}", value
    return json.dumps(record), kind


def _holders(value: Any) -> list[Any]:
    """Every dict and list inside a JSON value."""
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(holder for part in inner for holder in _holders(part))]
