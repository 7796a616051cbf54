"""A method of another package through the command line: trained, evaluated, resumed and reported like the suite's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from marl_flow import baselines, cli
from marl_flow.interfaces import UserError
from marl_flow.run_log import read_results

DATASET = "mpe/simple_spread/random"
MODULE = '''
from dataclasses import dataclass

import torch

from marl_flow.algorithm import Algorithm
from marl_flow.policies import from_unit_box, to_unit_box


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    learning_rate: float = 0.01
    """Of Adam."""
    updates: int = 4
    batch_size: int = 16


class Linear(Algorithm):
    name = "linear"
    presets = {"default": LinearConfig()}
    action_kinds = ("continuous",)

    def __init__(self, config, spec, normalizers, device):
        super().__init__(config, spec, normalizers, device)
        self.network = torch.nn.Linear(spec.observation_size, spec.action.size).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)

    def predict(self, observations):
        return self.network(self.normalizers.observations.apply(observations)).tanh()

    def loss(self, batch, generator):
        error = self.predict(batch.observations[:, 0]) - to_unit_box(self.spec.action, batch.actions[:, 0])
        loss = error.square().mean()
        return loss, {"loss": loss.detach()}

    def decide(self, observations, action_mask):
        return from_unit_box(self.spec.action, self.predict(observations))


class NotAMethod:
    name = "not_a_method"
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a package `their_methods`, known by its entry point, and a small dataset."""
    root = tmp_path_factory.mktemp("outside")
    package, record = root / "their_methods", root / "their_methods-1.0.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text(MODULE)
    (root / "unfinished.py").write_text("class Method(")
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: their_methods\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[marl_flow.algorithms]\nlinear = their_methods:Linear\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARL_FLOW_DATA", str(root / "data"))
        assert cli.main(["data", "build", DATASET, "--episodes", "20"]) == 0
    return root


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in the folder and returns what it prints, errors included."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("MARL_FLOW_DATA", str(folder / "data"))

    def run(*arguments: str, fails: bool = False) -> str:
        code = cli.main(arguments)
        printed = capsys.readouterr()
        assert code == (2 if fails else 0), printed.out + printed.err
        assert "Traceback" not in printed.err
        return printed.out + printed.err

    return run


@pytest.mark.parametrize("name", ["linear", "their_methods:Linear"])
def test_a_method_from_outside_is_trained_resumed_evaluated_and_reported(
    command: Callable[..., str], folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Catches a method that trains but cannot be found again by its run, that cannot be resumed, or that trains on part
    of a dataset without a word."""
    place = f"runs/{name.replace(':', '-')}"
    train = ("train", DATASET, name, "--out", place, "tensorboard=false")
    assert "4 updates" in command(*train)
    assert "is not what its recipe makes: 20 of 10,000 episodes" in caplog.text
    assert "add train.updates=NUMBER" in command(*train, "updates=7", fails=True)
    assert "continued from update 4" in command(*train, "train.updates=7")
    assert "return" in command("eval", place, "--episodes", "3")
    (result,) = read_results(folder / place)
    assert (result.algorithm, result.update) == ("their_methods:Linear", 7)
    assert "their_methods:Linear" in command("report", place, "--out", f"{place}-report")
    assert "learning_rate=0.01" in command("train", DATASET, name, "--show-config")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_methods:NotAMethod", "their_methods:NotAMethod: expected a subclass"),
        ("their_methods:Linar", "no attribute Linar; it defines"),
        ("nobodys_methods:Linear", "cannot import the module nobodys_methods"),
        ("linaer", "nearest: linear"),
        ("unfinished:Method", "unfinished.py, line 1: "),
        ("their_methods:", "expected module:name such as"),
    ],
)
def test_a_method_that_cannot_be_found_is_named(command: Callable[..., str], name: str, message: str) -> None:
    """Catches tracebacks where a module or class is mistyped."""
    assert message in command("train", DATASET, name, fails=True)


def test_a_method_that_is_called_like_one_of_ours_is_not_taken_for_it(
    command: Callable[..., str], folder: Path
) -> None:
    """Catches a run of an outside `bc` that is evaluated and reported as the suite's."""
    (folder / "other_bc.py").write_text(
        "from marl_flow.baselines.bc import BehaviourCloning\nclass Other(BehaviourCloning): name = 'bc'\n"
    )
    command("train", DATASET, "other_bc:Other", "--out", "runs/other", "updates=2", "batch_size=8", "tensorboard=false")
    command("eval", "runs/other", "--episodes", "2")
    assert read_results(folder / "runs/other")[0].algorithm == "other_bc:Other"


def test_a_config_that_cannot_be_read_again_is_refused_before_training(
    command: Callable[..., str], folder: Path
) -> None:
    """Catches hours of training whose checkpoint nothing can load."""
    (folder / "nested.py").write_text(
        "from dataclasses import dataclass, field, replace\nfrom their_methods import Linear, LinearConfig\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Deep(LinearConfig):\n"
        "    inner: dict = field(default_factory=dict)\n"
        "class Nested(Linear):\n    presets = {'default': Deep(inner={1: 'a'})}\n"
    )
    text = command("train", DATASET, "nested:Nested", "--out", "runs/nested", fails=True)
    assert "so that the run can be read again" in text and not (folder / "runs/nested/checkpoints").exists()


def test_a_class_without_entry_point_is_named_by_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run that calls its method by a name which nobody can look up."""
    from marl_flow.algorithm import reference

    (folder / "loose_methods.py").write_text(
        "from their_methods import Linear as _Linear\nclass Loose(_Linear): pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    loose = baselines.get("loose_methods:Loose")
    assert reference(loose) == "loose_methods:Loose" and baselines.get(reference(loose)) is loose
    assert reference(baselines.get("bc")) == "bc"
    with pytest.raises(UserError, match="module:Class"):
        baselines.get("nothing")
