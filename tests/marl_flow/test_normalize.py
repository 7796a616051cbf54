"""Normalisers: the recorded points of the published code, closed forms, bounded tables, serialisation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from marl_flow.interfaces import ActionSpec, TaskSpec, UserError
from marl_flow.normalize import KINDS, Normalizer, Normalizers


def samples(rows: int = 300, agents: int = 2, features: int = 3) -> np.ndarray:
    """Skewed, per-agent shifted values with a constant and a two-valued feature last, [M, N, D + 2]."""
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, size=(rows, agents, features)) + 3.0 * np.arange(agents)[:, None]
    two = rng.random((rows, agents, 1)) < 0.3
    return np.concatenate([values, two, np.full((rows, agents, 1), 2.5)], axis=-1).astype(np.float32)


@pytest.mark.parametrize("name", ["centralized", "decentralized_history", "per_agent_limits"])
def test_golden_points(golden_folder: Path, name: str) -> None:
    """Catches any slip in the published normalisers: clipping, the smallest value's level, pooling of agents."""
    arrays = np.load(golden_folder / f"windows_{name}.npz")
    kind, per_agent = ("limits", True) if name == "per_agent_limits" else ("cdf", False)

    def fitted(key: str) -> Normalizer:
        episodes = [arrays[n] for n in arrays.files if n.startswith("episodes/") and n.endswith(f"/{key}")]
        return Normalizer.fit(kind, np.concatenate(episodes), per_agent)

    close = {"rtol": 0.0, "atol": 1e-5}
    levels = fitted("observations").apply(torch.from_numpy(arrays["normalizer/raw"]))
    np.testing.assert_allclose(levels, arrays["normalizer/normalized"], **close)
    raw = fitted("actions").invert(torch.from_numpy(arrays["normalizer/normalized_actions"]))
    np.testing.assert_allclose(raw, arrays["normalizer/raw_actions"], **close)


def test_cdf_by_hand() -> None:
    """Catches levels that start at -1, steps instead of lines between values, and extrapolation."""
    values = np.array([1.0, 1.0, 3.0, 7.0], np.float32)[:, None, None]
    normalizer = Normalizer.fit("cdf", values)  # probabilities 0.5, 0.75, 1
    x = torch.tensor([-9.0, 1.0, 2.0, 3.0, 5.0, 7.0, 99.0])[:, None, None]
    level = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0])[:, None, None]
    torch.testing.assert_close(normalizer.apply(x), level)
    back = normalizer.invert(torch.tensor([-1.0, 0.0, 0.25, 0.75, 1.0, 2.0])[:, None, None])
    torch.testing.assert_close(back.flatten(), torch.tensor([1.0, 1.0, 2.0, 5.0, 7.0, 7.0]))


def test_limits_and_standard_by_hand() -> None:
    """Catches a range mapped to [0, 1], a clip while applying, none while inverting, and variance for deviation."""
    values = np.array([1.0, 1.0, 1.0, 5.0], np.float32)[:, None, None]
    x = torch.tensor([-1.0, 1.0, 2.0, 5.0])[:, None, None]
    limits, standard = Normalizer.fit("limits", values), Normalizer.fit("standard", values)
    torch.testing.assert_close(limits.apply(x).flatten(), torch.tensor([-2.0, -1.0, -0.5, 1.0]))
    torch.testing.assert_close(limits.invert(limits.apply(x)).flatten(), torch.tensor([1.0, 1.0, 2.0, 5.0]))
    torch.testing.assert_close(standard.apply(x).flatten(), (x.flatten() - 2.0) / 3**0.5)
    torch.testing.assert_close(standard.invert(standard.apply(x)), x)


