"""The trajectory network: team frames in, team frames out, agents coupled by gated attention; and the Polyak average.

CoFlow, arXiv 2605.01457: Coordinated Velocity Attention (CVA) mixes the agents' features, each block behind one scalar
gate that starts at zero, so that training starts from independent agents. Two backbones share the attention blocks:

- `unet`: the temporal U-Net of the published code (`Guowei-Zou/coflow-release: diffuser/models/ma_temporal.py`);
- `token`: one token per agent (its whole window flattened), residual MLP blocks. Ours, for small machines.

Shapes: B batch, F frames of a window (C history + L), N agents, O observation, D channels. No index of an agent enters
either network, so permuting agents permutes the output.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

LABEL_SCALE = 30.0
"""Continuous time in [0, 1] is spread over this range before the sinusoidal embedding, which resolves units. Enough
to tell times 0.03 apart; with 1000 the `jvp` objective, which differentiates by time, diverges."""


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines [B, D] of labels [B] at D / 2 frequencies, from 1 down to 1e-4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        self.frequencies = nn.Buffer(frequencies, persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        angles = labels[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class CoordinatedVelocityAttention(nn.Module):
    """Features [B, N, D, F] plus a gated mix of the other agents' features (CVA).

    One token per agent: its channels of one head and its frames, flattened. Queries and keys have D / 4 channels,
    values D; each is a 1x1 convolution plus a projection of the embedding [B, N, 2 W]. The softmax runs over all
    agents, self included. There is no output projection; `gate` is one scalar, zero at the start. Attention is written
    out, because torch's fused attention has no forward-mode derivative, which the `jvp` objective needs.
    Source: `Guowei-Zou/coflow-release: diffuser/models/temporal.py`.
    """

    def __init__(self, channels: int, embedding: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.gate = nn.Parameter(torch.zeros(1))
        self.query = nn.Conv1d(channels, channels // 4, 1)
        self.key = nn.Conv1d(channels, channels // 4, 1)
        self.value = nn.Conv1d(channels, channels, 1)
        self.query_embedding = nn.Linear(embedding, channels // 4)
        self.key_embedding = nn.Linear(embedding, channels // 4)
        self.value_embedding = nn.Linear(embedding, channels)

    def forward(
        self, features: Tensor, embedding: Tensor, gate_scale: float = 1.0, attention_out: list[Tensor] | None = None
    ) -> Tensor:
        """`attention_out` collects the weights [heads, B, N (query), N (key)]."""
        batch, agents, channels, frames = features.shape
        flat = features.reshape(batch * agents, channels, frames)
        activated = functional.mish(embedding)

        def project(layer: nn.Conv1d, embed: nn.Linear) -> Tensor:  # -> [heads, B, N, channels per head * F]
            if frames == 1:  # the same product, for which the convolution routine is slow
                out = functional.linear(flat[..., 0], layer.weight[..., 0], layer.bias)
            else:
                out = layer(flat)
            projected: Tensor = out.reshape(batch, agents, -1, frames) + embed(activated)[..., None]
            return projected.reshape(batch, agents, self.heads, -1).permute(2, 0, 1, 3)

        query = project(self.query, self.query_embedding)
        key = project(self.key, self.key_embedding)
        value = project(self.value, self.value_embedding)
        weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), dim=-1)
        if attention_out is not None:
            attention_out.append(weights.detach())
        mixed: Tensor = (weights @ value).permute(1, 2, 0, 3).reshape(batch, agents, channels, frames)
        return features + gate_scale * self.gate * mixed


class ConvBlock(nn.Module):
    """Convolution over frames, group norm, Mish: [M, D_in, F] -> [M, D_out, F]."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = nn.GroupNorm(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return functional.mish(x)


