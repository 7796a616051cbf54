"""Native datasets are recipes: shipped behaviour policies and a seed, rolled out in the suite's own environment.

The policies are snapshots of small networks (behaviour.py); `random` has none: its actions are uniform in the bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from marl_flow import seeding
from marl_flow.datasets import catalog
from marl_flow.datasets.behaviour import behaviour_file, read_stack
from marl_flow.datasets.collect import collect
from marl_flow.datasets.store import EpisodeStore, open_store
from marl_flow.datasets.writer import StoreWriter
from marl_flow.interfaces import Policy, UserError, VectorEnv
from marl_flow.policies import UniformPolicy

MakeEnv = Callable[[str, int, torch.device], VectorEnv]
"""Task id, number of parallel episodes, device."""

Progress = Callable[[int, int], None]
"""Called with (episodes done, episodes in all)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one dataset is made: how many episodes, from which root seed, against whom, how many of them side by side."""

    episodes: int
    seed: int
    opponent: str | None = None
    batch_episodes: int = 1000


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "native/mpe/simple_spread/expert-v1": Recipe(episodes=10_000, seed=1),
        "native/mpe/simple_spread/medium-v1": Recipe(episodes=10_000, seed=2),
        "native/mpe/simple_spread/medium-replay-v1": Recipe(episodes=3_900, seed=3),
        "native/mpe/simple_spread/random-v1": Recipe(episodes=10_000, seed=4),
        "native/mpe/simple_tag/expert-v1": Recipe(episodes=10_000, seed=5, opponent="native-v1"),
        "native/mpe/simple_tag/medium-v1": Recipe(episodes=10_000, seed=6, opponent="native-v1"),
        "native/mpe/simple_tag/medium-replay-v1": Recipe(episodes=2_500, seed=7, opponent="native-v1"),
        "native/mpe/simple_tag/random-v1": Recipe(episodes=10_000, seed=8, opponent="native-v1"),
        "native/mpe/simple_world/expert-v1": Recipe(episodes=10_000, seed=9, opponent="native-v1"),
        "native/mpe/simple_world/medium-v1": Recipe(episodes=10_000, seed=10, opponent="native-v1"),
        "native/mpe/simple_world/medium-replay-v1": Recipe(episodes=3_200, seed=11, opponent="native-v1"),
        "native/mpe/simple_world/random-v1": Recipe(episodes=10_000, seed=12, opponent="native-v1"),
        "native/smac/3m/good-v1": Recipe(episodes=4_000, seed=31),
        "native/smac/3m/medium-v1": Recipe(episodes=4_000, seed=32),
        "native/smac/3m/poor-v1": Recipe(episodes=4_000, seed=33),
        "native/smac/8m/good-v1": Recipe(episodes=2_000, seed=34),
        "native/smac/8m/medium-v1": Recipe(episodes=2_000, seed=35),
        "native/smac/8m/poor-v1": Recipe(episodes=2_000, seed=36),
        "native/smac/2s3z/good-v1": Recipe(episodes=2_000, seed=37),
        "native/smac/2s3z/medium-v1": Recipe(episodes=2_000, seed=38),
        "native/smac/2s3z/poor-v1": Recipe(episodes=2_000, seed=39),
        "native/smac/5m_vs_6m/good-v1": Recipe(episodes=4_000, seed=40),
        "native/smac/5m_vs_6m/medium-v1": Recipe(episodes=4_000, seed=41),
        "native/smac/5m_vs_6m/poor-v1": Recipe(episodes=4_000, seed=42),
        "native/mamujoco/2ant/good-v1": Recipe(episodes=275, seed=51, batch_episodes=50),
        "native/mamujoco/2ant/medium-v1": Recipe(episodes=300, seed=52, batch_episodes=50),
        "native/mamujoco/2ant/poor-v1": Recipe(episodes=310, seed=53, batch_episodes=50),
        "native/mamujoco/4ant/good-v1": Recipe(episodes=275, seed=54, batch_episodes=50),
        "native/mamujoco/4ant/medium-v1": Recipe(episodes=300, seed=55, batch_episodes=50),
        "native/mamujoco/4ant/poor-v1": Recipe(episodes=250, seed=56, batch_episodes=50),
        "native/mamujoco/2halfcheetah/good-v1": Recipe(episodes=250, seed=57, batch_episodes=50),
        "native/mamujoco/2halfcheetah/medium-v1": Recipe(episodes=250, seed=58, batch_episodes=50),
        "native/mamujoco/2halfcheetah/poor-v1": Recipe(episodes=250, seed=59, batch_episodes=50),
    }
)


def build(
    dataset_id: str,
    folder: Path,
    make_env: MakeEnv,
    episodes: int | None = None,
    progress: Progress | None = None,
    policy_file: Path | None = None,
    seeds: int = 1,
) -> EpisodeStore:
    """Builds a native dataset in a new folder and opens it; `episodes` None means the recipe's number.

    It holds `episodes` of each of `seeds` seeds, one after the other: other initial states and noise, the same
    behaviour policies (the published data have other policies per seed too). The first seed's are those of `seeds` = 1.

    The same bytes on the same machine and library versions, whatever the number of threads; the same statistics
    anywhere. A shorter dataset is the beginning of a longer one where a single snapshot plays; several share whatever
    number of episodes there is. `policy_file` None means the one shipped with the package.
    """
    entry = catalog.find(dataset_id)
    name = entry.dataset_id
    recipe = RECIPES.get(str(name))
    if recipe is None:
        raise UserError(f"{name} has no recipe, so it cannot be built here; source: {entry.source}")
    episodes = recipe.episodes if episodes is None else episodes
    if episodes < 1 or seeds < 1:
        raise UserError(f"expected at least one episode and one seed to build {name}, got {episodes} and {seeds}")
    path = behaviour_file(name.task_id) if policy_file is None else policy_file
    provenance = {
        "made_by": "marl_flow.datasets.native.build",
        "seed": recipe.seed,
        "strata": [{"seed": index, "episodes": episodes} for index in range(seeds)],
        "recipe_episodes": recipe.episodes,
        "batch_episodes": recipe.batch_episodes,
    }
    with seeding.one_thread():
        env = make_env(name.task_id, recipe.batch_episodes, torch.device("cpu"))
        if name.quality == "random":
            uniform = UniformPolicy(env.spec.action)
            policy_for: Callable[[range], Policy] = lambda _: uniform  # noqa: E731
            provenance |= {"noise": "uniform in the bounds"}
        else:
            stack = read_stack(path, name.quality)
            provenance |= {"policy_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "snapshots": stack.size}
            provenance |= {"noise": stack.noise}
            policy_for = lambda batch: stack.policy(stack.snapshots_of(batch, episodes), env.spec.action)  # noqa: E731
        with StoreWriter(folder, spec=env.spec, dataset_id=str(name), provenance=provenance) as writer:
            for index in range(seeds):
                root = recipe.seed if index == 0 else seeding.derive_seed(recipe.seed, "seed", index)
                generator = seeding.generator(root, "behaviour", str(name))
                for piece in collect(
                    env, policy_for, num_episodes=episodes, seed=root, generator=generator, dataset_id=str(name)
                ):
                    writer.append(piece)
                    if progress is not None:
                        progress(writer.num_episodes, episodes * seeds)
    return open_store(folder)


def unlike_recipe(store: EpisodeStore) -> str:
    """How a native dataset differs from what its recipe makes, such as "60 of 10,000 episodes"; else empty."""
    recipe = RECIPES.get(store.dataset_id)
    if recipe is None:
        return ""
    parts, seeds, episodes = [], len(store.provenance.get("strata", [None])), store.num_episodes
    if seeds > 1:
        parts.append(f"{episodes:,} episodes of {seeds} seeds, the recipe has {recipe.episodes:,} of one")
    elif episodes > recipe.episodes:
        parts.append(f"{episodes:,} episodes, the recipe has {recipe.episodes:,}")
    elif episodes < recipe.episodes:
        parts.append(f"{episodes:,} of {recipe.episodes:,} episodes")
    if store.spec.opponent != recipe.opponent:
        parts.append(f"against {store.spec.opponent}, the recipe's is against {recipe.opponent}")
    return "; ".join(parts)
