"""Helpers: check the numbers on a page, and load the converged study.

A page is checked by the sentences that hold its numbers, which are written in the tests with the numbers computed. What
is left of the page must have no number but those in the texts `allowed`, which come from no file, and in NAMES.
"""

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from scipy import stats

ROOT = Path(__file__).parents[1]
CONVERGED = ROOT / "results" / "converged"
NAMES = r"ResNet-56|CIFAR-10+|cfg_10|H200|bf16|float32|AVX-512|L2|ViT 32/4|λ_1"


def prose(path: Path) -> str:
    """Return the text of a page without code and the addresses of links, with single spaces."""
    text = re.sub(r"^```.*?^```", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", " ", text)
    return " ".join(re.sub(r"\]\([^)]*\)", "]", text).split())


def check(path: Path, computed: list[str], allowed: list[str]) -> None:
    """Check that all of these texts are on the page, and that it has no other number, apart from those in NAMES."""
    text = prose(path)
    missing = [each for each in (*computed, *allowed) if each not in text]
    assert not missing, missing
    for each in sorted((*computed, *allowed), key=len, reverse=True):
        text = text.replace(each, " ")
    unchecked = re.findall(r"\S*\d\S*", re.sub(NAMES, "", text))
    assert not unchecked, unchecked


def minus(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


def mean_and_spread(values: pd.Series, digits: int) -> str:
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{minus(values.mean(), digits)}{spread}"


def interval(row: pd.Series, digits: int) -> str:
    return f"{minus(row['low'], digits)} to {minus(row['high'], digits)}"


@functools.cache
def converged_study() -> SimpleNamespace:
    """Return the runs, those at the best rates that reached their loss, the best rates and the report's tables."""
    runs, tuning = pd.read_csv(CONVERGED / "results.csv"), pd.read_csv(CONVERGED / "tuning.csv")
    rates = tuning[tuning["chosen"]].set_index("norm_type")["rate"]
    at_best = runs[runs["lr"] == runs["Norm"].map(rates)].sort_values("seed")
    late = at_best[at_best["reached_loss"] == False]  # noqa: E712
    chosen = at_best.drop(late.index)
    assert len(rates) == 8  # with five seeds and six rates, as the page says in words
    assert at_best.groupby("Norm").size().eq(5).all()
    assert tuning.groupby("norm_type").size().eq(6).all()
    measured = ["Trace", "hessian-element:trace", "hessian-filter:trace", "adaptive_sharpness_l2", "Class Similarity"]
    assert chosen[measured].notna().all(axis=None)
    tables = {path.stem: pd.read_csv(path) for path in (CONVERGED / "tables").glob("*.csv")}
    return SimpleNamespace(runs=runs, late=late, chosen=chosen, rates=rates, tables=tables)


RIVALS = ("ScaledWeightStandardization", "EvoNormBO")  # whose leads at equal rates were tested


def minus_batchnorm(runs: pd.DataFrame, norm: str, outcome: str = "Test Accuracy") -> pd.Series:
    """Return a norm's results minus BatchNorm's, by seed."""
    own, baseline = (runs[runs["Norm"] == name].set_index("seed")[outcome] for name in (norm, "BatchNorm"))
    return (own - baseline).dropna()


def lead_at_best_rates(study: SimpleNamespace, norm: str) -> pd.Series:
    """Return BatchNorm's accuracy minus another norm's at their best rates, by seed."""
    return -minus_batchnorm(study.chosen, norm)


def lead_at_equal_rates(study: SimpleNamespace, norm: str) -> pd.Series:
    """Return the same at rates of 0.02 and 0.04, as the mean of both, for seeds 1 to 4."""
    runs = study.runs[(study.runs["reached_loss"] == True) & (study.runs["seed"] > 0)]  # noqa: E712
    leads = [-minus_batchnorm(runs[runs["lr"] == rate], norm) for rate in (0.02, 0.04)]
    assert all(list(each.index) == [1, 2, 3, 4] for each in leads)
    return (leads[0] + leads[1]) / 2


def mean_and_interval(values: pd.Series, digits: int) -> str:
    """Return a mean with its 95 % t-interval."""
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    return f"{minus(values.mean(), digits)} ({minus(low, digits)} to {minus(high, digits)})".replace("−0.0)", "0.0)")


def smaller_lead(study: SimpleNamespace) -> tuple[str, str]:
    """Return the sentence on BatchNorm's lead over ScaledWeightStandardization, and its interval at the best rates."""
    equal, best = (mean_and_interval(lead(study, RIVALS[0]), 2) for lead in (lead_at_equal_rates, lead_at_best_rates))
    points, _, between = equal.partition(" ")
    return f"{points} points over {RIVALS[0]} {between} instead of {best.split()[0]}", best.partition("(")[2][:-1]
