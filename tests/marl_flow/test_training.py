"""The loop: what stops it, what it refuses, what it leaves behind."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import resource
import signal
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from marl_flow import baselines, checkpoint
from marl_flow.baselines.bc import BehaviourCloning
from marl_flow.baselines.ma_td3_bc import MATD3BC
from marl_flow.checkpoint import load_algorithm
from marl_flow.interfaces import ActionSpec, Batch, Metrics, UserError
from marl_flow.run_log import read_lines
from marl_flow.training import TrainConfig, TrainingDiverged, TrainingStopped, checked_device

CPU = torch.device("cpu")


def updates_logged(folder: Path) -> list[int]:
    return [line["update"] for line in read_lines(folder / "metrics.jsonl")]


class Sabotaged(MATD3BC):
    """MA-TD3+BC whose update `when` runs `deed(algorithm, metrics)`."""

    when = 0
    deed: Any = None

    def update(self, batch: Batch, generator: torch.Generator, micro_batches: int = 1) -> Metrics:
        metrics = super().update(batch, generator, micro_batches)
        if self.updates_done == self.when:
            type(self).deed(self, metrics)
        return metrics


def sabotaged(when: int, deed: Any) -> type[Sabotaged]:
    return type("Sabotaged", (Sabotaged,), {"when": when, "deed": staticmethod(deed)})


def test_a_run_folder_holds_what_it_should(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches off-by-one logging, missing times and a checkpoint that is not of the last update."""
    result = tiny.run(tmp_path, training=tiny.training(updates=11, log_every=3, checkpoint_every=4, tensorboard=True))
    assert updates_logged(tmp_path) == [3, 6, 9, 11]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["update_00000008.safetensors", "update_00000011.safetensors"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoints",
        "config.json",
        "lock",
        "metrics.jsonl",
        "tensorboard",
    }
    last = read_lines(tmp_path / "metrics.jsonl")[-1]
    assert last["seconds_draw"] > 0 and last["seconds_update"] > 0
    assert last["seconds_draw"] + last["seconds_update"] <= last["seconds_total"] <= result.header.seconds["total"]
    before = result.header.seconds["total"]
    assert tiny.run(tmp_path, training=tiny.training(updates=16)).header.seconds["total"] > before


def test_a_finished_run_is_left_alone_and_a_longer_one_refused_to_shrink(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches training twice, and evaluating update 12 as if it were update 8."""
    plan = tiny.training(tensorboard=True)
    first = tiny.run(tmp_path, training=plan)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "lock"}
    again = tiny.run(tmp_path, training=plan)
    assert (again.checkpoint, again.resumed_from) == (first.checkpoint, 12)
    assert again.header.seconds["update"] == first.header.seconds["update"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "lock"} == before
    with pytest.raises(UserError, match="has trained 12 updates already, 8 were requested"):
        tiny.run(tmp_path, training=tiny.training(updates=8))


def test_another_config_is_refused_before_anything_is_touched(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches a resume that mixes two configs in one folder."""
    tiny.run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"config\.alpha: 2\.5 there, 0\.5 requested"):
        tiny.run(tmp_path, config=tiny.config(alpha=0.5))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(tiny: ModuleType, tmp_path: Path, value: float) -> None:
    """Catches a run that goes on with NaN, or that saves or logs it."""
    algorithm = sabotaged(6, lambda self, metrics: metrics.update(critic_loss=torch.tensor(value)))
    with pytest.raises(TrainingDiverged, match=r"update 6: critic_loss is (nan|inf).*update_00000004\.safetensors"):
        tiny.run(tmp_path, algorithm=algorithm)
    assert updates_logged(tmp_path) == [3]
    assert load_algorithm(tmp_path, baselines.get, device=CPU)[1].update == 4


@pytest.mark.parametrize("part", ["actor", "target_critic"])
def test_weights_that_are_not_finite_are_never_saved(tiny: ModuleType, tmp_path: Path, part: str) -> None:
    """Catches a checkpoint whose losses were finite but whose weights are not: update 8 is saved, not logged."""

    def poison(self: Sabotaged, metrics: Metrics) -> None:
        getattr(self, part).layers[0].weight.data[0, 0, 0] = math.nan

    with pytest.raises(TrainingDiverged, match=rf"update 8: the state's {part}/layers\.0\.weight"):
        tiny.run(tmp_path, algorithm=sabotaged(8, poison))
    assert load_algorithm(tmp_path, baselines.get, device=CPU)[1].update == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_behind_a_checkpoint_and_the_run_goes_on(
    tiny: ModuleType, tmp_path: Path, number: signal.Signals
) -> None:
    """Catches work lost to Ctrl-C or a cluster's SIGTERM, bits that differ after it, and handlers never given back."""
    before = signal.getsignal(number)
    during = []

    def interrupt(self: Sabotaged, metrics: Metrics) -> None:
        during.append(signal.getsignal(number))
        os.kill(os.getpid(), number)
        during.append(signal.getsignal(number))

    algorithm = sabotaged(6, interrupt)
    with pytest.raises(TrainingStopped, match=rf"stopped by {number.name} after update 6 of 12.*update_00000006"):
        tiny.run(tmp_path / "stopped", algorithm=algorithm)
    assert during[0] is not before and during[1] is before, "a second signal must do what it always did"
    resumed, whole = tiny.run(tmp_path / "stopped", algorithm=sabotaged(0, None)), tiny.run(tmp_path / "whole")
    assert resumed.resumed_from == 6
    assert signal.getsignal(number) is before
    left, right = (checkpoint.load(result.checkpoint).tensors() for result in (resumed, whole))
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert updates_logged(tmp_path / "stopped") == updates_logged(tmp_path / "whole")


