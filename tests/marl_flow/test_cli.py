"""The command line as users meet it: real files, and for long commands real processes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import marl_flow
from marl_flow import cli, results
from marl_flow.benchmarks.campaign import make_runs
from marl_flow.commands import data, doctor, quickstart
from marl_flow.commands.evaluate import describe
from marl_flow.run_log import read_results

DATASET = "mpe/simple_spread/random"
Tool = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with one small dataset, built by the command."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARL_FLOW_DATA", str(root))
        assert cli.main(["data", "build", DATASET, "--episodes", "60"]) == 0
    return root


@pytest.fixture(autouse=True)
def place(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder of its own, beside the data root."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(data_root))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """Runs `python -m marl_flow ...` in the test's folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "marl_flow", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)

    return run


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def bc(out: str, *settings: str) -> list[str]:
    return ["train", DATASET, "bc", "--out", out, "batch_size=16", "tensorboard=false", "hidden=8", *settings]


def test_help_of_every_command_loads_nothing_heavy() -> None:
    """Catches an import at the top that makes `--help` slow: only tyro may be loaded once the parser has answered."""
    commands = [[], ["data"], ["data", "build"], ["train"], ["eval"], ["report"], ["quickstart"], ["doctor"]]
    code = (
        "import json, sys\nfrom marl_flow import cli\n"
        f"for words in {commands}:\n"
        "    try:\n        cli.main([*words, '--help'])\n"
        "    except SystemExit as done:\n        assert not done.code, words\n"
        "sys.stderr.write(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "matplotlib", "tqdm", "PIL"} & set(json.loads(done.stderr)) == set()
    assert done.stdout.count("usage: marl-flow") == len(commands)
    assert "--show-config" in done.stdout


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        (["d", "bc", "--width", "8", "--seed", "3"], ["d", "bc", "--seed", "3", "width=8"]),
        (["d", "bc", "--batch-size=8", "lr=1"], ["d", "bc", "batch_size=8", "lr=1"]),
        (["d", "bc", "--amp", "--no-tensorboard", "--x", "-1"], ["d", "bc", "amp=true", "tensorboard=false", "x=-1"]),
        (["d", "bc", "--out", "a=b", "--show-config"], ["d", "bc", "--out", "a=b", "--show-config"]),
        (["d", "bc", "--show_config", "--out=a"], ["d", "bc", "--show_config", "--out=a"]),
        (["d", "bc", "--amp", "k=1"], ["d", "bc", "amp=true", "k=1"]),
        (["--amp", "d", "bc"], ["d", "bc", "amp=true"]),
        (["--no-agent-id", "d", "bc", "--width", "3"], ["d", "bc", "agent_id=false", "width=3"]),
        (["d", "bc", "--amp", "false", "--compile", "True"], ["d", "bc", "amp=false", "compile=True"]),
        (["d", "bc", "--masked", "8"], ["d", "bc", "masked=8"]),
        (["d", "coflow", "--masked", "8"], ["d", "coflow", "8", "masked=true"]),
        (["d", "bc", "--task", "a:b", "--hidden", "8"], ["d", "bc", "--task", "a:b", "hidden=8"]),
        (["d", "bc", "--hidden"], ["d", "bc", "hidden"]),
        (["--help"], ["--help"]),
        (["-h"], ["-h"]),
        (["d", "bc", "--width", "8", "--help"], ["d", "bc", "--width", "8", "--help"]),
    ],
)
def test_unknown_flags_of_train_become_settings(given: list[str], becomes: list[str]) -> None:
    """Catches a flag's value taken for a setting, a word after a switch taken for its value, and lost switches."""
    assert cli.with_settings(["train", *given]) == ["train", *becomes]
    assert cli.with_settings(["eval", *given]) == ["eval", *given]


