"""Acting with CoFlow: sample a plan after what is observed, read actions off its first steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from marl_flow.coflow.inputs import encode_observations, given_frames, plan_space, scale_returns
from marl_flow.coflow.model import CoFlowModel, Condition
from marl_flow.coflow.sampler import integrate
from marl_flow.interfaces import ActingConfig, TaskSpec, UserError
from marl_flow.normalize import Normalizers


class FlowPolicy:
    """Receding-horizon control: plan in k steps of sampling, act on the first m planned frames, plan again.

    Decision j of a plan (j = 0 to m - 1) is the action that leads from the frame observed now to the planned frame of
    the next step: the loop is closed on what is observed, so a drift from the plan is corrected, not repeated. With
    j = 0 the observed frame is the plan's own current frame, which stays fixed while sampling. Each plan draws its own
    noise: with another m, all plans but the first get other draws.

    Settable from outside, for coordination probes: `gate_scale` in [0, 1]; `record_attention`, which keeps each
    plan's attention weights in `attention`, a list over network passes and blocks of [heads, rows, N, N].
    """

    def __init__(self, model: CoFlowModel, spec: TaskSpec, normalizers: Normalizers, acting: ActingConfig) -> None:
        assert acting.num_sampling_steps is not None and acting.target_return is not None
        if not 1 <= acting.actions_per_plan <= model.config.horizon:
            raise UserError(
                f"actions-per-plan: expected 1 to {model.config.horizon}, the horizon this run plans, got "
                f"{acting.actions_per_plan}; choose fewer, or train with a longer horizon"
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
        self.recent_frames: Tensor | None = None  # [E, C + 1, N, O]
        self.current_plan: Tensor | None = None  # [E, F, N, O]
        self.decisions = 0  # made with the current plan
        self.returns = torch.full((num_envs, self.spec.num_agents), self.target_return, device=self.device)

    @torch.no_grad()
    def act(self, observations: Tensor, action_mask: Tensor | None, rewards: Tensor) -> Tensor:
        """Actions [E, N, A] or choices [E, N] for observations [E, N, O]."""
        history = self.config.history
        observations_here = observations.to(self.device, torch.float32)
        frame = encode_observations(observations_here, self.config, self.spec, self.normalizers)
        if self.recent_frames is None:  # before the start the first frame repeats, as in training windows
            self.recent_frames = frame[:, None].expand(-1, history + 1, -1, -1)
        else:
            self.recent_frames = torch.cat([self.recent_frames[:, 1:], frame[:, None]], dim=1)
            if self.config.updates_return(self.spec):
                self.returns = (self.returns - rewards.to(self.returns)) / self.config.discount
        if self.current_plan is None or self.decisions == self.acting.actions_per_plan:
            self.current_plan, self.decisions = self.plan(self.recent_frames), 0
        self.decisions += 1
        output = self.model.inverse(frame, self.current_plan[:, history + self.decisions])
        return self._actions(output, action_mask).to(observations.device)

    def plan(self, frames: Tensor) -> Tensor:
        """Window [E, F, N, O] planned after recent frames [E, C + 1, N, O].

        Decentralized: every agent plans the whole team from its own frames, and its own frames of that plan are kept.
        """
        config = self.config
        rows, _, agents, size = frames.shape
        window = functional.pad(frames, (0, 0, 0, 0, 0, config.horizon))
        returns = scale_returns(self.returns, config, self.normalizers)
        visible = torch.ones(rows, agents, dtype=torch.bool, device=frames.device)
        decentralized = self.acting.execution == "decentralized"
        if decentralized:  # row e * N + i: what agent i of episode e knows
            window = window.repeat_interleave(agents, dim=0)
            returns = returns.reshape(-1, 1).expand(-1, agents)  # its own rewards only
            visible = torch.eye(agents, dtype=torch.bool, device=frames.device).repeat(rows, 1)
        given_mask, given_values = given_frames(window, config.history, visible)
        condition = Condition(given_mask, returns)
        noise = torch.randn(window.shape, generator=self.generator, device=self.generator.device).to(window)
        attention = self.attention if self.record_attention else None
        if attention is not None:
            attention.clear()

        def velocity(z: Tensor, t: Tensor) -> Tensor:
            return self.model.velocity(
                z,
                t,
                t,
                condition,
                guidance=config.guidance_weight,
                gate_scale=self.gate_scale,
                attention_out=attention,
            )

        plans = integrate(velocity, noise, self.num_steps, given_mask[..., None], given_values)
        plans = plan_space(given_values, visible, config, self.normalizers).decode(plans)
        if not decentralized:
            return plans
        own = torch.arange(agents, device=frames.device)
        plans = plans.reshape(rows, agents, config.frames, agents, size)
        return plans[:, own, :, own].permute(1, 2, 0, 3)  # indexing two axes moves the agent first

    def _actions(self, output: Tensor, action_mask: Tensor | None) -> Tensor:
        """Actions [E, N, A] or choices [E, N] from the inverse dynamics' output [E, N, A]."""
        spec = self.spec
        if spec.action.is_discrete:
            if action_mask is not None:
                output = output.masked_fill(~action_mask.to(output.device), -torch.inf)
            return output.argmax(-1)
        assert self.normalizers.actions is not None
        return spec.action.clip(self.normalizers.actions.invert(output))
