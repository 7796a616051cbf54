"""The tables that results are compared with."""

from __future__ import annotations

import pytest

from marl_flow.benchmarks import suite
from marl_flow.config import override
from marl_flow.interfaces import UserError


def row(dataset: str, method: str, source: str) -> suite.PublishedRow:
    (found,) = [r for r in suite.published() if (r.dataset, r.method, r.source) == (dataset, method, source)]
    return found


def test_references_are_the_published_ones() -> None:
    """Catches swapped columns, and references invented for tasks that publish none."""
    assert dict(suite.references()) == {
        "mpe/simple_spread": suite.Reference(random=159.8, expert=516.8),
        "mpe/simple_tag": suite.Reference(random=-4.1, expert=185.6),
        "mpe/simple_world": suite.Reference(random=-6.8, expert=79.5),
    }


def test_published_scales_are_told_apart() -> None:
    """Catches reading CoFlow's raw columns as scores: normalised, CoFlow-C and MADiff-C average the same."""
    averages = suite.published_averages("mpe", "normalized")
    assert averages[("CoFlow-C", "coflow-page")] == pytest.approx(87.5, abs=0.05)
    assert averages[("MADiff-C", "madiff-paper")] == pytest.approx(87.6, abs=0.05)
    assert averages[("CoFlow-D", "coflow-page")] == pytest.approx(75.2, abs=0.05)
    assert averages[("BC", "madiff-paper")] == pytest.approx(16.6, abs=0.05)


def test_a_published_cell_converts_with_its_spread() -> None:
    """Catches a spread shifted like a mean: 10.4 raw is 10.4 / 357 of the range, not less the random return."""
    coflow = row("mpe/simple_spread/expert", "CoFlow-C", "coflow-page")
    assert coflow.scale == "raw" and coflow.on_scale("raw") == (586.2, 10.4)
    assert coflow.on_scale("normalized") == pytest.approx((119.44, 2.913), abs=0.005)
    omar = row("mpe/simple_spread/expert", "OMAR", "madiff-paper")
    assert omar.on_scale("raw") == pytest.approx((570.0, 9.28), abs=0.05)
    assert row("smac/3m/good", "BC", "coflow-page").on_scale("normalized") is None


def test_an_average_needs_every_dataset_of_the_suite() -> None:
    """Catches averaging methods over different datasets: CoFlow's SMAC columns lack 8m."""
    methods = {method for method, _ in suite.published_averages("smac", "raw")}
    assert "MADiff-C" in methods and "CoFlow-C" not in methods


def test_the_paper_has_sixty_configurations() -> None:
    """Catches rows lost or doubled while parsing: 30 datasets, each in both executions."""
    in_paper = [config for config in suite.all_paper_settings() if config.in_paper]
    assert len(in_paper) == len({(config.dataset, config.execution) for config in in_paper}) == 60
    assert len({config.dataset for config in in_paper}) == 30
    assert {config.dataset for config in suite.all_paper_settings()} <= set(suite.dataset_means())


def test_a_configuration_becomes_settings_of_coflow() -> None:
    """Catches renamed config fields, the off-by-one of the horizon, and an inverted flag."""
    flow_policy = pytest.importorskip("marl_flow.coflow.algorithm")
    paper = suite.paper_settings("smac/3m/poor", "decentralized")
    config = override(flow_policy.CoFlow.presets["paper"], paper.coflow_settings)
    assert (config.history, config.horizon, config.frames) == (20, 3, 24)
    assert (config.conditioning, config.returns_scale, config.updates) == ("decentralized", 10.0, 250_000)
    assert config.return_to_go_update and not config.inverse_per_agent and config.normalizer == "cdf"
    assert paper.target_rule == "constant:1*10"
    spread = suite.paper_settings("mpe/simple_spread/expert", "decentralized")
    assert spread.coflow_settings["inverse_per_agent"] == "True" and spread.normalizer == "limits"
    assert spread.target_rule == "constant:0.9*700"


def test_an_unknown_configuration_names_the_nearest() -> None:
    """Catches a bare KeyError for a mistyped dataset."""
    with pytest.raises(UserError, match="mpe/simple_spread/expert"):
        suite.paper_settings("mpe/simple_spred/expert", "centralized")


@pytest.mark.parametrize(
    ("parse", "cell"),
    [
        (suite._number, "nan"),
        (suite._number, "12a"),
        (suite._count, "-1"),
        (suite._count, "1.5"),
        (suite._flag, "true"),
        (suite._text, ""),
        (suite._one_of("raw", "normalized"), "Raw"),
    ],
)
def test_cells_are_parsed_strictly(parse: object, cell: str) -> None:
    """Catches a slip in a table passing as a number."""
    with pytest.raises(ValueError):
        parse(cell)


def test_tables_equal_the_design_sheets(shared) -> None:
    """Catches an edit of a copied table."""
    from importlib.resources import files

    for name in ("published_results", "configurations"):
        ours = (files("marl_flow.benchmarks") / "published" / f"{name}.csv").read_bytes()
        assert ours == (shared / "paper" / f"{name}.csv").read_bytes()


def test_the_real_games_data_have_their_published_rows() -> None:
    """Catches published rows and configurations that the real game's data lose by their task's name."""
    assert suite.published_name("smac-sc2/3m", "good") == suite.published_name("smac/3m", "good") == "smac/3m/good"
    assert suite.published_name("mpe/simple_tag", "expert") in suite.dataset_means()
