"""OG-MARL's vaults: reading one as flashbax writes it, good and damaged."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marl_flow.datasets.formats import episodes
from marl_flow.datasets.specs import known_spec
from marl_flow.interfaces import TaskSpec, UserError

tensorstore = pytest.importorskip("tensorstore")


def open_leaf(folder: Path, name: str, **options: Any) -> Any:
    store = {"driver": "ocdbt", "base": f"file://{folder}", "path": name}
    return tensorstore.open({"driver": "zarr", "kvstore": store}, **options).result()


def oracle(source: Path, spec: TaskSpec) -> dict[str, Any]:
    """What a plain reader finds."""
    metadata = json.loads((source / "metadata.json").read_text())
    rows = int(open_leaf(source, "vault_index").read().result()[0])
    names = ["observations", "actions", "rewards", "terminals", "truncations"]
    infos = metadata["structure_shape"].get("infos", {})
    names += ["infos.state"] if spec.state_size and "state" in infos else []
    names += ["infos.legals"] if spec.action.is_discrete and "legals" in infos else []
    leaves = {name: open_leaf(source, f"{name}.")[:, :rows].read().result() for name in names}
    agents = spec.num_agents
    found: dict[str, Any] = {"lengths": [], "terminated": []}
    for slot in range(len(leaves["rewards"])):
        terminals = leaves["terminals"][slot, :, :agents].astype(bool)
        both = (terminals | leaves["truncations"][slot, :, :agents].astype(bool)).all(axis=1)
        ends = np.flatnonzero(both)
        lengths = np.diff(ends, prepend=-1)
        found["lengths"] += lengths.tolist()
        found["terminated"] += (terminals.all(axis=1)[ends] & (lengths < spec.max_steps)).tolist()
        for name, leaf in (
            ("observations",) * 2,
            ("actions",) * 2,
            ("rewards",) * 2,
            ("state", "infos.state"),
            ("action_mask", "infos.legals"),
        ):
            if leaf in leaves:
                values = leaves[leaf][slot, : ends[-1] + 1]
                values = values if name == "state" else values[:, :agents]
                if name == "observations" and spec.task_id.startswith("mamujoco/"):
                    ids = np.zeros((len(values), agents, agents), dtype=values.dtype)
                    ids[:, range(agents), range(agents)] = 1
                    values = np.concatenate([ids, values], axis=-1)
                found.setdefault(name, []).append(values)
    return {name: np.concatenate(v) if isinstance(v[0], np.ndarray) else v for name, v in found.items()}


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["mpe", "mamujoco", "smac"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.integers(0, 6),
    st.integers(0, 1),
    st.integers(1, 20),
)
def test_any_shape_is_read(layouts, damage, scratch, suite, agents, slots, lengths, extra, prey, piece) -> None:
    """Catches slots or pieces in the wrong order, a prey among the controlled agents, ids missing or put on twice."""
    root = scratch()
    spec = layouts.small_task(
        suite,
        agents=agents,
        observation_size=6,
        discrete=suite == "smac",
        state_size=4 if suite == "smac" else None,
        max_steps=7,
    )
    store = layouts.random_store(spec, lengths * slots, final=False)
    leaves = layouts.vault_leaves(store, slots=slots, prey=prey if suite == "mpe" else 0, extra=extra)
    layouts.write_vault(root / "small.vlt" / "Good", leaves)
    judge = damage.Judge(root)
    with patch.object(episodes, "PIECE_ROWS", piece):
        judge("vault", root / "small.vlt" / "Good", spec, oracle, "good")
    assert judge.read == 1


def test_what_was_written_is_read(layouts, read, tmp_path: Path, caplog) -> None:
    """Catches a reading that agrees with the oracle and not with the data, a silent tail, and thin provenance."""
    spec = layouts.small_task()
    store = layouts.random_store(
        spec, [5, 2, 3, 4, 5, 1], final=False, terminated=[False, True, False, True, False, False]
    )
    layouts.write_vault(tmp_path / "Good", layouts.vault_leaves(store, slots=2, prey=1, extra=2), note="free text")
    with caplog.at_level(logging.WARNING):
        found = read("vault", tmp_path / "Good", spec)
    layouts.assert_same(found, store)
    assert found.provenance["strata"] == [{"seed": 0, "episodes": 3}, {"seed": 1, "episodes": 3}]
    assert found.provenance["dropped_rows"] == 4 and found.provenance["agents_left_out"] == [3]
    assert caplog.text.count("last 2 rows have no end") == 2
    names = {record["name"] for record in found.provenance["files"]}
    assert {"metadata.json", "manifest.ocdbt"} < names and any(name.startswith("d/") for name in names)


def test_ids_are_put_on_for_mamujoco_and_widths_checked(layouts, read, tmp_path: Path) -> None:
    """Catches observations without the ids our environment gives, and OMIGA's data taken for these."""
    spec = known_spec("mamujoco/2ant")
    store = layouts.random_store(spec, [3, 2], final=False, terminated=[True, False])
    leaves = layouts.vault_leaves(store)
    assert leaves["observations"].shape == (1, 5, 2, 54)
    layouts.write_vault(tmp_path / "Good", leaves)
    layouts.assert_same(read("vault", tmp_path / "Good", spec), store)
    leaves["observations"] = np.zeros((1, 5, 2, 113), dtype=np.float32)
    layouts.write_vault(tmp_path / "Omiga", leaves)
    with pytest.raises(UserError, match=r"observations of 54 columns .*found 113; .*OMIGA's 2ant"):
        read("vault", tmp_path / "Omiga", spec)