def test_a_full_disk_leaves_the_last_checkpoint(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches a half checkpoint, or a lost earlier one, after a real write error (a limit on the size of files)."""
    first = tiny.run(tmp_path, training=tiny.training(updates=4))
    before, limit = first.checkpoint.read_bytes(), first.checkpoint.stat().st_size // 2
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError) as caught:
            tiny.run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for words in ("could not write", "File too large", "need", "MB free", str(first.checkpoint), "--out"):
        assert words in str(caught.value)
    assert list((tmp_path / "checkpoints").iterdir()) == [first.checkpoint] and first.checkpoint.read_bytes() == before
    tiny.run(tmp_path)
    left, right = (checkpoint.load(tiny.run(folder).checkpoint).tensors() for folder in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_full_disk_at_the_metrics_is_reported(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches a traceback when a line of metrics, not a checkpoint, is what does not fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "lock").touch()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UserError, match="could not write into"):
            tiny.run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("change", ["permission", "version", "damage"])
def test_checkpoints_that_cannot_be_read_stop_training(
    tiny: ModuleType, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a silent new beginning that cuts the metrics off and prunes the checkpoints of the first."""
    result = tiny.run(tmp_path)
    folder = result.checkpoint.parent
    if change == "permission":
        usual = Path.open

        def refused(self: Path, *arguments: Any, **options: Any) -> Any:
            if self.parent == folder:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return usual(self, *arguments, **options)

        monkeypatch.setattr(Path, "open", refused)
    elif change == "version":
        monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    else:
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[:50])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "lock"}
    with pytest.raises(UserError, match=r"update_00000012\.safetensors.*found"):
        tiny.run(tmp_path, training=tiny.training(updates=16))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "lock"} == before


