"""The return that a return-conditioned policy is to reach."""

from __future__ import annotations

import re
from pathlib import Path

from marl_flow import datasets
from marl_flow.algorithm import Algorithm
from marl_flow.benchmarks import suite
from marl_flow.checkpoint import Header
from marl_flow.datasets import catalog
from marl_flow.datasets.windows import return_quantile
from marl_flow.interfaces import Execution, UserError
from marl_flow.run_folder import stored_percentiles

FAR = 1e6
"""Times the largest return of the training data: targets beyond are refused."""
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"


def target_return(
    target: str, algorithm: Algorithm, header: Header, run_folder: Path, execution: Execution
) -> tuple[str, float]:
    """The rule as results record it, and the raw discounted return to reach from the start of an episode.

    quantile:Q of the returns of the training data's episodes; constant:A*B; raw:V; paper: the constant of the paper's
    configuration of this dataset and execution.
    """
    identity = catalog.parse(header.run.dataset_id)
    rule = target
    if target == "paper":
        rule = suite.paper_settings(suite.published_name(identity.task_id, identity.quality), execution).target_rule
    if match := re.fullmatch(rf"quantile:({NUMBER})", rule):
        return rule, _quantile(float(match[1]), algorithm, header, run_folder)
    if match := re.fullmatch(rf"constant:({NUMBER})\*({NUMBER})", rule):
        return rule, _possible(rule, float(match[1]) * float(match[2]), run_folder)
    if match := re.fullmatch(rf"raw:({NUMBER})", rule):
        return rule, _possible(rule, float(match[1]), run_folder)
    raise UserError(f"target: expected quantile:0.9, constant:0.9*700, raw:500 or paper, got {target!r}")


def _possible(rule: str, value: float, run_folder: Path) -> float:
    """The value; a UserError where it is so far from every return in the data that networks only overflow on it."""
    percentiles = stored_percentiles(run_folder) or [0.0]
    largest = max(1.0, *map(abs, percentiles))
    if not abs(value) <= FAR * largest:
        seen = f"; those of the training data are from {percentiles[0]:.1f} to {percentiles[-1]:.1f}"
        raise UserError(
            f"target: {rule} is no return that this run could be asked for{seen if len(percentiles) > 1 else ''}; name "
            "one nearer to those, or quantile:0.9"
        )
    return value


def _quantile(q: float, algorithm: Algorithm, header: Header, run_folder: Path) -> float:
    """The quantile as the run folder keeps it, which is that of the dataset; else of the dataset itself."""
    if not 0.0 <= q <= 1.0:
        raise UserError(f"expected a quantile from 0 to 1, got {q}")
    percentiles = stored_percentiles(run_folder)
    if percentiles is not None and round(100 * q) / 100 == q:
        return percentiles[round(100 * q)]
    name, folder = header.run.dataset_id, catalog.folder_of(header.run.dataset_id)
    if not folder.exists():
        kept = (
            "its run folder does not keep the returns of its data"
            if percentiles is None
            else "its run folder keeps the returns of its data in whole per cent only"
        )
        raise UserError(
            f"the quantile {q:g} of the training data's returns: expected the dataset {name} in {folder}, found "
            f"nothing, and {kept}; get the dataset, or name a return as a number, such as raw:500"
        )
    store = datasets.load(name)
    if store.digest != header.run.dataset_digest:
        raise UserError(
            f"the run was trained on {name} with digest {header.run.dataset_digest[:16]}, found "
            f"{(store.digest or '')[:16]} in {folder}; rebuild the dataset as it was, or name a return as a number, "
            "such as raw:500"
        )
    return return_quantile(store, type(algorithm).window(algorithm.config).discount, q)