def test_refusals_name_the_leaf(layouts, read, tmp_path: Path, monkeypatch) -> None:
    """Catches messages from which nobody can find the fault, and rows past the data read as zeros."""
    spec = layouts.small_task("smac", discrete=True, state_size=4)
    leaves = layouts.vault_leaves(layouts.random_store(spec, [5, 2, 3], final=False))
    count = 0

    def attempt(message: str, rows: int | None = None, task: TaskSpec = spec, **changes: Any) -> None:
        nonlocal count
        count += 1
        layouts.write_vault(tmp_path / str(count), {**leaves, **changes}, rows=rows)
        with pytest.raises(UserError, match=message):
            read("vault", tmp_path / str(count), task)

    attempt("expected an episode to end within 5 steps, found 30 rows", rows=40)
    attempt("expected a readable array of the vault", rows=2**31 - 1)
    attempt("vault_index: expected at least one row, found -1", rows=-1)
    attempt(
        "expected an episode to end within|at least one episode",
        terminals=np.zeros((1, 10, 3), bool),
        truncations=np.zeros((1, 10, 3), bool),
    )
    torn = leaves["terminals"].copy()
    torn[0, 4, 1] = ~torn[0, 4, 1]
    attempt("same flag for every agent, found .* at row 4", terminals=torn, truncations=np.zeros((1, 10, 3), bool))
    attempt(r"expected 2 agents \(smac/small\), found 3", task=layouts.small_task("smac", agents=2, discrete=True))
    attempt("infos.state of slot 0: expected shape", task=layouts.small_task("smac", discrete=True, state_size=5))
    attempt(
        "observations of slot 0: expected observations of 5 columns",
        task=layouts.small_task("smac", discrete=True, observation_size=5),
    )
    attempt("rewards of slot 0: expected finite numbers", rewards=np.full((1, 10, 3), np.nan, np.float32))
    with pytest.raises(UserError, match="choose one of its folders 1, 2"):
        read("vault", tmp_path, spec)
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(UserError, match=r'pip install "marl_flow\[vault\]"'):
        read("vault", tmp_path / "1", spec)


@pytest.mark.slow
def test_damaged_vaults_are_refused_or_read_rightly(layouts, damage, judge, tmp_path: Path) -> None:
    """Catches a traceback, a crash, a partial store, or silently wrong numbers over 2,100 damaged sources."""
    battle = layouts.small_task("smac", agents=2, discrete=True, state_size=4)
    ant = layouts.small_task("mamujoco", agents=2)
    sources = []
    for spec in (battle, ant):
        store = layouts.random_store(spec, [5, 2, 3, 1] * 2, final=False)
        layouts.write_vault(tmp_path / spec.task_id / "Good", layouts.vault_leaves(store, slots=2, extra=1))
        sources.append((spec, damage.files_of(tmp_path / spec.task_id / "Good")))
    for number in range(2100):
        draw = np.random.default_rng(number)
        spec, files = sources[number % 2]
        kind = str(draw.choice(["bytes", "bytes", "json", "leaf"]))
        if kind == "bytes":
            files, what = damage.break_bytes(files, draw, head=64)
            damage.lay(judge.source, files)
        elif kind == "json":
            text, what = damage.break_json(files["metadata.json"].decode(), draw)
            damage.lay(judge.source, {**files, "metadata.json": text.encode()})
        else:
            damage.lay(judge.source, files)
            what = _break_leaf(damage, judge.source, spec, draw)
        judge("vault", judge.source, spec, oracle, f"{number}: {what}")
    assert judge.refused > 1000 and judge.read > 100, (judge.refused, judge.read)


def _break_leaf(damage, folder: Path, spec: TaskSpec, draw: np.random.Generator) -> str:
    """Rewrites one leaf, or the index, in place."""
    names = ["observations", "actions", "rewards", "terminals", "truncations"]
    names += ["infos.state", "infos.legals"] if spec.action.is_discrete else []
    name = str(draw.choice(names))
    if draw.random() < 0.2:
        rows = int(draw.choice([0, -1, 5, 11, 12, 13, 20, 10**6, 2**31 - 1]))
        open_leaf(folder, "vault_index").write(np.array([rows], dtype=np.int32)).result()
        return f"vault_index {rows}"
    leaf = open_leaf(folder, f"{name}.")
    array = leaf[:, :12].read().result()
    array, what = damage.break_array(array, draw)
    supported = array.dtype.kind in "biuf" and array.dtype.isnative
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}"}).result()
    store.delete_range(tensorstore.KvStore.KeyRange(f"{name}./", f"{name}.0")).result()
    if supported and array.ndim > 1 and array.size:
        shape = (array.shape[0], int(draw.choice([10**13, array.shape[1]])), *array.shape[2:])
        fresh = open_leaf(folder, f"{name}.", shape=shape, dtype=array.dtype.name, create=True)
        fresh[:, : array.shape[1]].write(np.ascontiguousarray(array)).result()
    return f"{what} in {name}"
