"""The state of a particle task read back from what the team sees, so that stored transitions can be played again.

Every number of an observation is a difference of two rows of `observation_rows`, and together the three agents see
every velocity and place, most of them several times. The state is the one whose observations come closest to those
given (least squares over everybody's views); where the views contradict each other, no state's observations equal them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from marl_flow.envs.mpe.physics import ParticleState
from marl_flow.envs.mpe.scenarios import NUM_CONTROLLED, Scenario, observation_fields


def state_of(kind: Scenario, observations: Tensor, steps: Tensor) -> ParticleState:
    """State of E episodes whose team sees observations [E, N, O] after steps [E] of each; computed in float64."""
    agents, entities = kind.num_agents, kind.num_entities
    views = view_matrix(kind).to(observations.device)  # [N O, 2 A + 2 M]
    seen = observations.double().flatten(1).t()  # [N O, E]
    solution = torch.linalg.pinv(views) @ seen
    velocities, positions = solution[: 2 * agents], solution[2 * agents :]
    return ParticleState(
        positions=positions.view(2, entities, -1).permute(2, 1, 0).contiguous(),
        velocities=velocities.view(2, agents, -1).permute(2, 1, 0).contiguous(),
        steps=steps,
    )


def view_matrix(kind: Scenario) -> Tensor:
    """How all that the team sees follows from the state, [N O, 2 A + 2 M] float64: the columns are the first rows of
    `observation_rows`. What does not follow linearly (zeros and in-forest flags) has a row of zeros."""
    fields = torch.tensor([pair for observer in range(NUM_CONTROLLED) for pair in observation_fields(kind, observer)])
    size = 2 * (kind.num_agents + kind.num_entities)
    plus, minus = torch.eye(int(fields.max()) + 1, dtype=torch.float64)[:, :size][fields].unbind(1)
    return plus - minus


def opponent_entries(kind: Scenario) -> Tensor:
    """Which entries of the team's observations tell of the prey, [N, O] bool."""
    agents, entities = kind.num_agents, kind.num_entities
    prey = torch.tensor(kind.indices("prey"), dtype=torch.int64)
    starts = torch.tensor([0, agents, 2 * agents, 2 * agents + entities])  # x and y of velocities, then of positions
    columns = (starts[:, None] + prey).flatten()
    return view_matrix(kind)[:, columns].ne(0.0).any(1).view(NUM_CONTROLLED, -1)
