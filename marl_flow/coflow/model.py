"""CoFlow's two networks as one module: the velocity field over a team's window, and the inverse dynamics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marl_flow.coflow import loss
from marl_flow.coflow.config import CoFlowConfig
from marl_flow.coflow.network import InverseDynamics, TokenBackbone, TrajectoryNetwork, UNetBackbone
from marl_flow.interfaces import TaskSpec


class CoFlowModel(nn.Module):
    """The velocity field over a team's window, and the inverse dynamics that read actions off it."""

    def __init__(self, config: CoFlowConfig, spec: TaskSpec) -> None:
        super().__init__()
        self.config = config
        size = config.frame_size(spec)
        backbone: UNetBackbone | TokenBackbone
        if config.backbone == "unet":
            backbone = UNetBackbone(
                size,
                config.width,
                config.unet_multipliers,
                embedding=2 * config.embedding_width,
                attention_on_every_skip=config.attention_on_every_skip,
                heads=config.heads,
            )
        else:
            backbone = TokenBackbone(
                size,
                config.frames,
                config.width,
                config.token_blocks,
                embedding=2 * config.embedding_width,
                heads=config.heads,
            )
        self.network = TrajectoryNetwork(backbone, config.embedding_width, config.time_bins)
        self.inverse = InverseDynamics(
            size,
            spec.action.size,
            config.inverse_hidden,
            spec.num_agents if config.inverse_per_agent else None,
            from_difference=config.inverse_from_difference,
        )

    def velocity(
        self,
        z: Tensor,
        t: Tensor,
        label: Tensor,
        returns: Tensor,
        known: Tensor,
        *,
        keep_returns: Tensor | None = None,
        guidance: float = 1.0,
        gate_scale: float = 1.0,
        attention_out: list[Tensor] | None = None,
    ) -> Tensor:
        """u [B, F, N, O] at z [B, F, N, O] standing at time t [B], the network told `label` [B].

        returns [B, N] scaled; known [B, F, N] bool: the frames of z that are given. With guidance != 1 both branches
        run as one batch of 2 B rows.
        """
        if guidance != 1.0:
            twice = [torch.cat([x, x]) for x in (z, t, label, returns, known)]
            keep = torch.ones_like(returns, dtype=torch.bool)
            both = self.velocity(
                *twice,
                keep_returns=torch.cat([keep, ~keep]),
                gate_scale=gate_scale,
                attention_out=attention_out,
            )
            conditional, unconditional = both.chunk(2)
            return unconditional + guidance * (conditional - unconditional)
        reads_plan = self.config.output == "data"
        z_read = z
        if reads_plan:  # instead of the noisy frames, the best linear guess of unit-variance data from them: 0 at t = 1
            share = loss.expand((1 - t) / ((1 - t) ** 2 + t**2), z)
            z_read = torch.where(known[..., None], z, share * z)
        out = self.network(
            z_read, label, returns, known, keep_returns=keep_returns, gate_scale=gate_scale, attention_out=attention_out
        )
        if not reads_plan:
            return out
        return (z - z_read - out) / loss.expand(t.clamp_min(self.config.time_floor), z)
