"""Acting with CoFlow: condition, sample a plan, read actions off its first steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from marl_flow.coflow.config import CoFlowConfig
from marl_flow.coflow.inputs import PlanSpace, condition, with_numbers
from marl_flow.coflow.model import CoFlowModel
from marl_flow.coflow.sampler import integrate
from marl_flow.interfaces import ActingConfig, TaskSpec, UserError
from marl_flow.normalize import Normalizers


def scale_returns(returns: Tensor, config: CoFlowConfig, normalizers: Normalizers) -> Tensor:
    """Raw return-to-go [..., N] as the network reads it."""
    if config.returns_scale is not None:
        return returns / config.returns_scale
    return normalizers.returns.apply(returns[..., None])[..., 0]


def frames_of(observations: Tensor, config: CoFlowConfig, spec: TaskSpec, normalizers: Normalizers) -> Tensor:
    """Raw observations [..., N, O] as the networks read them: normalised, behind agents' numbers where asked."""
    frames = normalizers.observations.apply(observations)
    return with_numbers(frames, config.normalizer) if config.with_ids(spec) else frames


def plan_space(values: Tensor, seen: Tensor, config: CoFlowConfig, normalizers: Normalizers) -> PlanSpace:
    """Where the planned frames of windows conditioned on values [B, F, N, O], seen [B, N] are generated."""
    if config.plan_space == "absolute":
        return PlanSpace.absolute(values, config.history)
    scale = normalizers.changes.tables["scale"]
    numbers = scale.new_ones(values.shape[-1] - len(scale))  # agents' numbers, where there are any, never change
    return PlanSpace.residual(values, seen, config.history, torch.cat([numbers, scale]))


class FlowPolicy:
    """Receding-horizon control: plan in k steps of sampling, act on the first m planned frames, plan again.

    Decision j behind a planning (j = 0 to m - 1) is the action that leads from the frame observed now to the planned
    frame of the next step: the loop is closed on what is observed, so a drift from the plan is corrected, not repeated.
    With j = 0 the observed frame is the plan's own current frame, which conditioning holds fixed through sampling. The
    plan's noise is drawn with it: with another m, plans behind the first get other draws.

    Settable from outside, for coordination probes: `gate_scale` in [0, 1]; `record_attention`, which keeps each
    plan's attention weights in `attention`, a list over network passes and blocks of [heads, rows, N, N].
    """

    def __init__(self, model: CoFlowModel, spec: TaskSpec, normalizers: Normalizers, acting: ActingConfig) -> None:
        assert acting.num_sampling_steps is not None and acting.target_return is not None
        if not 1 <= acting.actions_per_plan <= model.config.horizon:
            raise UserError(
                f"actions-per-plan: expected 1 to {model.config.horizon}, the horizon this run plans, got "
                f"{acting.actions_per_plan}; ask for fewer, or train with a longer horizon"
            )
        self.model, self.config = model, model.config
        self.spec, self.normalizers, self.acting = spec, normalizers, acting
        self.device = next(model.parameters()).device
        self.num_steps: int = acting.num_sampling_steps
        self.target_return: float = acting.target_return
        self.gate_scale = acting.gate_scale
        self.record_attention = False
        self.attention: list[Tensor] = []

    @property
    def network_passes(self) -> float:
        return self.num_steps * (1 if self.config.guidance_weight == 1.0 else 2) / self.acting.actions_per_plan

    def reset(self, num_envs: int, generator: torch.Generator) -> None:
        self.num_envs, self.generator = num_envs, generator
        self.frames: Tensor | None = None
        self.planned: Tensor | None = None
        self.ahead = 0
        self.returns = torch.full((num_envs, self.spec.num_agents), self.target_return, device=self.device)

    @torch.no_grad()
    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        """Actions [E, N, A] or choices [E, N] for observations [E, N, O]."""
        now = self.config.history
        frame = frames_of(observations.to(self.device, torch.float32), self.config, self.spec, self.normalizers)
        if self.frames is None:  # before the start the first frame repeats, as in training windows
            self.frames = frame[:, None].expand(-1, now + 1, -1, -1)
        else:
            self.frames = torch.cat([self.frames[:, 1:], frame[:, None]], dim=1)
            if self.config.updates_return(self.spec):
                self.returns = (self.returns - rewards.to(self.returns)) / self.config.discount
        if self.planned is None or self.ahead == self.acting.actions_per_plan:
            self.planned, self.ahead = self.plan(self.frames), 0
        self.ahead += 1
        output = self.model.inverse(frame, self.planned[:, now + self.ahead])
        return self._decide(output, action_mask).to(observations.device)

    def plan(self, frames: Tensor) -> Tensor:
        """Window [E, F, N, O] planned after frames [E, C + 1, N, O], normalised; decentralized: own parts."""
        config = self.config
        rows, _, agents, size = frames.shape
        window = functional.pad(frames, (0, 0, 0, 0, 0, config.horizon))
        returns = scale_returns(self.returns, config, self.normalizers)
        seen = torch.ones(rows, agents, dtype=torch.bool, device=frames.device)
        decentralized = self.acting.execution == "decentralized"
        if decentralized:  # row e * N + i: what agent i of episode e sees
            window = window.repeat_interleave(agents, dim=0)
            returns = returns.reshape(-1, 1).expand(-1, agents)  # it knows its own rewards only
            seen = torch.eye(agents, dtype=torch.bool, device=frames.device).repeat(rows, 1)
        known, values = condition(window, config.history, seen)
        noise = torch.randn(window.shape, generator=self.generator, device=self.generator.device).to(window)
        attention = self.attention if self.record_attention else None
        if attention is not None:
            attention.clear()

        def velocity(z: Tensor, t: Tensor) -> Tensor:
            return self.model.velocity(
                z,
                t,
                t,
                returns,
                known,
                guidance=config.guidance_weight,
                gate_scale=self.gate_scale,
                attention_out=attention,
            )

        plans = integrate(velocity, noise, self.num_steps, known[..., None], values)
        plans = plan_space(values, seen, config, self.normalizers).decode(plans)
        if not decentralized:
            return plans
        own = torch.arange(agents, device=frames.device)
        plans = plans.reshape(rows, agents, config.frames, agents, size)
        return plans[:, own, :, own].permute(1, 2, 0, 3)  # indexing two axes moves the agent first

    def _decide(self, output: Tensor, action_mask: Tensor | None) -> Tensor:
        spec = self.spec
        if spec.action.is_discrete:
            if action_mask is not None:
                output = output.masked_fill(~action_mask.to(output.device), -torch.inf)
            return output.argmax(-1)
        assert self.normalizers.actions is not None
        return spec.action.clip(self.normalizers.actions.invert(output))
