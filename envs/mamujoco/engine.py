"""The MuJoCo engine: its models, its log kept quiet, and its report when a simulation breaks down.

MuJoCo does not stop at a state that is not a number or too large: it counts a warning, puts the robot back into its
first position and goes on. The warnings' counters are the only trace, and `run` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import numpy as np

from marl_flow.interfaces import UserError

if TYPE_CHECKING:
    import mujoco
    from mujoco.batch import Batch

FAILURES = {
    "mjWARN_INERTIA": "an inertia matrix is singular",
    "mjWARN_CONTACTFULL": "too many contacts, some were dropped",
    "mjWARN_CNSTRFULL": "too many constraints, some were dropped",
    "mjWARN_BADQPOS": "a position is not a number or huge",
    "mjWARN_BADQVEL": "a velocity is not a number or huge",
    "mjWARN_BADQACC": "an acceleration is not a number or huge",
    "mjWARN_BADCTRL": "a control is not a number or huge",
}
"""The engine's warnings that mean a failed simulation, with the reason in words."""


def load_model(name: str) -> mujoco.MjModel:
    """The model of that file name, e.g. `ant.xml`, among gymnasium's MuJoCo assets."""
    import mujoco

    with as_file(files("gymnasium") / "envs" / "mujoco" / "assets" / name) as path, quiet():
        return mujoco.MjModel.from_xml_path(str(path))


def make_batch(model: mujoco.MjModel, num_envs: int, num_threads: int) -> Batch:
    """E simulations of a model, stepped together by that many threads."""
    try:
        from mujoco.batch import Batch
    except ImportError as error:
        import mujoco

        raise UserError(
            f"expected MuJoCo 4.0 or newer, found {mujoco.__version__}; `pip install --upgrade mujoco`"
        ) from error
    return Batch(model, num_envs, min(num_envs, num_threads))


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block the engine neither prints nor writes MUJOCO_LOG.TXT; its counters still count."""
    import mujoco

    former, silent = mujoco.MjLogConfig.get(), mujoco.MjLogConfig.get()
    silent.logto_console = silent.logto_file = False
    silent.set()
    try:
        yield
    finally:
        former.set()


def run(batch: Batch, call: Callable[[], None]) -> dict[int, str]:
    """Makes a call on a batch; returns the rows that failed in it, each with the reason."""
    from mujoco.batch import SimulationError

    batch.warning[...] = 0  # after its own reset the engine counts from one again: differences are useless
    failures = {}
    with quiet():
        try:
            call()
        except SimulationError as error:  # these rows are as before the call, all others were stepped
            failures = {int(row): f"the engine refused: {batch.error(int(row))}" for row in error.ids}
    counted = batch.warning[:, :, 1]
    if counted.any():
        names = warning_names()
        for row, warning in np.argwhere(counted):
            failures.setdefault(int(row), FAILURES[names[warning]])
    return failures


def warning_names() -> tuple[str, ...]:
    """The engine's warnings in the order of its counters."""
    import mujoco

    members = {int(value.value): name for name, value in mujoco.mjtWarning.__members__.items()}
    return tuple(members[index] for index in range(mujoco.mjtWarning.mjNWARNING.value))
