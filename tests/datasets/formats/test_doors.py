"""What every layout has in common: the doors, the places written to, and the tasks published data are of."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from marl_flow import envs
from marl_flow.datasets import formats
from marl_flow.datasets.formats import EXPORTS, LAYOUTS, episodes, export_dataset, import_dataset
from marl_flow.datasets.formats.columns import npy_column
from marl_flow.datasets.specs import TASKS, has_agent_ids, known_spec
from marl_flow.datasets.writer import AlreadyThere, StoreWriter
from marl_flow.interfaces import TaskSpec, UserError


@pytest.mark.parametrize("task_id", TASKS)
def test_known_tasks_are_the_environments(task_id: str) -> None:
    """Catches a task of imported data that no environment of ours can evaluate."""
    expected = envs.spec(task_id)
    unset = {"opponent": None} if "opponent" in {field.name for field in dataclasses.fields(expected)} else {}
    assert known_spec(task_id) == dataclasses.replace(expected, **unset)


def test_the_known_tasks_are_the_published_ones() -> None:
    """Catches a size, limit or number of agents that differs from the published data's."""
    found = {
        name: (spec.num_agents, spec.observation_size, spec.action.size, spec.max_steps, spec.state_size)
        for name, spec in TASKS.items()
        if not name.startswith("mpe/")
    }
    assert found == {
        "mamujoco/2ant": (2, 56, 4, 1000, None),
        "mamujoco/4ant": (4, 37, 2, 1000, None),
        "mamujoco/2halfcheetah": (2, 15, 3, 1000, None),
    } | {
        f"{suite}/{name}": sizes
        for suite in ("smac", "smac-sc2")
        for name, sizes in {
            "3m": (3, 30, 9, 60, 48),
            "8m": (8, 80, 14, 120, 168),
            "2s3z": (5, 80, 11, 120, 120),
            "5m_vs_6m": (5, 55, 12, 70, 98),
        }.items()
    }
    for name, spec in TASKS.items():
        assert spec.task_id == name and spec.agents[0] == "agent_0"
        assert spec.action.is_discrete == name.startswith("smac")
        assert has_agent_ids(spec) == name.startswith("mamujoco/")
        assert TaskSpec.from_json(spec.to_json()) == spec


def test_unknown_names_are_refused_with_the_nearest(layouts, tmp_path: Path) -> None:
    """Catches a typing error that runs on with something else."""
    with pytest.raises(UserError, match=r"unknown task 'smac/3n'.*nearest: smac/3m"):
        known_spec("smac/3n")
    with pytest.raises(UserError, match=r"unknown layout 'valt'.*nearest: vault"):
        import_dataset("valt", tmp_path, tmp_path / "x", dataset_id="x", spec=None, provenance={})
    with pytest.raises(UserError, match="unknown layout 'omar': expected one of madiff, d4rl, minari"):
        export_dataset("omar", layouts.random_store(layouts.small_task(), [3]), tmp_path / "x")
    assert set(EXPORTS) < set(LAYOUTS)


@pytest.mark.parametrize("layout", ["omar", "madiff", "vault"])
def test_layouts_that_name_no_task_need_one(tmp_path: Path, layout: str) -> None:
    """Catches a task guessed from a folder's name."""
    with pytest.raises(UserError, match=r"expected the task of the .* found none; pass one of"):
        import_dataset(layout, tmp_path, tmp_path / "x", dataset_id="x", spec=None, provenance={})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_that_is_not_there_is_one_message(layouts, tmp_path: Path, layout: str) -> None:
    """Catches a traceback where a path was mistyped."""
    with pytest.raises(UserError, match=f"cannot import .*nowhere as {layout} data: "):
        import_dataset(
            layout, tmp_path / "nowhere", tmp_path / "x", dataset_id="x", spec=layouts.small_task(), provenance={}
        )
    assert list(tmp_path.iterdir()) == []


def test_an_import_overwrites_nothing_and_reads_nothing_then(layouts, tmp_path: Path) -> None:
    """Catches gigabytes hashed before the place is found taken."""
    (tmp_path / "data").mkdir()
    with pytest.raises(AlreadyThere, match="already exists"):
        import_dataset(
            "omar", tmp_path / "nowhere", tmp_path / "data", dataset_id="x", spec=layouts.small_task(), provenance={}
        )


def test_the_callers_provenance_is_not_replaced(layouts, tmp_path: Path) -> None:
    """Catches an entry of the caller's that the importer silently writes over."""
    layouts.write_omar(tmp_path / "flat", layouts.random_store(layouts.small_task(), [5]))
    with pytest.raises(ValueError, match="'files', 'strata'"):
        import_dataset(
            "omar",
            tmp_path / "flat",
            tmp_path / "x",
            dataset_id="x",
            spec=layouts.small_task(),
            provenance={"files": [], "strata": [], "note": ""},
        )


