"""Settings of CoFlow and its three presets, which are three values of one config.

- `release`: what the published code does (`Guowei-Zou/coflow-release: diffuser/models/ma_meanflow_wrapper.py`, commit
  91027bc): attention on the bottleneck and the two deepest skips, five time bins, guidance inside the loss, unmasked
  loss, no legal-action mask in the inverse loss. It loads the published weights (released_weights.py).
- `paper`: the paper's method without those slips: attention on every skip, continuous time, condition dropout with
  guidance at sampling, loss on generated real frames only, legal actions masked, noise times that reach 1.
- `compact`: `paper` with a token network that generates residual plans; trains on two CPU cores in minutes. Ours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from marl_flow.interfaces import TaskSpec, WindowSpec

Objective = Literal["finite_difference", "instantaneous", "jvp"]
"""How the predicted velocity is put together: the three equations of loss.py."""


@dataclass(frozen=True, kw_only=True)
class CoFlowConfig:
    """Defaults are the `compact` preset. Frames of a window: history + 1 (current) + horizon."""

    conditioning: Literal["centralized", "decentralized", "mixed"] = "centralized"
    """Whose history and current frame training shows: everybody's, one agent's, or either for half of the samples."""
    agent_ids: bool | None = None
    """Whether frames begin with the agent's one-hot id. None: as in the release, where actions are discrete; there
    (SMAC) the published data carry it, and MA-MuJoCo's observations have it already."""
    objective: Objective = "finite_difference"
    """Equation of the predicted velocity; finite_difference is the paper's, jvp MeanFlow's (see loss.py)."""
    history: int = 0
    """C, frames before the current one (>= 0)."""
    horizon: int = 4
    """H, planned steps (>= 1). The paper and its release count frames: their horizon 24 is 23 here."""
    backbone: Literal["unet", "token"] = "token"
    """The network: the paper's U-Net, or attention over tokens of one frame of one agent."""
    width: int = 128
    """Channels of the token network, or what `unet_multipliers` multiply. Where agents attend (token network: `width`;
    U-Net: every level's channels, the first level's only with `attention_on_every_skip`) they are divisible by
    4 * `heads`, and those of each U-Net level by 8."""
    unet_multipliers: tuple[int, ...] = (1, 4, 8)
    """U-Net: channels of each level, as multiples of `width`."""
    token_blocks: int = 3
    """Token network: number of blocks, >= 1."""
    embedding_width: int = 32
    """Channels of each of the two embeddings, time and return; even. The release ties it to `width`."""
    heads: int = 4
    """Attention heads, >= 1."""
    attention_on_every_skip: bool = True
    """U-Net: also attend on the shallowest skip, which the release leaves unused."""
    time_bins: int | None = None
    """Time labels are this many bins (release: 5) or continuous (None)."""
    plan_space: Literal["absolute", "residual"] = "residual"
    """What is generated: frames, or their difference from the current frame in units of a typical step's change."""
    output: Literal["velocity", "data"] = "data"
    """What the network's output means: the velocity, or the plan, from which the velocity is (z - plan) / t."""
    time_floor: float = 0.05
    """With output `data` the velocity divides by max(t, floor); in (0, 1)."""
    full_noise_share: float = 0.4
    """Fraction of training draws at t = 1, in [0, 1]."""
    masked: bool = True
    """Loss over generated real frames and legal actions only; False is the release's plain mean over everything."""
    condition_dropout: float = 0.0
    """Probability that a training sample is shown no return, in [0, 1). One draw for all its agents, since guidance
    drops all of them at once; MADiff draws for each agent."""
    guidance_weight: float = 1.0
    """Unconditional + weight * (conditional - unconditional); 1 is the conditional field alone, one pass."""
    guidance_in_loss: bool = False
    """Train the guided combination, as the release does, instead of guiding at sampling only."""
    discount: float = 0.99
    """Of the return-to-go label."""
    returns_scale: float | None = None
    """Return-to-go is divided by this; None: mapped to [-1, 1] by its range in the data."""
    return_to_go_update: bool | None = None
    """While acting, subtract each reward from the target: R <- (R - r) / discount. None: yes, unless the
    repeated division magnifies an error of the target a hundredfold within a task's step limit, as it would over
    MA-MuJoCo's 1,000 steps."""
    inverse_hidden: int = 256
    """Width of the inverse dynamics' hidden layers, >= 1."""
    inverse_per_agent: bool = False
    """Inverse dynamics of its own for each agent, instead of one that all share."""
    inverse_from_difference: bool = True
    """Inverse dynamics see a frame and its change to the next one, instead of both frames."""
    inverse_weight: float = 0.5
    """w of the total loss, (1 - w) * flow loss + w * inverse-dynamics loss, in (0, 1]."""
    normalizer: Literal["cdf", "limits", "standard"] = "standard"
    """How observations are scaled: by their ranks in the data, by their range, or by mean and deviation."""
    learning_rate: float = 3e-3
    """Of Adam at the start, > 0."""
    final_learning_rate_share: float = 0.05
    """Cosine decay over `updates` to this fraction of the learning rate, in (0, 1]; 1 is constant."""
    gradient_clip: float | None = 1.0
    """Largest norm of the gradient of an update, > 0; None: not clipped."""
    ema_decay: float = 0.995
    """Of the moving average of the weights, which acts, in [0, 1]."""
    ema_every: int = 1
    """Updates between two steps of that average, >= 1."""
    ema_start: int = 0
    """Before this update the average is a copy of the weights."""
    updates: int = 3000
    """Budget the learning-rate decay is spread over, and the default length of training."""
    batch_size: int = 256
    """Windows per update, >= 1."""

    def __post_init__(self) -> None:
        WindowSpec(history=self.history, horizon=self.horizon, discount=self.discount)
        for name, low, high in (
            ("width", 1, None),
            ("embedding_width", 4, None),
            ("token_blocks", 1, None),
            ("heads", 1, None),
            ("time_bins", 1, None),
            ("inverse_hidden", 1, None),
            ("ema_every", 1, None),
            ("ema_start", 0, None),
            ("updates", 0, None),
            ("batch_size", 1, None),
            ("guidance_weight", 0.0, None),
            ("returns_scale", 1e-12, None),
            ("learning_rate", 1e-12, None),
            ("gradient_clip", 1e-12, None),
            ("time_floor", 1e-6, 1.0),
            ("full_noise_share", 0.0, 1.0),
            ("condition_dropout", 0.0, 0.999),
            ("inverse_weight", 1e-6, 1.0),
            ("final_learning_rate_share", 1e-6, 1.0),
            ("ema_decay", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if value is not None and (value < low or (high is not None and value > high)):
                limit = f"at least {low}" if high is None else f"in [{low}, {high}]"
                raise ValueError(f"{name}: expected {limit}, got {value}")
        if self.embedding_width % 2:
            raise ValueError(f"embedding_width: expected an even number, got {self.embedding_width}")
        if any(multiplier < 1 for multiplier in self.unet_multipliers):
            raise ValueError(f"unet_multipliers: expected numbers of at least 1, got {self.unet_multipliers}")
        stride = 2 ** (len(self.unet_multipliers) - 1)
        if self.backbone == "unet" and (not self.unet_multipliers or self.frames % stride):
            raise ValueError(
                f"a U-Net of {len(self.unet_multipliers)} levels needs history + 1 + horizon divisible by {stride}, "
                f"got history {self.history} and horizon {self.horizon} ({self.frames} frames)"
            )
        self._check_widths()
        if self.return_to_go_update and self.discount == 0.0:
            raise ValueError("return_to_go_update divides by discount, which must then be above 0, got 0")
        if self.guidance_weight != 1.0 and self.guidance_in_loss == (self.condition_dropout > 0.0):
            raise ValueError(
                f"guidance_weight {self.guidance_weight} needs an unconditional field: either guidance_in_loss or a "
                f"condition_dropout above 0, not both, got {self.guidance_in_loss} and {self.condition_dropout}"
            )

    def _check_widths(self) -> None:
        """Raises where the channels of a layer cannot be split into its heads or normalisation groups."""
        if self.backbone == "token":
            normalized, attended = [], [self.width]
        else:
            normalized = [self.width * multiplier for multiplier in self.unet_multipliers]
            attended = normalized[1:] or normalized
            if self.attention_on_every_skip:
                attended = normalized
        for divisor, channels, purpose in ((8, normalized, "group norm"), (4 * self.heads, attended, "attention")):
            wrong = [count for count in channels if count % divisor]
            if wrong:
                raise ValueError(
                    f"width: expected {purpose} on multiples of {divisor} channels, got {wrong[0]} (backbone "
                    f"{self.backbone}, width {self.width}, unet_multipliers {self.unet_multipliers}, heads "
                    f"{self.heads}); change width or heads"
                )

    def has_agent_ids(self, spec: TaskSpec) -> bool:
        """Whether frames begin with the agent's one-hot id in this task."""
        return spec.action.is_discrete if self.agent_ids is None else self.agent_ids

    def updates_return(self, spec: TaskSpec) -> bool:
        """Whether rewards are subtracted from the target return in this task."""
        if self.return_to_go_update is None:
            return self.discount > 0.0 and self.discount**-spec.max_steps < 100.0
        return self.return_to_go_update

    def frame_size(self, spec: TaskSpec) -> int:
        """Features of one agent's frame."""
        return spec.observation_size + (spec.num_agents if self.has_agent_ids(spec) else 0)

    @property
    def frames(self) -> int:
        """F, frames of a window: history, the current one and the planned ones."""
        return self.history + 1 + self.horizon


_PAPER = CoFlowConfig(
    horizon=23,
    backbone="unet",
    width=128,
    embedding_width=128,
    plan_space="absolute",
    output="velocity",
    condition_dropout=0.25,
    guidance_weight=1.2,
    returns_scale=None,
    inverse_from_difference=False,
    normalizer="cdf",
    learning_rate=2e-4,
    final_learning_rate_share=1.0,
    gradient_clip=None,
    ema_every=10,
    ema_start=2000,
    updates=350_000,
    batch_size=64,
)
_RELEASE = dataclasses.replace(
    _PAPER,
    attention_on_every_skip=False,
    time_bins=5,
    full_noise_share=0.0,
    masked=False,
    condition_dropout=0.0,
    guidance_in_loss=True,
    returns_scale=700.0,
    return_to_go_update=False,
)

PRESETS = MappingProxyType({"compact": CoFlowConfig(), "paper": _PAPER, "release": _RELEASE})
