"""The state of a particle task computed from the team's observations, so that stored transitions can be replayed.

Every number of an observation is a difference of two rows of `observation_rows`, and together the three agents observe
every velocity and position, most of them several times. The state is the one whose observations come closest to those
given (least squares over all agents); where the agents contradict each other, no state's observations equal them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marl_flow.envs.mpe.physics import ParticleState
from marl_flow.envs.mpe.scenarios import NUM_CONTROLLED, Scenario, observation_fields


def state_from_observations(scenario: Scenario, observations: Tensor, steps: Tensor) -> ParticleState:
    """State of E episodes whose team observes [E, N, O] after steps [E] of each; computed in float64."""
    agents, entities = scenario.num_agents, scenario.num_entities
    matrix = observation_matrix(scenario).to(observations.device)  # [N O, 2 A + 2 M]
    observed = observations.double().flatten(1).t()  # [N O, E]
    solution = torch.linalg.pinv(matrix) @ observed
    velocities, positions = solution[: 2 * agents], solution[2 * agents :]
    return ParticleState(
        positions=positions.view(2, entities, -1).permute(2, 1, 0).contiguous(),
        velocities=velocities.view(2, agents, -1).permute(2, 1, 0).contiguous(),
        steps=steps,
    )


def observation_matrix(scenario: Scenario) -> Tensor:
    """The linear map from the state to the team's observations, [N O, 2 A + 2 M] float64: the columns are the first
    rows of `observation_rows`. What is not linear in the state (zeros and in-forest flags) has a row of zeros."""
    agents = range(NUM_CONTROLLED)
    fields = torch.tensor([pair for observer in agents for pair in observation_fields(scenario, observer)])
    size = 2 * (scenario.num_agents + scenario.num_entities)
    plus, minus = torch.eye(int(fields.max()) + 1, dtype=torch.float64)[:, :size][fields].unbind(1)
    return plus - minus


def opponent_entries(scenario: Scenario) -> Tensor:
    """Which entries of the team's observations depend on the prey, [N, O] bool."""
    agents, entities = scenario.num_agents, scenario.num_entities
    prey = torch.tensor(scenario.indices("prey"), dtype=torch.int64)
    starts = torch.tensor([0, agents, 2 * agents, 2 * agents + entities])  # x and y of velocities, then of positions
    columns = (starts[:, None] + prey).flatten()
    return observation_matrix(scenario)[:, columns].ne(0.0).any(1).view(NUM_CONTROLLED, -1)