def test_a_damaged_newest_checkpoint_gives_way(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a continued run whose own checkpoints are pruned, or passed over, because a damaged one is newer."""
    few = tiny.training(keep_checkpoints=1, checkpoint_every=1)
    damaged = tiny.run(tmp_path / "run").checkpoint
    data = damaged.read_bytes()[:100]
    damaged.write_bytes(data)
    result = tiny.run(tmp_path / "run", training=dataclasses.replace(few, updates=10))
    assert result.resumed_from == 8 and "passing over a damaged checkpoint" in caplog.text
    aside = damaged.with_name(damaged.name + ".damaged")
    assert sorted(damaged.parent.iterdir()) == [result.checkpoint, aside] and aside.read_bytes() == data
    again = tiny.run(tmp_path / "run", training=few)
    assert again.resumed_from == 10
    left, right = (checkpoint.load(run.checkpoint).tensors() for run in (again, tiny.run(tmp_path / "whole")))
    assert all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cpu:1", "", "cuda:-1", "cuda:1", "cuda:9"])
def test_a_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches devices torch has a name for and this machine, or this package, has no use for. One GPU is pretended."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        UserError, match=r"device: (expected cpu, cuda|cuda:\d was requested, but the last GPU is cuda:0)"
    ):
        checked_device(name)
    assert [str(checked_device(good)) for good in ("cpu", "cuda", "cuda:0")] == ["cpu", "cuda", "cuda:0"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cuda was requested, but torch finds no usable GPU"):
        checked_device("cuda")


@pytest.mark.parametrize("error", [ValueError("invalid learning rate"), UserError("needs more agents")])
def test_a_config_refused_while_building_leaves_the_folder_free(
    tiny: ModuleType, tmp_path: Path, error: ValueError
) -> None:
    """Catches a refused setting that looks like a bug, and whose config.json then keeps the right one out."""

    class Refusing(MATD3BC):
        @classmethod
        def build(cls, *arguments: Any, **options: Any) -> Any:
            raise error

    with pytest.raises(UserError, match=str(error)):
        tiny.run(tmp_path, algorithm=Refusing, config=tiny.config(alpha=9.0))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert tiny.run(tmp_path).header.update == 12


def test_a_method_that_cannot_serve_the_task_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches continuous methods let loose on choices, and devices that are not there."""
    discrete = tiny.data(spec=tiny.spec(action=ActionSpec(kind="discrete", size=4)))
    with pytest.raises(UserError, match="ma_td3_bc serves continuous actions, but test/tiny has discrete ones"):
        tiny.run(tmp_path, data=discrete)
    with pytest.raises(UserError, match="device: expected cpu, cuda"):
        tiny.run(tmp_path, training=tiny.training(device="gpu"))
    with pytest.raises(UserError, match="does not split into 3 equal micro_batches"):
        tiny.run(tmp_path, training=tiny.training(micro_batches=3))
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("field", ["updates", "batch_size", "micro_batches", "log_every", "checkpoint_every"])
def test_impossible_settings_are_refused(field: str) -> None:
    """Catches a budget that would run for ever or divide by zero."""
    with pytest.raises(UserError, match=f"{field}: expected at least"):
        TrainConfig(**{field: -1})


def test_micro_batches_change_the_memory_not_the_gradient(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches a sum in place of the mean, and micro-batches that are ignored."""
    sizes: list[int] = []

    class Counting(BehaviourCloning):
        def loss(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, Metrics]:
            sizes.append(batch.size)
            return super().loss(batch, generator)

    config = dataclasses.replace(BehaviourCloning.presets["default"], hidden=(8,), updates=5, batch_size=16)
    states = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        result = tiny.run(
            folder, algorithm=Counting, config=config, training=tiny.training(micro_batches=parts, log_every=1)
        )
        states.append(checkpoint.load(result.checkpoint).algorithm)
    assert sizes == [16] * 5 + [4] * 20
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
    left, right = (read_lines(tmp_path / name / "metrics.jsonl") for name in "14")
    assert [line["loss"] for line in left] == pytest.approx([line["loss"] for line in right], rel=1e-5)


class TwoSteps(BehaviourCloning):
    """Steps twice in one update, as actor-critic methods do, and reports what the network says before and after."""

    seen: ClassVar[list[torch.Tensor]] = []

    def update(self, batch: Batch, generator: torch.Generator, micro_batches: int = 1) -> Metrics:
        for _ in range(2):
            output = self.network(torch.ones(1, 5))
            self.seen.append(output.detach())
            self.optimizer.zero_grad()
            output.sum().backward()
            self.optimizer.step()
        return {"loss": output.detach().sum()}


def test_mixed_precision_computes_in_half_and_keeps_weights_whole(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches an option that does nothing, and half-precision copies of weights that outlive an optimiser's step."""
    TwoSteps.seen.clear()
    config = dataclasses.replace(TwoSteps.presets["default"], hidden=(8,), learning_rate=0.1, updates=1, batch_size=4)
    result = tiny.run(tmp_path, algorithm=TwoSteps, config=config, training=tiny.training(amp=True))
    first, second = TwoSteps.seen
    assert first.dtype == second.dtype == torch.bfloat16
    assert not torch.equal(first, second), "the second pass used the weights from before the first step"
    state = checkpoint.load(result.checkpoint).algorithm
    assert {value.dtype for name, value in state.items() if "weight" in name} == {torch.float32}


def test_compile_reaches_every_network_once(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an option that does nothing; real compilation takes too long for a test."""
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    tiny.run(tmp_path / "off")
    assert compiled == []
    tiny.run(tmp_path / "on", training=tiny.training(compile=True))
    assert len(compiled) == 2 and len(set(map(id, compiled))) == 2
    assert not any(type(network).__module__.startswith("torch.") for network in compiled), "torch would pass over it"


def test_the_digest_is_that_of_the_method(tiny: ModuleType, tmp_path: Path) -> None:
    """Catches results of one method that share no table row because of their seeds, and of two that do."""
    from marl_flow.training import describe

    def of(config: Any = None, training: Any = None, data: Any = None) -> str:
        return describe(
            MATD3BC, "default", config or tiny.config(), training or tiny.training(), data or tiny.data()
        ).config_digest

    same = [of(training=tiny.training(seed=9, updates=99, checkpoint_every=1)), of(data=tiny.data(digest="other"))]
    other = [
        of(config=tiny.config(alpha=1.0)),
        of(training=tiny.training(batch_size=8)),
        of(training=tiny.training(amp=True)),
    ]
    assert {of(), *same} == {of()} and of() not in other and len(set(other)) == 3


def test_progress_goes_to_standard_error_only(
    tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a progress bar in the output of a pipe, or none."""
    tiny.run(tmp_path / "loud", progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "12/12" in captured.err and "critic_loss" in captured.err
    tiny.run(tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
