"""Records what the installed package builds, small: `python tests/datasets/native/record_digests.py COMMIT`.

Run it only where a change of the data is meant, and say so in the changelog: the digests pin every number of a native
dataset, so that data built yesterday and today are the same data.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from marl_flow import envs
from marl_flow.datasets import native
from marl_flow.datasets.writer import platform_record

FILE = Path(__file__).with_name("digests.json")
EPISODES = {"mpe": 20, "smac": 20, "mamujoco": 2}
RESULTS_DEPEND_ON = ("system", "machine", "cpu_capability", "mujoco", "numpy", "torch")


def small_build(dataset_id: str, folder: Path) -> str:
    """The digest of a few episodes of a native dataset, built into a new folder."""
    suite = dataset_id.split("/")[1]
    digest = native.build(dataset_id, folder, envs.make, episodes=EPISODES[suite]).digest
    assert digest is not None
    return digest


def this_platform() -> dict[str, str]:
    """What the numbers of a dataset depend on beside the code."""
    record = platform_record()
    return {name: record[name] for name in RESULTS_DEPEND_ON}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        digests = {name: small_build(name, Path(place) / str(i)) for i, name in enumerate(native.RECIPES)}
    recorded = {"commit": sys.argv[1], "platform": this_platform(), "episodes": EPISODES, "digests": digests}
    FILE.write_text(json.dumps(recorded, indent=1) + "\n")
