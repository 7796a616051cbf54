"""Whose a run folder is, and which run it holds."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from types import ModuleType

import pytest
import torch

from marl_flow.interfaces import UserError
from marl_flow.run_folder import MAY_CHANGE, RunRecord, lock, write_config
from marl_flow.training import TrainConfig, describe


def write(folder: Path, run: RunRecord) -> None:
    write_config(folder, run, lambda: [float(percent) for percent in range(101)])


def test_a_folder_in_use_by_another_process_is_refused_until_that_dies(tmp_path: Path) -> None:
    """Catches two trainings in one folder, a message that does not say which, and a lock that outlives its owner."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock(tmp_path / "run"):
            os.write(write, b"x")
            signal.pause()
        os._exit(0)
    os.read(read, 1)
    try:
        with pytest.raises(UserError, match=f"in use by process {pid}"), lock(tmp_path / "run"):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with lock(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").read_text() == f"{os.getpid()}\n"
    with lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("place", ["file", "file/below", "n" * 300])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    """Catches a traceback where the user only named a wrong --out. (The administrator may write anywhere else.)"""
    (tmp_path / "file").write_text("")
    expected = pytest.raises(UserError, match=r"expected to write .*; free some space or choose another --out")
    with expected, lock(tmp_path / place):
        pass


def test_another_run_is_refused_by_field_and_both_values(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches continuing a run with other settings, other data, another seed or another method."""
    algorithm = tiny.baselines.get("ma_td3_bc")

    def record(config=None, training=None, **data):
        return describe(algorithm, "default", config or tiny.config(), training or tiny.training(), tiny.data(**data))

    write(tmp_path, record())
    write(tmp_path, record())
    cases = {
        r"config\.alpha: 2\.5 there, 1\.0 requested": record(config=tiny.config(alpha=1.0)),
        r"config\.hidden: \[8\] there, \[8, 8\] requested": record(config=tiny.config(hidden=(8, 8))),
        r"training\.seed: 3 there, 4 requested": record(training=tiny.training(seed=4)),
        r"training\.device: cpu there, cuda requested": record(training=tiny.training(device="cuda:1")),
        r"dataset_digest: 0+ there, 1 requested": record(digest="1"),
        r"task\.action\.high: .* requested": record(
            spec=tiny.spec(action=dataclasses.replace(tiny.spec().action, high=(1.0, 3.0)))
        ),
        "algorithm: ma_td3_bc there, bc requested": dataclasses.replace(record(), algorithm="bc"),
    }
    for message, asked in cases.items():
        with pytest.raises(UserError, match=message):
            write(tmp_path, asked)


def test_length_and_logging_may_change_and_nothing_else_of_training(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches a setting added to TrainConfig that a resume would wave through."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    must_agree = {"seed", "device", "batch_size", "micro_batches", "amp", "compile"}
    assert {name.removeprefix("training.") for name in MAY_CHANGE} == names - must_agree
    algorithm = tiny.baselines.get("ma_td3_bc")
    write(tmp_path, describe(algorithm, "default", tiny.config(), tiny.training(), tiny.data()))
    changed = tiny.training(updates=99, log_every=1, checkpoint_every=1, keep_checkpoints=1, tensorboard=True)
    write(tmp_path, describe(algorithm, "default", tiny.config(), changed, tiny.data()))


def test_a_folder_that_does_not_say_what_it_holds_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches new metrics written over those of an unknown run, and a damaged config.json taken for a new run."""
    run = describe(tiny.baselines.get("ma_td3_bc"), "default", tiny.config(), tiny.training(), tiny.data())
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"holds metrics\.jsonl but no config\.json"):
        write(tmp_path, run)
    for text in ("", "[]", '{"run": {"algorithm": "bc"}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="expected the record of a run"):
            write(tmp_path, run)


def test_the_config_says_what_made_the_run(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches a run folder that could not be redone on another machine."""
    run = describe(tiny.baselines.get("ma_td3_bc"), "default", tiny.config(), tiny.training(), tiny.data())
    write(tmp_path, run)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["run"] == json.loads(json.dumps(dataclasses.asdict(run)))
    assert record["run"]["training"]["updates"] == 12 and record["run"]["config"]["hidden"] == [8]
    assert set(record["made_with"]) >= {"commit", "python", "torch", "numpy"}


def test_what_a_kill_left_half_written_is_cleared_away(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches a run folder that fills up with temporary files, one per kill."""
    first = tiny.run(tmp_path, training=tiny.training(updates=4))
    left = [tmp_path / "config.json", first.checkpoint.with_name("update_00000008.safetensors")]
    left = [path.with_name(f"{path.name}.writing-0a1b2c3d") for path in left]
    for path in left:
        path.write_bytes(b"half")
    tiny.run(tmp_path, training=tiny.training(updates=4))
    assert not any(path.exists() for path in left) and first.checkpoint.exists()


def test_files_of_others_are_never_cleared_away(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches deleting what only ends like a temporary file of ours, at any depth."""
    first = tiny.run(tmp_path, training=tiny.training(updates=4))
    (tmp_path / "thesis").mkdir()
    names = ["chapter", "thesis/config.json", ".rollout_centralized.gif", "checkpoints/notes"]
    names = [f"{name}.writing-0a1b2c3d" for name in (*names, "checkpoints/update_8.safetensors")]
    for name in names:
        (tmp_path / name).write_text("mine")
    tiny.run(tmp_path, training=tiny.training(updates=8))
    assert all((tmp_path / name).read_text() == "mine" for name in names) and first.checkpoint.exists()


def test_the_config_says_how_long_the_run_is_now(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches a continued run that records its old length, or forgets what made its beginning."""
    tiny.run(tmp_path, training=tiny.training(updates=4))
    path = tmp_path / "config.json"
    before = json.loads(path.read_text())
    before["made_with"]["commit"] = "of then"
    path.write_text(json.dumps(before))
    tiny.run(tmp_path, training=tiny.training(updates=8))
    after = json.loads(path.read_text())
    assert after["run"]["training"]["updates"] == 8 and after["made_with"] == before["made_with"]
    with pytest.raises(UserError, match="has trained 8 updates already"):
        tiny.run(tmp_path, training=tiny.training(updates=4))
    assert json.loads(path.read_text()) == after


def test_going_on_with_other_threads_is_said(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a run that silently lacks the bits of one that never stopped."""
    threads = torch.get_num_threads()
    for updates in (4, 5):
        tiny.run(tmp_path, training=tiny.training(updates=updates))
    assert "threads" not in caplog.text
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    tiny.run(tmp_path, training=tiny.training(updates=6))
    assert f"started on {threads} threads and continues on {threads + 1}" in caplog.text
