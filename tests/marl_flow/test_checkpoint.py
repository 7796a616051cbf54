"""Checkpoints: what goes in comes out, and what is damaged or foreign is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from marl_flow import baselines, checkpoint
from marl_flow.checkpoint import Checkpoint, Header
from marl_flow.interfaces import UserError
from marl_flow.module_state import pack_optimizer, unpack_optimizer
from marl_flow.run_folder import RunRecord

RUN = RunRecord(
    algorithm="bc",
    preset="default",
    config={"hidden": [8]},
    config_digest="0123456789abcdef",
    task={"task_id": "test/tiny"},
    dataset_id="test/tiny/random-v1",
    dataset_digest="0" * 64,
    training={"seed": 1},
)


def example(update: int = 5) -> Checkpoint:
    shared = torch.arange(6.0)
    return Checkpoint(
        header=Header(run=RUN, update=update, seconds={"total": 1.5}),
        algorithm={
            "network/weight": shared.reshape(2, 3).t(),  # neither contiguous nor alone in its memory
            "network/bias": shared[:2],
            "half": torch.tensor([1.5], dtype=torch.bfloat16),
            "updates_done": torch.tensor(update),
            "none": torch.zeros(0, 3),
        },
        normalizers={"observations/per_agent": torch.tensor(True)},
        generators={"batches": torch.Generator().manual_seed(4).get_state()},
    )


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    """Catches lost types, views stored as their base, and generator states cut short."""
    before = example()
    after = checkpoint.load(checkpoint.save(tmp_path, before, keep=2))
    assert after.header == before.header
    for part in ("algorithm", "normalizers", "generators"):
        kept, found = getattr(before, part), getattr(after, part)
        assert list(kept) == sorted(found, key=list(kept).index)
        for name, value in kept.items():
            assert value.dtype == found[name].dtype and torch.equal(value, found[name]), name
    twin = torch.Generator()
    twin.set_state(after.generators["batches"])
    expected = torch.rand(3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(torch.rand(3, generator=twin), expected)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """Catches pruning by name (99999999 after 100000000) or of the newest, and a temporary file left behind."""
    for update in (8, 9, 99_999_999, 100_000_000):
        path = checkpoint.save(tmp_path, example(update), keep=2)
    names = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert names == ["update_100000000.safetensors", "update_99999999.safetensors"]
    assert checkpoint.latest(tmp_path) == path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_refused_and_passed_over(tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture) -> None:
    """Catches reading half a checkpoint, and a resume that gives up although an earlier one is whole."""
    good = checkpoint.save(tmp_path, example(5), keep=2)
    cut = checkpoint.save(tmp_path, example(6), keep=2)
    data = cut.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="cannot be read: expected a whole safetensors file"):
        checkpoint.load(cut)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(tmp_path) == good
    assert cut.name in caplog.text


def test_damaged_files_alone_do_not_look_like_a_new_run(tmp_path: Path) -> None:
    """Catches a training that starts again, and prunes, where every checkpoint is damaged."""
    paths = [checkpoint.save(tmp_path, example(update), keep=2) for update in (5, 6)]
    for path in paths:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"found 2 and all damaged .*update_00000006.*update_00000005.*restore one"):
        checkpoint.latest(tmp_path)


def with_header(path: Path, record: str) -> None:
    """Rewrites the file with other text in place of its JSON record."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    save_file(tensors, path, metadata={"marl_flow": record})


