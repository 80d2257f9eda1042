"""The primary analysis: its outcome, its measures, and the runs that it rests on. docs/report.md defines it."""

from typing import NamedTuple

import pandas as pd

from normstudy.report.tuning import at_comparable_rates, is_late

OUTCOME = "Test Accuracy"
MEASURES = (  # those that are defined alike for every norm
    *("margin_10", "cross_entropy", "output_entropy", "Class Similarity"),
    *("nc1", "nc2_equinorm", "nc2_equiangularity", "nc3", "nc4"),
    *("hessian-element:trace", "hessian-element:max_eigen"),
    *("adaptive_sharpness_l2", "adaptive_sharpness_linf", "pac_bayes_magnitude_sigma"),
)


class Included(NamedTuple):
    """The runs of the primary analysis and the others.

    reasons: {why runs are left out: their names}. other_rates: the runs at rates that were not chosen. tuned: the
    networks whose norms are at their best rates. edges: the settings whose best rate is at the edge of those tried.
    loss: the training loss at which all runs stopped, or None if they ended after a number of epochs.
    """

    runs: pd.DataFrame
    other_rates: pd.DataFrame
    reasons: dict[str, list[str]]
    tuned: list[str]
    edges: list[str]
    loss: str | None


def included_runs(table: pd.DataFrame) -> Included:
    """Return the runs that did not fail and reached their training loss.

    In a network of which rates were tuned, they are those at the best rates; the others keep all rates.
    """
    runs, other_rates, untuned, tuned, edges = at_comparable_rates(table)
    late = is_late(runs)
    reasons = {
        "failed": _names(runs[runs["has_failed"]]),
        "did not reach the training loss": _names(runs[late & ~runs["has_failed"]]),
        "had one learning rate where others were tuned": _names(untuned),
    }
    runs = runs[~runs["has_failed"] & ~late]
    losses = set(runs["stop_at_loss"].astype(str)) if "stop_at_loss" in runs else {""}
    loss = losses.pop() if len(losses) == 1 else ""
    return Included(runs, other_rates, reasons, tuned, edges, loss if loss not in ("", "nan", "None") else None)


def _names(runs: pd.DataFrame) -> list[str]:
    if "run" in runs and runs["run"].notna().all():
        return [str(name) for name in runs["run"]]
    return [f"{model} {label}" for model, label in zip(runs["Model"], runs["Label"], strict=True)]