@pytest.mark.parametrize("per_agent", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_inverse_undoes_apply(kind: str, per_agent: bool) -> None:
    """Catches an inverse of another feature or agent, or one that loses precision inside the range."""
    values = samples()
    normalizer = Normalizer.fit(kind, values, per_agent)
    x = torch.from_numpy(values[:40].reshape(4, 10, 2, 5))
    torch.testing.assert_close(normalizer.invert(normalizer.apply(x)), x, rtol=1e-5, atol=1e-5)
    if kind == "cdf":
        inner = x[..., :3].clamp(*np.quantile(values[..., :3], [0.3, 0.7]).tolist()) + 0.01
        inner = torch.cat([inner, x[..., 3:]], dim=-1)
        torch.testing.assert_close(normalizer.invert(normalizer.apply(inner)), inner, rtol=1e-4, atol=1e-4)


def test_agents_are_pooled_or_kept_apart() -> None:
    """Catches a per-agent flag that does nothing: agents here differ by a shift."""
    values = samples()
    x = torch.from_numpy(values)
    pooled, own = Normalizer.fit("standard", values).apply(x), Normalizer.fit("standard", values, True).apply(x)
    torch.testing.assert_close(own[..., :4].mean(0), torch.zeros(2, 4), rtol=0, atol=1e-5)
    assert (pooled[:, 0, :3].mean(0) < -0.5).all() and (pooled[:, 1, :3].mean(0) > 0.5).all()
    own_cdf = Normalizer.fit("cdf", values, True)
    for agent in range(2):
        alone = Normalizer.fit("cdf", values[:, agent : agent + 1])
        torch.testing.assert_close(own_cdf.apply(x)[:, agent], alone.apply(x[:, agent : agent + 1])[:, 0])


@pytest.mark.parametrize(("kind", "level"), [("cdf", [2.5, 9.0]), ("limits", [0.0, 6.5]), ("standard", [0.0, 6.5])])
def test_constant_features(kind: str, level: list[float]) -> None:
    """Catches a division by zero, and a shift of cdf's constant features, which pass unchanged in the release."""
    normalizer = Normalizer.fit(kind, samples())
    x = torch.from_numpy(samples()[:2])
    x[1, :, 4] = 9.0
    assert normalizer.apply(x)[:, 0, 4].tolist() == level
    if kind == "cdf":
        assert normalizer.invert(x)[:, 0, 4].tolist() == level


def test_large_tables_are_bounded_and_close() -> None:
    """Catches tables that grow with the data; knots that miss a tail; and a jump smeared over its neighbourhood."""
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=1_000_000)
    jump = np.where(rng.random(1_000_000) < 0.4, 0.5, rng.random(1_000_000))  # 40 % of the values are exactly 0.5
    values = np.stack([smooth, jump], axis=-1).astype(np.float32)[:, None]
    normalizer = Normalizer.fit("cdf", values)
    assert {tuple(table.shape) for table in normalizer.tables.values()} == {(2, 4096)}
    rank = np.stack([np.searchsorted(np.sort(v), v, side="right") for v in values[:, 0].T], axis=-1) / 1_000_000
    error = np.abs(normalizer.apply(torch.from_numpy(values))[:, 0].numpy() - (2 * rank - 1))
    assert error.max() < 2e-3  # twice 4 / 4096
    just_below = torch.tensor([[[0.0, 0.4999]]])
    assert abs(float(normalizer.apply(just_below)[0, 0, 1]) + 0.4) < 5e-3  # 30 % of the values lie below
    ends = torch.from_numpy(np.stack([values.min(0), values.max(0)]))
    torch.testing.assert_close(normalizer.invert(normalizer.apply(ends)), ends)


def test_rows_left_out_do_not_count() -> None:
    """Catches filling that widens the range."""
    values = np.array([1.0, 3.0, 100.0], np.float32)[:, None, None]
    for kind in KINDS:
        part = Normalizer.fit(kind, values, rows=np.array([True, True, False]))
        only = Normalizer.fit(kind, values[:2])
        for name in only.tables:
            torch.testing.assert_close(part.tables[name], only.tables[name])


@pytest.mark.parametrize("kind", KINDS)
def test_serialised_normalizers_are_the_same(kind: str) -> None:
    """Catches a table, a flag or the kind lost in a checkpoint."""
    normalizer = Normalizer.fit(kind, samples(), kind == "limits")
    again = Normalizer.from_state_dict(load(save(normalizer.state_dict())))
    assert (again.kind, again.per_agent) == (kind, kind == "limits")
    x = torch.from_numpy(samples()[:20])
    assert torch.equal(again.apply(x), normalizer.apply(x)) and torch.equal(again.invert(x), normalizer.invert(x))


