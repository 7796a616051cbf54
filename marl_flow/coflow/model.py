"""CoFlow's two networks as one module, and what they are told besides the noisy frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from marl_flow.coflow.config import CoFlowConfig
from marl_flow.coflow.network import InverseDynamics, TokenBackbone, TrajectoryNetwork, UNetBackbone
from marl_flow.interfaces import TaskSpec
from marl_flow.tensors import append_dims


@dataclass(frozen=True)
class Condition:
    """What the velocity field is told besides noisy frames and times.

    given_mask [B, F, N] bool: frames that are given. returns [B, N]: scaled return-to-go. keep_returns [B, N] or [B, 1]
    bool: where the returns are shown (None: everywhere).
    """

    given_mask: Tensor
    returns: Tensor
    keep_returns: Tensor | None = None

    def with_and_without_returns(self) -> Condition:
        """2 B rows: the B rows shown their returns, then the same rows not shown them."""
        keep = torch.ones_like(self.returns, dtype=torch.bool)
        return Condition(
            torch.cat([self.given_mask, self.given_mask]),
            torch.cat([self.returns, self.returns]),
            torch.cat([keep, ~keep]),
        )


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
        condition: Condition,
        *,
        guidance: float = 1.0,
        gate_scale: float = 1.0,
        attention_out: list[Tensor] | None = None,
    ) -> Tensor:
        """u [B, F, N, O] at z [B, F, N, O], which stands at time t [B], while the network is told the time `label` [B].

        With guidance != 1 the field is unconditional + guidance * (conditional - unconditional), both run as one batch
        of 2 B rows.
        """
        if guidance != 1.0:
            both = self.velocity(
                torch.cat([z, z]),
                torch.cat([t, t]),
                torch.cat([label, label]),
                condition.with_and_without_returns(),
                gate_scale=gate_scale,
                attention_out=attention_out,
            )
            conditional, unconditional = both.chunk(2)
            return unconditional + guidance * (conditional - unconditional)

        def network(frames: Tensor) -> Tensor:
            out: Tensor = self.network(
                frames,
                label,
                condition.returns,
                condition.given_mask,
                keep_returns=condition.keep_returns,
                gate_scale=gate_scale,
                attention_out=attention_out,
            )
            return out

        if self.config.output == "velocity":
            return network(z)
        # The network reads the best linear guess of unit-variance data instead of the noisy frames (0 at t = 1), and
        # its output is added to that guess: the plan, to which z moves at (z - plan) / t.
        guess = torch.where(condition.given_mask[..., None], z, append_dims((1 - t) / ((1 - t) ** 2 + t**2), z) * z)
        return (z - guess - network(guess)) / append_dims(t.clamp_min(self.config.time_floor), z)