def test_memory_holds_one_piece(layouts, tmp_path: Path, monkeypatch) -> None:
    """Catches a reader that takes a whole dataset into memory: a piece has its rows at most, and whole episodes."""
    spec = layouts.small_task()
    layouts.write_omar(tmp_path / "flat", layouts.random_store(spec, [5] * 20))
    sizes: list[int] = []
    append = StoreWriter.append

    def counted(self, piece) -> None:
        sizes.append(piece.num_steps)
        append(self, piece)

    monkeypatch.setattr(StoreWriter, "append", counted)
    monkeypatch.setattr(episodes, "PIECE_ROWS", 17)
    import_dataset("omar", tmp_path / "flat", tmp_path / "x", dataset_id="x", spec=spec, provenance={})
    assert sizes == [15] * 6 + [10]


@pytest.mark.parametrize("layout", EXPORTS)
def test_an_export_is_whole_or_absent(layouts, tmp_path: Path, monkeypatch, layout: str) -> None:
    """Catches an export that overwrites, and half of one left under its name."""
    pytest.importorskip("minari")
    store, target = layouts.random_store(layouts.small_task(), [3, 2]), tmp_path / "out-v0"
    target.write_text("years of work")
    with pytest.raises(UserError, match="already exists; remove it or choose another path to export to"):
        export_dataset(layout, store, target)
    assert target.read_text() == "years of work"
    target.unlink()

    def broken(store) -> None:
        raise RuntimeError("power went")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power went"):
        module = formats._module(layout)
        patch.setattr(module, "record_of", broken)
        export_dataset(layout, store, target)
    assert list(tmp_path.iterdir()) == []
    export_dataset(layout, store, target)
    assert [path.name for path in tmp_path.iterdir()] == ["out-v0"]


@pytest.mark.parametrize(("layout", "library"), [("d4rl", "h5py"), ("minari", "h5py"), ("minari", "minari")])
def test_a_missing_library_is_named_with_its_install_line(
    layouts, tmp_path: Path, monkeypatch, layout, library
) -> None:
    """Catches an ImportError where an optional library is absent."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf'needs {library}; pip install ("marl_flow\[minari\]"|h5py)'):
        export_dataset(layout, layouts.random_store(layouts.small_task(), [3]), tmp_path / "out-v0")
    assert list(tmp_path.iterdir()) == []


def test_frames_that_an_export_would_lose_are_noticed(layouts, tmp_path: Path) -> None:
    """Catches a store that says its final observations are absent and holds numbers there."""
    store = layouts.random_store(layouts.small_task(), [3, 2], final=False)
    observations = store.observations.copy()
    observations[3] += 1
    torn = dataclasses.replace(store, observations=observations)
    with pytest.raises(UserError, match="observations to repeat each episode's last row"):
        export_dataset("d4rl", torn, tmp_path / "x.hdf5")
    assert list(tmp_path.iterdir()) == []


def test_flags_are_two_valued_to_the_byte(damage, tmp_path: Path) -> None:
    """Catches a damaged bool, of a byte that is neither 0 nor 1, taken for true and stored as it is."""
    data = bytearray(damage.npy_bytes(np.array([True, False, True])))
    data[-1] = 7
    (tmp_path / "flags.npy").write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"flags\.npy: expected flags, 0 or 1, found .* at row 2"):
        npy_column(tmp_path / "flags.npy").flags(0, 3)
    (tmp_path / "flags.npy").write_bytes(damage.npy_bytes(np.array([1.0, 0.0, 1.0])))
    assert npy_column(tmp_path / "flags.npy").flags(0, 3).tolist() == [True, False, True]


def test_a_header_that_lies_about_its_size_is_refused_unread(damage, tmp_path: Path) -> None:
    """Catches memory asked for by a damaged header: huge, negative and overflowing shapes among them."""
    good = damage.npy_bytes(np.zeros((4, 3), dtype=np.float32))
    for seed in range(100):
        (tmp_path / "obs.npy").write_bytes(damage.lying_header(good, np.random.default_rng(seed)))
        with pytest.raises(UserError, match=r"obs\.npy: expected"):
            npy_column(tmp_path / "obs.npy")


@pytest.mark.parametrize(
    ("flags", "rows", "lengths", "left"),
    [
        ([], 12, [5, 5], 2),
        ([2], 12, [3, 5], 4),
        ([6, 11], 12, [5, 2, 5], 0),
        ([4], 5, [5], 0),
        ([0, 1], 3, [1, 1], 1),
        ([], 3, [], 3),
        ([11], 12, [5, 5, 2], 0),
    ],
)
def test_cut_by_hand(flags: list[int], rows: int, lengths: list[int], left: int) -> None:
    """Catches an episode one row too long or short, at flags and at limits."""
    found, rest = episodes.cut(np.array(flags, dtype=np.int64), rows, 5)
    assert found.tolist() == lengths and rest == left