class ResidualBlock(nn.Module):
    """Two convolution blocks with the embedding [M, W] added between them, and a skip."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.conv_in = ConvBlock(inputs, outputs)
        self.conv_out = ConvBlock(outputs, outputs)
        self.embed = nn.Linear(embedding, outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        out: Tensor = self.conv_out(self.conv_in(x) + self.embed(activated)[..., None]) + self.skip(x)
        return out


class Stage(nn.Module):
    """Two residual blocks and a change of frame rate (`resample`, identity where the rate stays)."""

    def __init__(self, inputs: int, outputs: int, embedding: int, resample: nn.Module) -> None:
        super().__init__()
        self.first = ResidualBlock(inputs, outputs, embedding)
        self.second = ResidualBlock(outputs, outputs, embedding)
        self.resample = resample

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, activated), activated)
        return out


class UNetBackbone(nn.Module):
    """Temporal U-Net shared by the agents, with CVA on the bottleneck and on skips.

    `attention_on_every_skip` False is the published code: attention on the bottleneck and the two deepest skips, while
    the shallowest skip is computed and never used. True adds one stage at full frame rate that reads the shallowest
    skip through its own attention, as the paper's figure draws it. F must be divisible by 2 ** (levels - 1).
    """

    def __init__(
        self,
        observation_size: int,
        width: int,
        multipliers: tuple[int, ...],
        *,
        embedding: int,
        attention_on_every_skip: bool,
        heads: int,
    ) -> None:
        super().__init__()
        channels = [observation_size, *(width * m for m in multipliers)]
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(pairs):
            is_deepest = level == len(pairs) - 1
            resample = nn.Identity() if is_deepest else nn.Conv1d(outputs, outputs, 3, stride=2, padding=1)
            self.down.append(Stage(inputs, outputs, embedding, resample))
        self.middle = Stage(channels[-1], channels[-1], embedding, nn.Identity())
        self.blocks = nn.ModuleList([CoordinatedVelocityAttention(channels[-1], embedding, heads)])
        self.up = nn.ModuleList()
        for inputs, outputs in reversed(pairs[1:]):
            self.blocks.append(CoordinatedVelocityAttention(outputs, embedding, heads))
            upsample = nn.ConvTranspose1d(inputs, inputs, 4, stride=2, padding=1)
            self.up.append(Stage(2 * outputs, inputs, embedding, upsample))
        if attention_on_every_skip:
            self.blocks.append(CoordinatedVelocityAttention(channels[1], embedding, heads))
            self.up.append(Stage(2 * channels[1], channels[1], embedding, nn.Identity()))
        self.final = ConvBlock(channels[1], channels[1])
        self.output = nn.Conv1d(channels[1], observation_size, 1)

    @property
    def attention(self) -> Sequence[CoordinatedVelocityAttention]:
        return cast("Sequence[CoordinatedVelocityAttention]", self.blocks)

    def forward(
        self, z: Tensor, given_mask: Tensor, embedding: Tensor, gate_scale: float, attention_out: list[Tensor] | None
    ) -> Tensor:
        """z [B, F, N, O] -> [B, F, N, O]; embedding [B, N, W]. `given_mask` is not read: the release
        has no such input."""
        batch, frames, agents, size = z.shape
        stride = 2 ** (len(self.down) - 1)
        if frames % stride:
            raise ValueError(
                f"the U-Net halves the frames {len(self.down) - 1} times: history + horizon + 1 must be "
                f"divisible by {stride}, got {frames}"
            )
        x = z.permute(0, 2, 3, 1).reshape(batch * agents, size, frames)
        activated = functional.mish(embedding).reshape(batch * agents, -1)

        def attend(block: CoordinatedVelocityAttention, features: Tensor) -> Tensor:
            split = features.reshape(batch, agents, *features.shape[1:])
            attended: Tensor = block(split, embedding, gate_scale, attention_out)
            return attended.reshape(features.shape)

        skips = []
        for stage in cast("Sequence[Stage]", self.down):
            x = stage(x, activated)
            skips.append(x)
            x = stage.resample(x)
        x = attend(self.attention[0], self.middle(x, activated))
        for stage, block in zip(cast("Sequence[Stage]", self.up), self.attention[1:], strict=True):
            x = torch.cat([x, attend(block, skips.pop())], dim=1)
            x = stage.resample(stage(x, activated))
        out: Tensor = self.output(self.final(x))
        return out.reshape(batch, agents, size, frames).permute(0, 3, 1, 2)


class TokenBlock(nn.Module):
    """Residual MLP on each agent's token, its hidden layer shifted by the embedding, then gated attention.

    ReLU and no normalisation, unlike the U-Net: who goes to which landmark is a function with sharp edges, which layer
    norm and Mish learned much later (docs/log.md).
    """

    def __init__(self, width: int, embedding: int, heads: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, 2 * width)
        self.shift = nn.Linear(embedding, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.attention = CoordinatedVelocityAttention(width, embedding, heads)

    def forward(self, x: Tensor, embedding: Tensor, gate_scale: float, attention_out: list[Tensor] | None) -> Tensor:
        x = x + self.narrow(functional.relu(self.widen(x) + self.shift(embedding)))
        attended: Tensor = self.attention(x[..., None], embedding, gate_scale, attention_out)
        return attended[..., 0]


class TokenBackbone(nn.Module):
    """One token per agent: its window of F frames and a flag for each given frame, flattened."""

    def __init__(
        self, observation_size: int, frames: int, width: int, blocks: int, *, embedding: int, heads: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(frames * (observation_size + 1), width)
        self.blocks = nn.ModuleList(TokenBlock(width, embedding, heads) for _ in range(blocks))
        self.output = nn.Linear(width, frames * observation_size)

    @property
    def attention(self) -> Sequence[CoordinatedVelocityAttention]:
        return [block.attention for block in cast("Sequence[TokenBlock]", self.blocks)]

    def forward(
        self, z: Tensor, given_mask: Tensor, embedding: Tensor, gate_scale: float, attention_out: list[Tensor] | None
    ) -> Tensor:
        """z [B, F, N, O], given_mask [B, F, N] -> [B, F, N, O]; embedding [B, N, W]."""
        batch, frames, agents, size = z.shape
        flat = torch.cat([z, given_mask[..., None].to(z.dtype)], dim=-1).permute(0, 2, 1, 3)
        x = self.embed(flat.reshape(batch, agents, frames * (size + 1)))
        for block in self.blocks:
            x = block(x, embedding, gate_scale, attention_out)
        out: Tensor = self.output(x)
        return out.reshape(batch, agents, frames, size).permute(0, 2, 1, 3)


class TrajectoryNetwork(nn.Module):
    """Output [B, F, N, O] for a noisy window z [B, F, N, O] and one time label per sample.

    `time_bins` an integer: the label is floor(bins * t) clamped to the last bin, as published (5 bins); None:
    continuous time.
    """

    def __init__(self, backbone: UNetBackbone | TokenBackbone, width: int, time_bins: int | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.time_bins = time_bins
        self.time_embedding = nn.Sequential(
            SinusoidalEmbedding(width), nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        self.return_embedding = nn.Sequential(
            nn.Linear(1, width), nn.Mish(), nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        returns: Tensor,
        given_mask: Tensor,
        *,
        keep_returns: Tensor | None = None,
        gate_scale: float = 1.0,
        attention_out: list[Tensor] | None = None,
    ) -> Tensor:
        """time [B] in [0, 1]; returns [B, N] scaled; given_mask [B, F, N] bool; keep_returns [B, N] or [B, 1] bool.

        Where a return is not kept its embedding is zero: the unconditional branch of guidance. None keeps all.
        """
        if self.time_bins is None:
            label = time * LABEL_SCALE
        else:
            label = (time * self.time_bins).floor().clamp(0, self.time_bins - 1)
        embedded_return = self.return_embedding(returns[..., None])
        if keep_returns is not None:
            embedded_return = embedded_return * keep_returns[..., None].to(embedded_return.dtype)
        embedded_time = self.time_embedding(label)[:, None].expand_as(embedded_return)
        embedding = torch.cat([embedded_time, embedded_return], dim=-1)
        out: Tensor = self.backbone(z, given_mask, embedding, gate_scale, attention_out)
        return out

    def gates(self) -> Tensor:
        """The attention gates, one per block, from the bottleneck outwards (unet) or input to output (token)."""
        return torch.stack([block.gate.detach()[0] for block in self.backbone.attention])

    def set_gates(self, values: Tensor) -> None:
        """Sets the gates [number of blocks]."""
        blocks = list(self.backbone.attention)
        if values.shape != (len(blocks),):
            raise ValueError(
                f"expected gates of shape ({len(blocks)},), got {tuple(values.shape)}; `gates()` has the shape"
            )
        with torch.no_grad():
            for block, value in zip(blocks, values, strict=True):
                block.gate.fill_(float(value))


class InverseDynamics(nn.Module):
    """Action head: actions or logits [..., N, A] from a frame and the next [..., N, O] each. Two hidden layers, ReLU.

    `per_agent`: a head of its own for each agent (the twelve decentralized MPE configurations of the release).
    `from_difference`: reads (o, next - o) instead of (o, next). The difference, which is what an action decides where
    dynamics are deterministic, is small against the frame.
    """

    def __init__(
        self, observation_size: int, outputs: int, hidden: int, num_heads: int | None, *, from_difference: bool
    ) -> None:
        super().__init__()
        self.from_difference = from_difference
        heads = 1 if num_heads is None else num_heads
        self.first = _Heads(heads, 2 * observation_size, hidden)
        self.second = _Heads(heads, hidden, hidden)
        self.last = _Heads(heads, hidden, outputs)

    def forward(self, frame: Tensor, next_frame: Tensor) -> Tensor:
        x = torch.cat([frame, next_frame - frame if self.from_difference else next_frame], dim=-1)
        out: Tensor = self.last(functional.relu(self.second(functional.relu(self.first(x)))))
        return out


class _Heads(nn.Module):
    """One linear layer [..., N, in] -> [..., N, out] shared by the agents, or one of its own for each of N."""

    def __init__(self, heads: int, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(heads)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return functional.linear(x, self.weight[0], self.bias[0])
        return torch.einsum("...ni,noi->...no", x, self.weight) + self.bias


M = TypeVar("M", bound=nn.Module)


class PolyakAverage(Generic[M]):
    """Running average of a module's parameters, held in a frozen copy.

    Copied outright before `start` updates, afterwards moved every `every` updates:
    average <- decay * average + (1 - decay) * weights.
    """

    def __init__(self, module: M, decay: float, *, every: int = 1, start: int = 0) -> None:
        self.module: M = copy.deepcopy(module).requires_grad_(False)
        self.decay, self.every, self.start = decay, every, start

    @torch.no_grad()
    def step(self, module: M, update: int) -> None:
        """`update` counts from 1."""
        if update % self.every:
            return
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = [parameter.detach() for parameter in module.parameters()]
        weight = 1.0 if update < self.start else 1.0 - self.decay
        torch._foreach_lerp_(averages, weights, weight)  # pyright: ignore[reportPrivateImportUsage]