def test_a_tilde_in_a_path_is_the_home_directory(place: Path, monkeypatch, capsys) -> None:
    """Catches a folder called `~` in the current folder, which is what --out=~/x gives where no shell replaces it."""
    monkeypatch.setenv("HOME", str(place / "home"))
    assert cli.main([*bc("x", "updates=2")[:3], "--out=~/runs/x", *bc("x", "updates=2")[5:]]) == 0
    assert cli.main(["eval", "~/runs/x", "--episodes", "2"]) == 0
    assert cli.main(["report", "~/runs/x", "--out", "~/report"]) == 0
    assert cli.main(["data", "export", DATASET, "madiff", "~/data/export"]) == 0
    assert cli.main(["data", "import", "madiff", "~/nothing", "user/mpe/simple_spread/tilde-v1"]) == 2
    assert str(place / "home" / "nothing") in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["home"]
    assert {"data", "report", "runs"} <= {path.name for path in (place / "home").iterdir()}
    assert marl_flow.evaluate("~/runs/x", episodes=2) and marl_flow.results.load("~/runs")
    assert cli.main(["eval", "~nobody-of-that-name/x"]) == 2
    assert "home directory that ~ stands for, found none; set HOME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "build", "mpe/simple_spred/expert"], "mpe/simple_spread/expert"),
        (["data", "show", "mpe/simple_spread/medium"], "marl-flow data build"),
        (["data", "build", DATASET], "--force"),
        (["data", "build", "mpe/simple_spread/medium", "--episodes", "0"], "at least one episode"),
        (["train", DATASET, "cofow"], "nearest: coflow"),
        (["train", DATASET, "coflow", "--preset", "papr"], "nearest: paper"),
        (["train", DATASET, "coflow", "--widht", "64"], "nearest: width"),
        (["train", DATASET, "coflow", "train.horizon=3"], "unknown setting 'train.horizon'"),
        (["train", DATASET, "coflow", "width=wide"], "width: expected int, got 'wide'"),
        (["train", DATASET, "coflow", "width=20"], "attention on multiples of 16 channels, got 20"),
        (["train", DATASET, "coflow", "--width", "32", "width=64"], "given twice"),
        (["train", DATASET, "coflow", "keep_checkpoints=0"], "keep_checkpoints: expected at least 1"),
        (["train", DATASET, "coflow", "seed=1"], "unknown setting 'seed'; it has a flag: --seed 1"),
        (["train", DATASET, "bc", "device=cuda:1"], "--device cuda:1"),
        (["train", DATASET, "bc", "out=my runs"], "--out 'my runs'"),
        (["train", DATASET, "bc", "--seeds", "0", "1", "2"], "one seed, named with --seed"),
        (["train", DATASET, "bc", "--config", "file.json"], "configuration files are not implemented"),
        (["train", DATASET, "bc", "--wandb"], "Weights & Biases is not implemented"),
        (["train", DATASET, "bc", "--lr", "0.1"], "it is called learning_rate"),
        (["train", DATASET, "bc", "updates=2.5"], "updates: expected int"),
        (["train", DATASET, "bc", "updates=1e-3"], "updates: expected int"),
        (["train", DATASET, "bc", "amp=perhaps"], "amp: expected bool"),
        (["train", DATASET, "omar"], "OMAR is not implemented"),
        (["trian", DATASET], "unknown command trian; nearest: train"),
        (["data", "lst"], "unknown command data lst; nearest: list"),
        (["data", "import", "d4rl", "a.hdf5", "user/mine/toy/x"], "user/SUITE/TASK/NAME-v1"),
        (["data", "import", "d4rl", "a.hdf5", "mine/toy/x"], "user/SUITE/TASK/NAME-v1"),
        (["train", DATASET, "coflow", "width"], "expected a setting as key=value"),
        (["train", DATASET, "coflow", "--width"], "expected a setting as key=value"),
        (["train", DATASET, "bc", "--paper-settings", "centralized"], "the paper configures coflow, not bc"),
        (["train", DATASET, "bc", "--device", "abacus"], "expected cpu, cuda"),
        (["train", DATASET, "bc", "--device", "meta"], "expected cpu, cuda"),
        (["train", DATASET, "bc", "--learning-rate", "nan"], "nan"),
        (bc("file/inside"), "choose another --out"),
        (["eval", "nowhere"], "nowhere"),
        (["eval"], "name at least one run folder"),
        (["eval", "file", "--k", "0"], "k: expected"),
        (["eval", "file", "--actions-per-plan", "1", "1"], "actions-per-plan: expected different numbers"),
        (["eval", "file", "--gate-scale", "2"], "gate-scale: expected"),
        (["eval", "file", "--episodes", "0"], "at least one evaluation episode"),
        (["report", "nowhere"], "not a folder"),
        (["report", "."], "evaluate a run first"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """Catches tracebacks for users' slips, and messages that do not say what would have been right."""
    (place / "file").write_text("in the way", encoding="utf-8")
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.count("marl-flow: ") == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a version option that is a usage error."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"marl-flow {marl_flow.__version__}\n"


def test_a_switch_before_the_dataset_takes_no_value(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches `--amp DATASET bc`, whose dataset would be the value of amp."""
    assert cli.main(["train", "--amp", DATASET, "bc", "--show-config"]) == 0
    assert "  amp=True " in capsys.readouterr().out


def test_what_tyro_refuses_exits_2_too(tool: Tool) -> None:
    """Catches another exit code for slips that the parser itself finds."""
    done = tool("trian")
    assert done.returncode == 2 and "train" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RuntimeError("boom"), 1, "this is a bug in marl_flow (RuntimeError)"),
        (FileNotFoundError(errno.ENOENT, "gone", "x"), 1, "this is a bug"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 2, "cannot write runs/a: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), 2, "cannot write runs/a: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_faults_are_told_apart_by_their_exit_code(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches bugs that look like bad input, a full disk that looks like a bug, and Ctrl-C with a traceback."""
    names: dict = {"error": error}
    exec(compile("def fail(**_): raise error", cli.__file__, "exec"), names)  # as if a line of ours raised
    monkeypatch.setattr(cli.app, "cli", names["fail"])
    assert cli.main(["doctor"]) == code
    text = capsys.readouterr().err
    assert says in text and ("Traceback" in text) == (code == 1)


def test_an_error_in_a_users_code_is_not_called_our_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a report of a bug in marl_flow for a line in somebody's own method or task."""

    def fail(**_: object) -> None:
        raise RuntimeError("mine")

    monkeypatch.setattr(cli.app, "cli", fail)
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().err
    assert f"RuntimeError in {__file__}" in text and "bug" not in text.splitlines()[-1]


def test_one_bad_item_does_not_end_a_list(place: Path, monkeypatch, capsys) -> None:
    """Catches runs that are not evaluated, and datasets that are not verified, because an earlier one is bad; also
    where what is bad is a fault of ours."""
    assert cli.main(bc("good", "updates=2")) == 0
    capsys.readouterr()
    assert cli.main(["eval", "missing", "good", "gone", "--episodes", "2"]) == 2
    out, err = capsys.readouterr()
    assert "good: bc seed 0" in out and out.splitlines()[-1] == "next: marl-flow report good"
    assert err.count("missing") == err.count("gone") == 1 and len(read_results(place / "good")) == 1

    absent = ("mpe/simple_spread/expert", "mpe/simple_tag/random")
    assert cli.main(["data", "verify", absent[0], DATASET, absent[1], "--steps", "50"]) == 2
    out, err = capsys.readouterr()
    assert f"native/{DATASET}-v1: whole" in out and all(f"native/{name}-v1" in err for name in absent)

    verify, first = data.verify_dataset, []

    def broken(folder: Path, name: str, steps: int | None = None) -> dict:
        if not first:
            first.append(name)
            raise ZeroDivisionError("broken")
        return verify(folder, name, steps)

    monkeypatch.setattr(data, "verify_dataset", broken)
    assert cli.main(["data", "verify", DATASET, DATASET, "--steps", "50"]) == 1
    out, err = capsys.readouterr()
    assert "whole" in out and "ZeroDivisionError in" in err


def test_data_commands_tell_what_is_here(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a list that hides absent or damaged data, a verification that reads nothing, a force that loses data."""
    root = tmp_path / "other"
    monkeypatch.setenv("MARL_FLOW_DATA", str(root))
    assert cli.main(["data", "verify"]) == 2
    assert cli.main(["data", "build", DATASET, "--episodes", "40"]) == 0
    folder = root / "native" / "mpe" / "simple_spread" / "random-v1"
    capsys.readouterr()
    assert cli.main(["data", "list", "--suite", "mpe", "--origin", "native"]) == 0
    out = capsys.readouterr().out
    listed = {words[0]: words for line in out.splitlines() if (words := line.split())}
    random = listed["native/mpe/simple_spread/random-v1"]
    assert random[1:5] == ["built", "here", "partial", "40"] and "40 of 10,000 episodes" in out
    assert random[-2] == "159.8" and 100 < float(random[-3]) < 220
    expert = listed["native/mpe/simple_spread/expert-v1"]
    assert expert[3:5] == ["not", "here"] and expert[-2] == "516.8" and "smac" not in out
    assert cli.main(["data", "show", DATASET]) == 0
    card = capsys.readouterr().out
    assert "40 episodes" in card and "fits mpe/simple_spread: 1,000 steps played again" in " ".join(card.split())
    assert cli.main(["data", "show", "omar/mpe/simple_tag/expert-v1"]) == 2
    assert "marl-flow data fetch omar/mpe/simple_tag/expert-v1" in capsys.readouterr().err
    assert cli.main(["doctor"]) in (0, 1) and "40 of 10,000 episodes" in capsys.readouterr().out
    assert cli.main(["data", "verify", DATASET]) == 0
    rewards = folder / "rewards.npy"
    intact = rewards.read_bytes()
    rewards.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    capsys.readouterr()
    assert cli.main(["data", "verify"]) == 2
    assert "rewards: expected sha256" in capsys.readouterr().err
    assert cli.main(["doctor"]) in (0, 1)  # reads no array: the flipped bit is for `data verify`
    rewards.write_bytes(intact[:100])
    capsys.readouterr()
    assert cli.main(["doctor"]) == 1 and "--force" in capsys.readouterr().out
    assert cli.main(["data", "list"]) == 0 and "damaged" in capsys.readouterr().out
    assert cli.main(["data", "build", DATASET, "--episodes", "40", "--force"]) == 0
    assert rewards.read_bytes() == intact
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert cli.main(["data", "build", DATASET, "--force"]) == 2
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine" and rewards.read_bytes() == intact
    assert [path.name for path in folder.parent.iterdir()] == ["random-v1"]


def test_show_config_explains_every_setting(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches settings that no help mentions, values of another preset, and training where only help is wanted."""
    from marl_flow.baselines import get
    from marl_flow.training import TrainConfig

    assert cli.main(["train", DATASET, "coflow", "--preset", "paper", "--show-config", "heads=2"]) == 0
    text = capsys.readouterr().out
    words = {line.split("=")[0].strip() for line in text.splitlines() if "=" in line}
    preset = get("coflow").presets["paper"]
    assert {field.name for field in dataclasses.fields(preset)} <= words
    clash = {"updates", "batch_size"}
    others = {field.name for field in dataclasses.fields(TrainConfig)} - {"seed", "device"} - clash
    assert others | {f"train.{name}" for name in clash} <= words
    assert f"  horizon={preset.horizon} " in text and "  heads=2 " in text and "H, planned steps" in text
    assert not list(place.iterdir())


def test_a_run_starts_from_the_papers_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a configuration of the paper that changes nothing, or that overrules what is typed."""
    command = ["train", DATASET, "coflow", "--preset", "paper", "--paper-settings", "decentralized", "--show-config"]
    assert cli.main([*command, "updates=7"]) == 0
    text = capsys.readouterr().out
    assert "  conditioning=decentralized " in text and "  returns_scale=500.0 " in text and "  updates=7 " in text


@pytest.mark.slow
def test_train_eval_and_report_make_one_journey(tool: Tool, place: Path) -> None:
    """Catches commands that do not fit together, work done twice, and results lost between them."""
    first = tool(*bc("runs/bc", "updates=6"))
    assert first.returncode == 0 and "6 updates" in first.stdout, first.stderr
    second = tool("eval", "runs/bc", "--episodes", "5", "--gif", "--k", "1", "3")
    assert second.returncode == 0 and ", decentralized: return" in second.stdout, second.stderr
    (result,) = read_results(place / "runs/bc")
    assert (len(result.seeds), result.num_sampling_steps, result.protocol) == (5, None, "last checkpoint")
    assert (place / "runs/bc/rollout_decentralized.gif").is_file()
    third = tool("report", "runs", "--out", "table")
    assert third.returncode == 0 and "bc (default)" in third.stdout, third.stderr
    assert (place / "table/report.md").is_file() and list((place / "table/rollouts").iterdir())


def test_what_is_done_is_not_done_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a second evaluation of the same thing, and a skip of something that only looks the same."""
    assert cli.main(bc("a", "updates=2")) == 0
    capsys.readouterr()
    assert cli.main(bc("a", "updates=2")) == 0
    assert "finished before" in capsys.readouterr().out
    for extra, count in ((), 1), ((), 1), (("--again",), 2), (("--episodes", "4"), 3):
        assert cli.main(["eval", "a", "--episodes", "3", *extra]) == 0
        assert len(read_results(place / "a")) == count
    assert cli.main(bc("a", "updates=2", "train.updates=4")) == 0  # trained on: another checkpoint
    assert "continued from update 2" in capsys.readouterr().out
    assert cli.main(["eval", "a", "--episodes", "3"]) == 0
    assert [result.update for result in read_results(place / "a")] == [2, 2, 2, 4]


def test_other_devices_and_other_data_are_evaluated_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches results of another device, or of data of the same name, taken for the requested ones."""
    assert cli.main(bc("a", "updates=1")) == 0
    evaluate = ["eval", "a", "--episodes", "2"]
    assert cli.main(evaluate) == 0
    (first,) = read_results(place / "a")
    others = ({"device": "cuda"}, {"dataset_digest": "0" * 64})
    for number, change in enumerate(others):
        path = place / "a/results.jsonl"
        path.write_text(json.dumps({**dataclasses.asdict(first), **change}) + "\n", encoding="utf-8")
        assert cli.main(evaluate) == 0 and len(read_results(place / "a")) == 2, others[number]
        assert cli.main(evaluate) == 0 and len(read_results(place / "a")) == 2, others[number]


def test_a_dataset_built_meanwhile_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a training that fails because another process built its dataset first."""
    from marl_flow import envs
    from marl_flow.commands import data
    from marl_flow.datasets import catalog, native

    monkeypatch.setenv("MARL_FLOW_DATA", str(tmp_path / "data"))
    build, digests = native.build, []

    def slower(name: str, folder: Path, make_env: object, **how: object) -> object:
        digests.append(build(name, catalog.folder_of(name), envs.make, episodes=2).digest)
        return build(name, folder, make_env, **{**how, "episodes": 3})

    monkeypatch.setattr(native, "build", slower)
    assert [data.open_dataset(DATASET).digest] == digests


def test_a_checkpoint_file_is_named_from_anywhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a bare file name, given inside `checkpoints/`, whose run folder is not found."""
    assert cli.main(bc("a", "updates=1")) == 0
    monkeypatch.chdir(place / "a/checkpoints")
    assert cli.main(["eval", "update_00000001.safetensors", "--episodes", "2"]) == 0
    assert len(read_results(place / "a")) == 1


def test_an_unfinished_run_is_scored_under_its_own_name(place: Path) -> None:
    """Catches half-trained checkpoints in a table of last checkpoints."""
    assert cli.main(bc("a", "updates=4", "checkpoint_every=2")) == 0
    checkpoints = sorted((place / "a/checkpoints").iterdir())
    assert cli.main(["eval", str(checkpoints[0]), str(checkpoints[1]), "a", "--episodes", "2"]) == 0
    protocols = [result.protocol for result in read_results(place / "a")]
    assert protocols == ["update 2 of 4", "named checkpoint", "last checkpoint"]


def test_a_folder_of_another_run_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a run continued under other settings."""
    assert cli.main(bc("a", "updates=2")) == 0
    before = {path: path.read_bytes() for path in (place / "a").rglob("*.safetensors")}
    for change in (["learning_rate=0.1"], ["--seed", "1"]):
        assert cli.main(bc("a", "updates=2", *change)) == 2
        assert "belongs to another run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (place / "a").rglob("*.safetensors")} == before


@pytest.mark.slow
def test_ctrl_c_stops_behind_a_checkpoint_and_the_same_command_continues(place: Path) -> None:
    """Catches an interrupted training that loses its work, ends with a traceback, or exits as if it had finished."""
    command = [sys.executable, "-m", "marl_flow", *bc("a", "updates=100000", "checkpoint_every=100000", "log_every=5")]
    with subprocess.Popen(command, cwd=place, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not ((log := place / "a/metrics.jsonl").is_file() and log.stat().st_size):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error and "the same command continues" in error
    (checkpoint,) = (place / "a/checkpoints").iterdir()
    done = int(checkpoint.stem.removeprefix("update_"))
    assert 0 < done < 100_000
    assert cli.main(bc("a", "updates=100000", "checkpoint_every=100000", f"train.updates={done + 1}")) == 0


def test_output_into_a_closed_pipe_is_no_bug(place: Path) -> None:
    """Catches a traceback when `| head` has read enough."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "marl_flow", "data", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment(), text=True, check=False)
    os.close(writer)
    assert done.returncode == 0 and done.stderr == ""


def test_target_rules_are_computed_and_recorded(place: Path) -> None:
    """Catches a target on another scale, a quantile of undiscounted returns, and rules that never reach the results."""
    import numpy as np

    from marl_flow import datasets

    tiny = ["width=16", "token_blocks=1", "batch_size=8", "updates=1", "inverse_hidden=8", "conditioning=mixed"]
    assert cli.main(["train", DATASET, "coflow", "--out", "c", "tensorboard=false", *tiny]) == 0
    store = datasets.load(DATASET)
    rewards = store.rewards.reshape(store.num_episodes, 25, 3).astype(np.float64)
    starts = (rewards * 0.99 ** np.arange(25)[None, :, None]).sum(1).mean(-1)
    expected = {"quantile:0.5": np.median(starts), "raw:-3.5": -3.5, "paper": 450.0}
    for rule, value in expected.items():
        assert cli.main(["eval", "c", "--episodes", "2", "--k", "1", "2", "--target", rule]) == 0
        last = read_results(place / "c")[-1]
        assert last.target_return == pytest.approx(value, rel=1e-5), rule
        assert last.target_rule == ("constant:0.9*500" if rule == "paper" else rule)
    assert cli.main(["eval", "c", "--episodes", "2", "--k", "1", "2", "--target", "constant:0.9*500"]) == 0
    results = read_results(place / "c")
    assert len(results) == 3 * 4  # the paper's constant by its own name: there already
    assert {(r.execution, r.num_sampling_steps) for r in results} == {
        (execution, k) for execution in ("centralized", "decentralized") for k in (1, 2)
    }
    for bad in ("quantile:2", "quantile", "constant:5", "raw:x", "nan"):
        assert cli.main(["eval", "c", "--target", bad]) == 2
    assert (
        cli.main(["eval", "c", "--execution", "decentralized", "--k", "1", "--episodes", "2", "--gate-scale", "0"]) == 0
    )
    assert read_results(place / "c")[-1].gate_scale == 0.0


@pytest.mark.slow
def test_the_quickstart_runs_through_and_continues(place: Path) -> None:
    """Catches a quickstart whose parts do not fit, or that starts from nothing when it is started again."""
    tiny = ("updates=1", "batch_size=8", "width=16", "token_blocks=1", "inverse_hidden=8", "tensorboard=false")
    methods = tuple(
        dataclasses.replace(m, settings=(*m.settings, *(tiny if m.algorithm == "coflow" else ("updates=1",))))
        for m in quickstart.QUICKSTART.methods
    )
    small = dataclasses.replace(quickstart.QUICKSTART, datasets=(DATASET,), methods=methods)
    printed: list[str] = []

    def run() -> Path:
        arguments = {"seed": 2, "episodes": 2, "device": "cpu", "print_fn": printed.append, "campaign": small}
        return quickstart.quickstart(place / "q", **arguments)

    report = run()
    text = "\n".join(printed)
    assert report == place / "q/report/report.md" and str(report.parent) in text
    rows = results.load(place / "q")
    assert len(rows) == 3 + 2 * len(small.steps) and {(row.training_seed, len(row.seeds)) for row in rows} == {(2, 2)}
    assert {row.run_folder for row in rows} == {place / "q" / method.folder for method in methods}
    assert len(list((place / "q/report/rollouts").iterdir())) == 5
    before = {path: path.stat().st_mtime_ns for path in (place / "q").rglob("*") if path.suffix in (".gif", ".jsonl")}
    printed.clear()
    run()
    text = "\n".join(printed)
    assert text.count("finished before") == len(methods) and text.count("evaluated before") == len(methods)
    kept = {path: path.stat().st_mtime_ns for path in before if "report" not in path.parts}
    assert kept == {path: at for path, at in before.items() if "report" not in path.parts}


def test_the_quickstart_names_things_that_exist() -> None:
    """Catches a renamed setting, preset or dataset that only the ten-minute quickstart would notice."""
    runs = make_runs(quickstart.QUICKSTART, Path("q"), "cpu")
    assert [run.folder.as_posix() for run, _ in runs] == [
        *("q/coflow-centralized", "q/coflow-decentralized", "q/ma_td3_bc", "q/bc", "q/random")
    ]
    assert {run.dataset_id for run, _ in runs} == {"native/mpe/simple_spread/expert-v1"}


@pytest.mark.parametrize(
    ("requirement", "level"),
    [
        ("numpy>=2.0", "ok"),
        ("torch>=2.6", "ok"),
        ("numpy>=99.1", "problem"),
        ("no-such-library>=1", "problem"),
        ("numpy", "ok"),
    ],
)
def test_doctor_compares_versions(requirement: str, level: str) -> None:
    """Catches versions compared as text (10 before 9), and absent libraries passed over."""
    finding = doctor.library(requirement, {})
    assert finding is not None and finding.level == level
    assert (requirement in finding.advice) == (level == "problem")


def test_doctor_reads_versions_as_numbers() -> None:
    """Catches 2.13 taken for older than 2.6, and requirements of extras reported as missing."""
    assert doctor.release("2.13.0+cpu") == (2, 13, 0) > doctor.release("2.6")
    assert doctor.library('ruff>=0.6; extra == "dev"', {}) is None


@pytest.mark.slow
def test_a_log_of_training_and_evaluation_is_short(tool: Tool) -> None:
    """Catches a batch job's log that is 97 % redraws of a bar, in training and in evaluation."""
    for arguments in (["train", DATASET, "bc", "updates=300", "batch_size=64", "--out", "run"], ["eval", "run"]):
        done = tool(*arguments)
        assert done.returncode == 0 and "\r" not in done.stderr
        assert 1 <= len(done.stderr.splitlines()) <= 3, done.stderr
        assert "300/300 updates" in done.stderr or "100/100 episodes" in done.stderr


def test_colours_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches escape sequences in the help of somebody who set NO_COLOR."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    options = dict(cli.tyro._experimental_options)
    for value, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        with pytest.raises(SystemExit):
            cli.main(["report", "--help"])
        assert ("\x1b[" in capsys.readouterr().out) == coloured
    cli.tyro._experimental_options.update(options)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_some_characters_gets_others(tmp_path: Path, encoding: str) -> None:
    """Catches a traceback where a terminal or log is not UTF-8, in help, cards and errors."""
    for arguments, code in ((["data", "show", DATASET], 0), (["--help"], 0), (["eval", "no ☃ run"], 2), (["trian"], 2)):
        command = [sys.executable, "-m", "marl_flow", *arguments]
        variables = {**environment(), "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, timeout=120)
        assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr
        assert done.stdout + done.stderr


@pytest.mark.slow
def test_closed_streams_are_no_bug(tmp_path: Path) -> None:
    """Catches tracebacks where output is closed, by a daemon or by a reader that has gone, and a full disk unsaid."""
    tool = f"{sys.executable} -m marl_flow"
    for line, code in (
        (f"{tool} data show {DATASET} >&- 2>&-", 0),
        (f"{tool} --help >&-", 0),
        (f"{tool} data list <&- >&- 2>&-", 0),
        (f"{tool} eval nowhere >&- 2>&-", 2),
        (f"{tool} --help | true", 0),
        (f"{tool} data list > /dev/full", 2),
    ):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, timeout=120
        )
        assert done.returncode == code and b"Exception" not in done.stderr, (line, done.stderr)
        assert b"Traceback" not in done.stderr and (code != 2 or "2>&-" in line or b"No space" in done.stderr)


def test_switches_and_counts_may_be_written_in_other_forms(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches updates=2e2, amp=1 and tensorboard=no refused, and other values taken from them."""
    words = ["updates=2e2", "batch_size=64.0", "amp=1", "tensorboard=no", "--compile", "off", "--agent-id", "yes"]
    assert cli.main(["train", DATASET, "bc", *words, "--show-config"]) == 0
    text = capsys.readouterr().out
    for shown in (
        "updates=200 ",
        "batch_size=64 ",
        "amp=True ",
        "tensorboard=False ",
        "compile=False ",
        "agent_id=True",
    ):
        assert shown in text


@pytest.mark.parametrize("algorithm", ["coflow", "bc", "ma_td3_bc", "random"])
def test_every_listed_setting_has_a_description(
    place: Path, capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    """Catches a line of --show-config that says a type alone."""
    assert cli.main(["train", DATASET, algorithm, "--show-config"]) == 0
    listed = [line.strip() for line in capsys.readouterr().out.splitlines() if line[:2] == "  " and line[2] != " "]
    assert len(listed) > 8
    assert [line for line in listed if line.partition(" ")[2].strip().startswith("(")] == []


def test_the_next_command_works_as_it_is_printed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a suggested command with a path that the shell splits, with a file that is refused, or of a run that is
    not there; one bad run must not keep the others from being evaluated."""
    folder = "my runs/é"
    assert cli.main(bc(folder, "updates=2")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"next: marl-flow eval '{folder}'"
    for arguments, code in (
        ([f"{folder}/checkpoints/update_00000002.safetensors"], 0),
        (["nowhere", folder], 2),
        ([folder, str(Path(folder).resolve())], 0),
    ):
        assert cli.main(["eval", *arguments, "--episodes", "2"]) == code
        captured = capsys.readouterr()
        assert code == 0 or ("nowhere" in captured.err and captured.err.count("marl-flow: ") == 1)
        (line,) = [line for line in captured.out.splitlines() if line.startswith("next: ")]
        words = shlex.split(line)[1:]
        assert words[:3] == ["marl-flow", "report", folder] and "nowhere" not in words
        assert cli.main(words[1:]) == 0
        capsys.readouterr()
    assert cli.main(["eval", f"{folder}/checkpoints"]) == 2
    assert f"name the run folder, '{folder}'" in capsys.readouterr().err


def test_a_target_beyond_reason_does_not_blame_the_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a target return that makes networks overflow, and a message about damaged weights for it."""
    small = ["width=16", "heads=2", "batch_size=8", "tensorboard=false", "updates=1"]
    assert cli.main(["train", DATASET, "coflow", "--out", "flow", *small]) == 0
    for target in ("raw:1e30", "raw:-1e999", "constant:1e20*1e20"):
        assert cli.main(["eval", "flow", "--k", "1", "--episodes", "1", "--target", target]) == 2
        error = capsys.readouterr().err
        assert f"target: {target} is no return" in error and "those of the training data are from" in error
        assert "weights" not in error


def test_compile_without_a_compiler_is_one_message(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a missing compiler that is called a bug, or found after a dataset was built; a silent doctor."""
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setenv("MARL_FLOW_DATA", str(place / "data"))
    assert cli.main([*bc("run", "compile=true")]) == 2
    error = capsys.readouterr().err
    assert "compile=true needs a C++ compiler" in error and "Traceback" not in error and error.count("\n") == 1
    assert not (place / "run").exists() and not (place / "data").exists()
    (compiler,) = [finding for finding in doctor.findings() if finding.subject == "compiler"]
    assert compiler.level == "absent" and "no C++ compiler" in compiler.message
    monkeypatch.setenv("CXX", sys.executable)
    (compiler,) = [finding for finding in doctor.findings() if finding.subject == "compiler"]
    assert compiler.level == "ok"


def test_eval_run_again_prints_the_numbers_that_are_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a second eval that prints no number, and lines that do not say which run, seed and data they are of."""
    assert cli.main([*bc("run", "updates=2"), "--seed", "3"]) == 0
    for words, marks in ((["--episodes", "2"], [""]), (["--episodes", "2"], ["there already"]), (["--again"], [""])):
        capsys.readouterr()
        assert cli.main(["eval", "run", *words]) == 0
        printed = capsys.readouterr().out.splitlines()[:-1]
        last = read_results(place / "run")[-1]
        mean = sum(last.team_returns) / len(last.team_returns)
        assert len(printed) == len(marks)
        for line, mark in zip(printed, marks, strict=True):
            assert line.startswith("run: bc seed 3 on native/mpe/simple_spread/random-v1, decentralized: return ")
            assert f"return {mean:.1f} over {len(last.seeds)} episodes" in line
            assert ("there already" in line) == bool(mark) and "won" not in line


def test_a_line_of_an_evaluation_says_how_many_episodes_were_won() -> None:
    """Catches wins that are left out, or counted of the wrong number of episodes."""
    (stored,) = read_results(Path(__file__).parent / "former_run/bc")
    line = describe(dataclasses.replace(stored, won=(True, False, False)), Path("runs/a b"))
    assert "over 3 episodes, won 1 of 3 (33 %), " in line and line.startswith("runs/a b: bc seed 0 on native/mpe")
