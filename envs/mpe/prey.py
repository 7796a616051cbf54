"""The prey of tag and world: our own trained network, the one that OMAR published, and a scripted evader.

All are `Policy` objects without memory or randomness: actions [E, 1, 2] depend on the observations [E, 1, O] alone, row
by row. The prey observes its velocity (2), its position (2), every landmark and then the three predators relative to
itself (2 each), and in world two in-forest flags. Each has a `name`, which becomes the task's `opponent`: returns
against different prey are not comparable.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from marl_flow.interfaces import UserError

NATIVE = "native-v1"
"""Name of the prey that this package trained and ships (benchmarks/behaviour/prey.py)."""
WEIGHT_NAMES = tuple(
    [f"in_fn.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    + [f"fc{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")]
)
"""Keys of the state dict of a network prey."""


class FleeingPrey:
    """Runs to where the predators are farthest, staying inside the border and away from obstacles.

    Of sixteen directions it takes the one with the lowest cost at the position LOOK_AHEAD away: the sum over predators
    of 1 / (d^2 + 0.01), plus PENALTY_WEIGHT times the depth beyond BORDER and within OBSTACLE_MARGIN of an obstacle's
    centre. It leaves the arena only when it is pushed.

    `effort` is the length of the action, and so how hard the prey is to catch: at the default, predators that head for
    the prey's position 0.3 s ahead get a return of 200 in tag and 97 in world (181 and 97 against OMAR's prey); with
    effort 1, 7 and 1.
    """

    network_passes = 0
    name = "scripted"

    LOOK_AHEAD = 0.3
    BORDER = 0.9
    OBSTACLE_MARGIN = 0.3  # an obstacle's radius 0.2, the prey's 0.05 and some distance
    PENALTY_WEIGHT = 100.0
    DIRECTIONS = 16

    def __init__(
        self,
        *,
        num_obstacles: int,
        num_landmarks: int,
        effort: float = 0.1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """The first num_obstacles of num_landmarks observed landmarks are solid; the others are ignored."""
        if not 0.0 < effort <= 1.0:
            raise UserError(f"FleeingPrey: expected an effort above 0 and up to 1, got {effort}")
        angles = torch.arange(self.DIRECTIONS, dtype=torch.float64) * (2.0 * math.pi / self.DIRECTIONS)
        headings = torch.stack([angles.cos(), angles.sin()], dim=1)  # [D, 2]
        self._actions = (effort * headings).to(device=device, dtype=dtype)
        self._displacements = (self.LOOK_AHEAD * headings.t()[:, :, None]).to(device=device, dtype=dtype)  # [2, D, 1]
        first_predator = 4 + 2 * num_landmarks
        self.observation_size = first_predator + 6  # world adds the in-forest flags, which are not used
        rows = [*range(first_predator, first_predator + 6), *range(4, 4 + 2 * num_obstacles)]
        self._rows = torch.tensor(rows, device=device)

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        """Has no memory to clear."""

    @torch.no_grad()
    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        if observations.ndim != 3 or observations.shape[1] != 1 or observations.shape[2] < self.observation_size:
            raise UserError(
                f"the scripted prey expects observations [E, 1, {self.observation_size} or more], "
                f"got {tuple(observations.shape)}"
            )
        rows = observations[:, 0].t()  # [O, E]
        displacements = self._displacements.to(rows.dtype)
        beyond = (rows[2:4, None] + displacements).abs_().sub_(self.BORDER).clamp_(min=0.0).sum(0)  # [D, E]
        offsets = rows.index_select(0, self._rows).view(-1, 2, 1, rows.shape[1])
        offsets = offsets - displacements  # [3 predators and the obstacles, 2, D, E]
        squared = offsets.square_().sum(1)
        threat = squared[:3].add(0.01).reciprocal_().sum(0)
        depth = squared[3:].sqrt().neg_().add_(self.OBSTACLE_MARGIN).clamp_(min=0.0).sum(0)
        best = threat.add_(beyond.add_(depth), alpha=self.PENALTY_WEIGHT).argmin(0)  # [E]
        return self._actions.to(rows.dtype).index_select(0, best)[:, None]


class NetworkPrey:
    """A prey with OMAR's architecture: batch norm with running statistics, two hidden layers of ReLU, an output in
    [-1, 1], times `effort`.

    `output` is "clamp" as in the evaluations of MADiff and CoFlow, or "tanh" as in OMAR's own code
    (`ling-pan/OMAR: utils/networks.py`). It computes in float32 whatever the simulator's precision, and keeps the batch
    norm as a layer: merged into the first one it would differ from the reference in the last bits.

    `name` is `<family>-<8 hex digits of the weights' hash>` unless given; the output is part of the hash.
    """

    network_passes = 1

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        output: Literal["clamp", "tanh"] = "clamp",
        effort: float = 1.0,
        name: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """weights: the state dict of the policy, keys in_fn.{weight,bias,running_mean,running_var}, fc{1,2,3}.*."""
        if output not in ("clamp", "tanh"):
            raise UserError(f"NetworkPrey: expected output 'clamp' or 'tanh', got {output!r}")
        if not 0.0 < effort <= 1.0:
            raise UserError(f"NetworkPrey: expected an effort above 0 and up to 1, got {effort}")
        observed, hidden = _widths(weights)
        shapes: dict[str, tuple[int, ...]]
        shapes = {f"in_fn.{name}": (observed,) for name in ("weight", "bias", "running_mean", "running_var")}
        shapes |= {"fc1.weight": (hidden, observed), "fc2.weight": (hidden, hidden), "fc3.weight": (2, hidden)}
        shapes |= {"fc1.bias": (hidden,), "fc2.bias": (hidden,), "fc3.bias": (2,)}
        for key, shape in shapes.items():
            value = weights.get(key)
            if not isinstance(value, Tensor) or tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
                found = tuple(value.shape) if isinstance(value, Tensor) else value
                raise UserError(f"NetworkPrey: expected finite weights {key} of shape {shape}, got {found}")
        self.output, self.effort = output, effort
        self.observation_size = observed
        self.name = name or f"network-{weights_hash(weights, output)[:8]}"
        self._weights = {key: weights[key].detach().to(device=device, dtype=torch.float32) for key in shapes}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The network's weights, float32."""
        return dict(self._weights)

    @classmethod
    def from_omar(
        cls, path: Path | str, *, output: Literal["clamp", "tanh"] = "clamp", device: torch.device | str = "cpu"
    ) -> NetworkPrey:
        """The prey in a `pretrained_adv_model.pt`: the last of its agents. The file is read without running code."""
        path = Path(path)
        advice = "expected the pretrained_adv_model.pt of OMAR's simple_tag or simple_world"
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; {advice}") from error
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{path}: cannot be read as a torch file that holds only weights ({error}); {advice}"
            ) from error
        try:
            weights = content["agent_params"][-1]["policy"]
        except (KeyError, IndexError, TypeError) as error:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise UserError(f"{path}: has no agent_params[-1]['policy'], found {found}; {advice}") from error
        try:
            prey = cls(weights, output=output, device=device)
        except UserError as error:
            raise UserError(f"{path}: {error}; {advice}") from error
        prey.name = f"omar-{weights_hash(weights, output)[:8]}"
        return prey

    @classmethod
    def native(cls, task_id: str, *, device: torch.device | str = "cpu") -> NetworkPrey:
        """The prey this package ships for a task, read from `weights/<suite>_<task>.safetensors` beside this file."""
        from safetensors import SafetensorError, safe_open

        path = Path(str(files("marl_flow.envs.mpe") / "weights" / f"{task_id.replace('/', '_')}.safetensors"))
        try:
            with safe_open(path, framework="pt") as file:
                weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
                effort = float(file.metadata()["effort"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"expected the prey of {task_id} in the package's {path.name}, found: {error!r}; reinstall marl_flow"
            ) from error
        return cls(weights, output="tanh", effort=effort, name=NATIVE, device=device)

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        """Has no memory to clear."""

    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        if observations.shape[1:] != (1, self.observation_size):
            raise UserError(
                f"this prey was trained on observations [E, 1, {self.observation_size}], got "
                f"{tuple(observations.shape)}: the weights belong to another task"
            )
        weights = self._weights
        hidden = F.batch_norm(
            observations[:, 0].float(),
            weights["in_fn.running_mean"],
            weights["in_fn.running_var"],
            weights["in_fn.weight"],
            weights["in_fn.bias"],
        )
        hidden = F.linear(hidden, weights["fc1.weight"], weights["fc1.bias"]).relu_()
        hidden = F.linear(hidden, weights["fc2.weight"], weights["fc2.bias"]).relu_()
        action = F.linear(hidden, weights["fc3.weight"], weights["fc3.bias"])
        action = action.tanh() if self.output == "tanh" else action.clamp(-1.0, 1.0)
        return (self.effort * action).to(observations.dtype)[:, None]


def weights_hash(weights: Mapping[str, Tensor], output: str) -> str:
    """sha256, hex, of a network prey's weights as float32 and of its output function."""
    digest = hashlib.sha256(output.encode())
    for name in WEIGHT_NAMES:
        digest.update(weights[name].detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _widths(weights: Any) -> tuple[int, int]:
    """Sizes of the observation and of the hidden layers, from the first layer's weights."""
    first = weights.get("fc1.weight") if isinstance(weights, Mapping) else None
    if not isinstance(first, Tensor) or first.ndim != 2:
        raise UserError("NetworkPrey: expected a state dict with a matrix fc1.weight")
    return first.shape[1], first.shape[0]
