"""A method of your own: behaviour cloning that imitates good episodes more than bad ones.

marl-flow train mpe/simple_spread/medium-replay own_method:WeightedCloning      # from the folder of this file
python examples/own_method.py                                                   # the same, compared with BC
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import tyro
from torch import Tensor

import marl_flow
from marl_flow.algorithm import Algorithm
from marl_flow.baselines.networks import Perceptron
from marl_flow.checks import check_algorithm
from marl_flow.interfaces import Batch, Metrics, TaskSpec
from marl_flow.normalize import Normalizers
from marl_flow.policies import from_unit_box, to_unit_box


# method: begin
@dataclass(frozen=True, kw_only=True)
class WeightedCloningConfig:
    temperature: float = 0.5
    """Weight of a window: exp(return-to-go in standard deviations / temperature)."""
    learning_rate: float = 1e-3
    updates: int = 1000
    batch_size: int = 1024


class WeightedCloning(Algorithm):
    name = "weighted_cloning"
    presets: ClassVar = {"default": WeightedCloningConfig()}
    action_kinds = ("continuous",)

    def __init__(
        self, config: WeightedCloningConfig, spec: TaskSpec, normalizers: Normalizers, device: torch.device
    ) -> None:
        super().__init__(config, spec, normalizers, device)
        self.network = Perceptron(spec.observation_size, (256, 256), spec.action.size).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)

    def predict(self, observations: Tensor) -> Tensor:
        """Actions [..., N, A] in [-1, 1] for raw observations [..., N, O]."""
        return self.network(self.normalizers.observations.apply(observations)).tanh()

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        errors = self.predict(batch.observations[:, 0]) - to_unit_box(self.spec.action, batch.actions[:, 0])
        level = self.normalizers.returns.apply(batch.returns_to_go[..., None])[..., 0]  # [B, N]
        weights = (level / self.config.temperature).clamp(max=5.0).exp()
        loss = (weights * errors.square().mean(-1)).mean() / weights.mean()
        return loss, {"loss": loss.detach()}

    def decide(self, observations: Tensor, action_mask: Tensor | None) -> Tensor:
        return from_unit_box(self.spec.action, self.predict(observations))


# method: end


def main(
    dataset: str = "mpe/simple_spread/medium-replay",
    updates: int = 1000,
    episodes: int = 100,
    out: Path = Path("runs/own_method"),
) -> None:
    """Checks the method's contract, then trains and evaluates it and BC on the same data.

    Args:
        dataset: Dataset id; a native one that is absent is built first.
        updates: Gradient steps of each method.
        episodes: Evaluation episodes, the same for both.
        out: Folder of the runs.
    """
    check_algorithm(WeightedCloning)
    for method in ("own_method:WeightedCloning", "bc"):
        run = marl_flow.train(dataset, method, out=out / method.replace(":", "."), updates=updates)
        for row in marl_flow.evaluate(run, episodes=episodes):
            print(f"{method}: return {row.team_return_mean:.1f}")


if __name__ == "__main__":
    tyro.cli(main)