@pytest.mark.parametrize("record", ["{", "[]", "{}", "null"])
def test_a_broken_header_is_damage(tmp_path: Path, record: str, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a JSONDecodeError or KeyError where a whole earlier checkpoint could be used."""
    good, bad = (checkpoint.save(tmp_path, example(update), keep=2) for update in (5, 6))
    with_header(bad, record)
    with pytest.raises(checkpoint.DamagedCheckpoint, match="expected a header in JSON"):
        checkpoint.load(bad)
    assert checkpoint.latest(tmp_path) == good and bad.name in caplog.text


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"format_version": 2, "digest": "", "header": {}}, "expected checkpoint format 1, found 2"),
        ({"format_version": 1, "digest": "", "header": {}}, r"expected the header of a checkpoint, found KeyError"),
        ({"format_version": 1, "digest": "", "header": {"run": {}}}, "expected the header of a checkpoint.*missing"),
    ],
)
def test_a_newer_version_is_not_damage(tmp_path: Path, record: dict, says: str) -> None:
    """Catches falling back to an older checkpoint, and pruning, over one that another version can read."""
    checkpoint.save(tmp_path, example(5), keep=2)
    with_header(checkpoint.save(tmp_path, example(6), keep=2), json.dumps(record))
    with pytest.raises(UserError, match=rf"update_00000006\.safetensors: {says}"):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize("locked", ["checkpoints", "checkpoints/update_00000005.safetensors"])
def test_what_may_not_be_read_is_refused(tmp_path: Path, locked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a folder without permission that looks empty, and a file without permission that looks damaged."""
    checkpoint.save(tmp_path, example(5), keep=2)

    def refusing(usual: Any) -> Any:
        def call(self: Path, *arguments: Any) -> Any:
            if self == tmp_path / locked:  # the administrator, who runs some tests, may read everything
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return usual(self, *arguments)

        return call

    for name in ("iterdir", "open"):
        monkeypatch.setattr(Path, name, refusing(getattr(Path, name)))
    with pytest.raises(UserError, match=rf"{locked}: expected .*found Permission denied; make it readable"):
        checkpoint.latest(tmp_path)


def test_pruning_spares_what_was_just_written(tmp_path: Path) -> None:
    """Catches deleting the checkpoint just written because files of later updates lie beside it."""
    for update in (8, 9):
        checkpoint.save(tmp_path, example(update), keep=2)
    for keep in (2, 1):
        path = checkpoint.save(tmp_path, example(5), keep=keep)
        names = sorted(file.name for file in path.parent.iterdir())
        assert names == ["update_00000005.safetensors", "update_00000009.safetensors"][:keep]


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """Catches weights changed on disk, which the format itself does not notice."""
    path = checkpoint.save(tmp_path, example(), keep=2)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged: expected tensors with digest"):
        checkpoint.load(path)


def test_half_written_files_are_never_candidates(tmp_path: Path) -> None:
    """Catches a temporary name that the search for the newest checkpoint also matches."""
    good = checkpoint.save(tmp_path, example(5), keep=2)
    for name in ("update_00000009.safetensors.writing-0a1b2c3d", "update_9.safetensors", "notes.txt"):
        (good.parent / name).write_bytes(good.read_bytes())
    assert checkpoint.latest(tmp_path) == good
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_foreign_files_and_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches loading somebody else's safetensors, or a format this version does not know."""
    foreign = tmp_path / "update_00000001.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(UserError, match="not a checkpoint of marl_flow"):
        checkpoint.load(foreign)
    with pytest.raises(UserError, match="found no such file"):
        checkpoint.load(tmp_path / "absent.safetensors")
    path = checkpoint.save(tmp_path, example(), keep=1)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    with pytest.raises(UserError, match="expected checkpoint format 2, found 1"):
        checkpoint.load(path)


def test_a_checkpoint_says_what_it_is_without_pickle(tmp_path: Path) -> None:
    """Catches metadata that only this package could read."""
    path = checkpoint.save(tmp_path, example(), keep=2)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    record = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["marl_flow"])
    assert record["header"]["run"] == dataclasses.asdict(RUN)
    assert record["format_version"] == 1 and record["header"]["update"] == 5


def test_the_wrong_algorithm_and_another_version_of_it_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches weights forced into a network of another shape or method."""
    result = tiny.run(tmp_path)
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="expected a checkpoint of bc, found one of ma_td3_bc"):
        checkpoint.load_algorithm(tmp_path, lambda _: baselines.get("bc"), device=cpu)
    whole = checkpoint.load(result.checkpoint)
    for change in ({"hidden": [9]}, {"hidden": [8, 8]}, {"unheard_of": 1}):
        run = dataclasses.replace(whole.header.run, config={**whole.header.run.config, **change})
        edited = dataclasses.replace(whole, header=dataclasses.replace(whole.header, run=run))
        path = checkpoint.save(tmp_path / "edited", edited, keep=1)
        with pytest.raises(UserError, match=r"does not fit this version of ma_td3_bc"):
            checkpoint.load_algorithm(path, baselines.get, device=cpu)
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.load_algorithm(tmp_path / "checkpoints", baselines.get, device=cpu)


def stepped(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], times: int) -> None:
    for _ in range(times):
        optimizer.zero_grad()
        sum((p**3).sum() for p in parameters[:2]).backward()
        optimizer.step()


def fresh(kind: type[torch.optim.Optimizer]) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    parameters = [
        torch.nn.Parameter(torch.ones(2, 2)),
        torch.nn.Parameter(torch.ones(3)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    return kind(parameters, lr=0.1), parameters


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_continues_as_if_it_had_not_stopped(kind: type[torch.optim.Optimizer]) -> None:
    """Catches a lost moment, step count or scheduled rate; the third parameter never has a gradient."""
    optimizer, parameters = fresh(kind)
    stepped(optimizer, parameters, 3)
    optimizer.param_groups[0]["lr"] = 0.025
    twin, twin_parameters = fresh(kind)
    for parameter, value in zip(twin_parameters, parameters, strict=True):
        parameter.data.copy_(value.data)
    unpack_optimizer(twin, pack_optimizer(optimizer))
    for one, its in ((optimizer, parameters), (twin, twin_parameters)):
        stepped(one, its, 2)
    assert all(torch.equal(a, b) for a, b in zip(parameters, twin_parameters, strict=True))


def test_an_optimizer_state_that_does_not_fit_is_refused() -> None:
    """Catches a partial load: missing, unknown and misshapen entries."""
    optimizer, parameters = fresh(torch.optim.Adam)
    stepped(optimizer, parameters, 1)
    packed = pack_optimizer(optimizer)
    faults = {
        "missing": {name: value for name, value in packed.items() if name != "state/1/exp_avg_sq"},
        "missing ": {name: value for name, value in packed.items() if name != "group/0/lr"},
        "unknown": packed | {"state/3/exp_avg": torch.zeros(1)},
        "expected": packed | {"state/0/exp_avg": torch.zeros(3)},
    }
    for word, state in faults.items():
        with pytest.raises(ValueError, match=word.strip()):
            unpack_optimizer(fresh(torch.optim.Adam)[0], state)