def test_states_of_another_making_are_refused() -> None:
    """Catches a half-loaded normaliser."""
    state = Normalizer.fit("cdf", samples()).state_dict()
    with pytest.raises(UserError, match=r"found .*'center'"):
        Normalizer.from_state_dict(state | {"center": torch.zeros(3)})
    with pytest.raises(UserError, match="expected a normaliser's `kind`"):
        Normalizer.from_state_dict({"values": state["values"]})


def test_bad_input_is_refused() -> None:
    """Catches a misspelt kind, numbers that are not finite, and values of another width that would broadcast."""
    with pytest.raises(UserError, match="unknown normaliser 'gaussian'; known: cdf, limits, standard"):
        Normalizer.fit("gaussian", samples())
    broken = samples()
    broken[3, 1, 2] = np.nan
    with pytest.raises(UserError, match=r"finite values .* feature 2"):
        Normalizer.fit("limits", broken)
    for kind in KINDS:
        with pytest.raises(ValueError, match="fitted on"):
            Normalizer.fit(kind, samples()).apply(torch.zeros(2, 2, 1))


def store(*, discrete: bool = False, final: bool = False) -> SimpleNamespace:
    """Frames 0 2 3 | 7 11 of two episodes; without `final` the last of each is filling."""
    action = (
        ActionSpec(kind="discrete", size=4)
        if discrete
        else ActionSpec(kind="continuous", size=1, low=(-5.0,), high=(5.0,))
    )
    return SimpleNamespace(
        spec=TaskSpec(
            task_id="a/b", agents=("x", "y"), observation_size=1, action=action, max_steps=3, team_reward="mean"
        ),
        observations=np.array([0.0, 2.0, 3.0, 7.0, 11.0], np.float32)[:, None, None].repeat(2, axis=1),
        actions=np.zeros((3, 2), np.int64) if discrete else np.array([[[-1.0], [3.0]]] * 3, np.float32),
        offsets=np.array([0, 2, 3]),
        real_frames=None if final else np.array([True, True, False, True, False]),
        returns_to_go=lambda discount: np.array([[1.0, 3.0]] * 3, np.float32) * discount,
    )


def test_normalizers_of_a_store() -> None:
    """Catches fitting on rows that are not real, returns with another discount than training's, and swapped parts."""
    found = Normalizers.fit("limits", store(), discount=0.5)
    x = torch.tensor([[0.0], [7.0]])
    torch.testing.assert_close(found.observations.apply(x), torch.tensor([[-1.0], [1.0]]))
    torch.testing.assert_close(found.actions.apply(x), torch.tensor([[-0.5], [3.0]]))
    torch.testing.assert_close(found.returns.apply(x), torch.tensor([[-2.0], [12.0]]))  # mean 1, deviation 0.5
    assert Normalizers.fit("cdf", store(discrete=True), discount=0.5).actions is None


def test_changes_are_between_real_frames_of_one_episode() -> None:
    """Catches a step scale measured across episode ends (3 to 7), to filling (2 to 3, 7 to 11), or in raw units."""
    short = Normalizers.fit("limits", store(), discount=0.5).changes
    assert short.tables["center"].tolist() == pytest.approx([2 / 3.5]) and short.tables["scale"].tolist() == [1.0]
    whole = Normalizers.fit("limits", store(final=True), discount=0.5).changes
    assert whole.tables["center"].tolist() == pytest.approx([np.mean([2, 1, 4]) / 5.5])
    assert whole.tables["scale"].tolist() == pytest.approx([np.std([2, 1, 4]) / 5.5])


@pytest.mark.parametrize("discrete", [False, True])
def test_serialised_sets_are_the_same(discrete: bool) -> None:
    """Catches parts confused with each other in a checkpoint, and one that is missing but not missed."""
    found = Normalizers.fit("limits", store(discrete=discrete), discount=0.5).to("cpu")
    state = load(save(found.state_dict()))
    again = Normalizers.from_state_dict(state)
    for name in ("observations", "actions", "returns", "changes"):
        left, right = getattr(again, name), getattr(found, name)
        assert (left is None) == (right is None)
        if right is not None:
            assert torch.equal(left.tables["center"], right.tables["center"])
    with pytest.raises(UserError, match="expected normalisers of"):
        Normalizers.from_state_dict({key: value for key, value in state.items() if not key.startswith("returns")})
    with pytest.raises(UserError, match=r"found .*'rewards'"):
        Normalizers.from_state_dict(state | {"rewards/kind": torch.tensor(0)})
