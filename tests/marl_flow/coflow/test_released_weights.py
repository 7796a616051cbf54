"""The `release` preset against vectors recorded from the published code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from marl_flow.coflow import loss, released_weights
from marl_flow.coflow.algorithm import CoFlow
from marl_flow.coflow.inputs import encode_actions, given_frames
from marl_flow.coflow.model import CoFlowModel, Condition
from marl_flow.coflow.sampler import integrate
from marl_flow.interfaces import ActionSpec, TaskSpec
from marl_flow.normalize import Normalizer, Normalizers

FILES = ("coflow_mpe_centralized", "coflow_smac_history", "coflow_independent_inverse")


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """1e-4 relative to the largest entry, float32."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@dataclass
class Golden:
    arrays: dict[str, torch.Tensor]
    algorithm: CoFlow

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.arrays[name]

    @property
    def model(self) -> CoFlowModel:
        return self.algorithm.model

    def given(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The centralized mask for as many rows as were recorded, and the recorded values of given frames."""
        values = self[name]
        visible = torch.ones(values.shape[0], values.shape[2], dtype=torch.bool)
        given_mask, _ = given_frames(values, self.algorithm.config.history, visible)
        return given_mask, values


@pytest.fixture(scope="module", params=FILES)
def golden(request: pytest.FixtureRequest, recorded: Callable[[str], dict[str, np.ndarray]]) -> Golden:
    archive = recorded(request.param)
    meta = json.loads(str(archive["meta"]))
    arrays = {key: torch.from_numpy(archive[key]) for key in archive if key != "meta"}
    discrete = meta["discrete"]
    size = meta["num_actions"] if discrete else meta["action_dim"]
    bounds = () if discrete else (1.0,) * size
    spec = TaskSpec(
        task_id="golden/task",
        agents=tuple(f"agent_{i}" for i in range(meta["n_agents"])),
        observation_size=meta["obs_dim"],
        action=ActionSpec(
            kind="discrete" if discrete else "continuous", size=size, low=tuple(-x for x in bounds), high=bounds
        ),
        max_steps=25,
        team_reward="mean",
    )
    config = dataclasses.replace(
        CoFlow.presets["release"],
        width=meta["dim"],
        embedding_width=meta["dim"],
        unet_multipliers=tuple(meta["dim_mults"]),
        agent_ids=False,  # the recorded frames have them already
        inverse_hidden=meta["hidden_dim"],
        inverse_per_agent=not meta["shared_inverse_dynamics"],
        history=meta["history_horizon"],
        horizon=meta["horizon"] - 1,
        time_bins=meta["time_bins"],
        guidance_weight=meta["guidance_weight"],
    )
    # The recorded trajectories are already normalised: an identity normaliser, limits of exactly [-1, 1].
    unit = torch.tensor([-1.0, 1.0])[:, None, None]
    normalizers = Normalizers(
        observations=Normalizer.fit("limits", unit.expand(2, 1, spec.observation_size).numpy()),
        actions=None if discrete else Normalizer.fit("limits", unit.expand(2, 1, size).numpy()),
        returns=Normalizer.fit("limits", unit.numpy()),
        changes=Normalizer.fit("standard", unit.expand(2, 1, spec.observation_size).numpy()),
    )
    algorithm = CoFlow.build(
        config, spec, normalizers, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0)
    )
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    released_weights.load(algorithm.model, weights)
    return Golden(arrays, algorithm)


def test_network(golden: Golden) -> None:
    """Catches any slip in the U-Net, its embeddings, the import of weights or the guidance formula."""
    z, returns = golden["net/z"], golden["net/returns"][:, 0]
    # any time inside a bin gives its label
    time = (golden["net/time_bin"].float() + 0.5) / golden.algorithm.config.time_bins
    given_mask = torch.zeros(z.shape[:3], dtype=torch.bool)
    keep = torch.ones_like(returns, dtype=torch.bool)
    with torch.no_grad():
        conditional = golden.model.network(z, time, returns, given_mask)
        unconditional = golden.model.network(z, time, returns, given_mask, keep_returns=~keep)
        guided = golden.model.velocity(z, time, time, Condition(given_mask, returns), guidance=1.2)
    close(conditional, golden["net/velocity_conditional"])
    close(unconditional, golden["net/velocity_unconditional"])
    close(guided, golden["net/velocity_guided"])


def test_attention(golden: Golden) -> None:
    """Catches a wrong head layout, a wrong softmax axis, or a gate scale that scales something else."""
    block = golden.model.network.backbone.attention[0]
    features, embedding = golden["cva/features"], golden["cva/embedding"]
    weights: list[torch.Tensor] = []
    with torch.no_grad():
        close(block(features, embedding, 1.0, weights), golden["cva/output"])
        close(block(features, embedding, 0.0), golden["cva/output_gate_scale_0"])
        close(block(features, embedding, 0.5), golden["cva/output_gate_scale_half"])
    close(weights[0], golden["cva/attention"])


def test_masks(golden: Golden) -> None:
    """Catches a hidden team-mate whose current frame is given, or whose history is not."""
    mask = golden["mask/centralized"]
    frames, agents, size = mask.shape
    data = torch.randn(1, frames, agents, size)
    everybody = torch.ones(1, agents, dtype=torch.bool)
    one = torch.arange(agents)[None] == 1
    history = golden.algorithm.config.history
    assert torch.equal(given_frames(data, history, everybody)[0][0, ..., None].expand_as(mask), mask)
    given_mask, values = given_frames(data, history, one)
    assert torch.equal(given_mask[0, ..., None].expand_as(mask), golden["mask/decentralized_agent1"])
    assert torch.equal(values[0, : history + 1, 1], data[0, : history + 1, 1])
    assert values[0, :, [0, 2]].abs().max() == 0


def test_sampling(golden: Golden) -> None:
    """Catches wrong time labels, step sizes, or a condition imposed on one side of the step only."""
    given_mask, given_values = golden.given("sample/condition")
    condition = Condition(given_mask, golden["sample/returns"][:, 0])

    def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return golden.model.velocity(z, t, t, condition, guidance=1.2)

    with torch.no_grad():
        for steps in (1, 2, 3, 5):
            plan = integrate(velocity, golden["sample/noise"], steps, given_mask[..., None], given_values)
            close(plan, golden[f"sample/steps_{steps}"])
            if steps == 1:
                now = golden.algorithm.config.history
                close(golden.model.inverse(plan[:, now], plan[:, now + 1]), golden["sample/action_steps_1"])


def test_loss_and_gradients(golden: Golden) -> None:
    """Catches a missing stop-gradient, t and r swapped, a masked loss, or guidance outside the loss."""
    given_mask, given_values = golden.given("loss/condition")
    data, noise, t, r = (golden[f"loss/{name}"] for name in ("trajectory", "noise", "t", "r"))
    sample = loss.FlowSample.on_path(
        data,
        noise,
        t,
        r,
        condition=Condition(given_mask, golden["loss/returns"][:, 0]),
        given_values=given_values,
        real=torch.ones(data.shape[:2], dtype=torch.bool),
    )
    model = golden.model

    def u(z: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return model.velocity(z, time, label, sample.condition, guidance=1.2)

    with torch.no_grad():
        close(loss.predicted_velocity("finite_difference", u, sample), golden["loss/V"])
    model.zero_grad()
    total = loss.flow_loss(model, sample, golden.algorithm.config)
    total.backward()
    close(total.detach(), golden["loss/velocity_loss"])
    close(model.network.backbone.output.weight.grad, golden["loss/grad_final_conv_weight"])
    close(model.network.backbone.attention[0].gate.grad, golden["loss/grad_gate_bottleneck"])


def test_inverse_dynamics_loss(golden: Golden) -> None:
    """Catches frames paired with the wrong action, and the release's sum over per-agent heads turned into a mean."""
    frames, recorded = golden["loss/trajectory"], golden["loss/actions"]
    algorithm, current = golden.algorithm, golden.algorithm.config.history
    actions = recorded[:, current:-1, :, 0] if algorithm.spec.action.is_discrete else recorded[:, current:-1]
    actions = encode_actions(actions, algorithm.spec, algorithm.normalizers)
    valid = torch.ones(actions.shape[:2], dtype=torch.bool)
    planned = golden["loss/loss_mask"][:, current + 1 :]
    assert planned.all() and not golden["loss/loss_mask"][:, : current + 1].any()
    with torch.no_grad():
        inverse = loss.inverse_loss(golden.model, frames, actions, None, valid, algorithm.config)
    close(inverse, golden["loss/inverse_dynamics_loss"])
