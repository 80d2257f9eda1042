"""The trends of another table, set beside the runs."""

import numpy as np
import pandas as pd
from scipy import stats

from normstudy.report.correlation import correlate_measures
from normstudy.report.page import format_interval, format_number, format_p_value, table_html
from normstudy.report.published_claims import verdict
from normstudy.report.tables import MEASURES, MIN_POINTS, OUTCOMES, average_over_seeds, largest_cells, setting_keys

# Another table


SHARED = ["Model", "Dataset", "Batch Size", "Mom & WD", "SkipInit"]


def compare_tables(table, other, same_data=(), **options):
    """(orders, signs): frames that set the trends of another table beside these runs, for the cells and norms that
    both have; see _orders and _signs.

    same_data: names of data sets that are taken for one. options: resamples and seed of the intervals.
    """
    ours, theirs = (_comparable(each, same_data) for each in (table, other))
    ours = largest_cells(ours, SHARED, "Label")
    keys = [setting_keys(each, SHARED) for each in (ours, theirs)]
    kept = []
    for cell in sorted(set(keys[0]) & set(keys[1])):
        labels = set(ours[keys[0] == cell]["Label"]) & set(theirs[keys[1] == cell]["Label"])
        if len(labels) > 1:
            kept.append((cell, labels))
    if not kept:
        return tuple(pd.DataFrame() for _ in range(2))
    both = {(cell, label) for cell, labels in kept for label in labels}
    own, others = (
        each[[pair in both for pair in zip(key, each["Label"], strict=True)]]
        for each, key in zip((ours, theirs), keys, strict=True)
    )
    return _orders(ours, theirs, keys, kept), _signs(own, others, options)


def _comparable(table, same_data):
    usable = table[~table["has_failed"]].copy()
    if same_data:
        usable["Dataset"] = usable["Dataset"].where(~usable["Dataset"].isin(same_data), same_data[-1])
    for name in ("Mom & WD", "SkipInit"):
        usable[name] = usable[name].astype(str).str.lower()
    usable.loc[usable["Model"] != "resnet-56", "SkipInit"] = "false"  # which no other network has
    usable["Batch Size"] = usable["Batch Size"].astype(float)
    return usable


def _orders(ours, theirs, keys, kept):
    """Each cell's norms by mean test accuracy in both tables, best first, with Kendall's τ and its p."""
    rows = []
    for cell, labels in kept:
        means = [
            each[(key == cell) & each["Label"].isin(labels)].groupby("Label")["Test Accuracy"].mean()
            for each, key in ((ours, keys[0]), (theirs, keys[1]))
        ]
        n = len(labels)
        tau, p = stats.kendalltau(means[0], means[1].reindex(means[0].index)) if n >= MIN_POINTS else (np.nan, np.nan)
        orders = [", ".join(mean.sort_values(ascending=False).index) for mean in means]
        rows.append([cell.replace("|", ", "), *orders, n, float(tau), float(p), verdict(tau, p, n)])
    return pd.DataFrame(rows, columns=["cell", "order here", "order there", "norms", "tau", "p", "verdict"])


def _signs(ours, theirs, options):
    """Spearman's ρ of each measure and outcome over the settings of these cells, in both tables, and whether its sign
    agrees."""
    frames = []
    for each in map(average_over_seeds, (ours, theirs)):
        measures = [name for name in MEASURES if each[name].notna().sum() >= MIN_POINTS]
        frame = correlate_measures(each, measures, **options)
        frame = frame[(frame["coefficient"] == "Spearman") & (frame["way"] == "within cells")]
        frames.append({(row["measure"], row["outcome"]): row for row in frame.to_dict("records")})
    rows = []
    for key, own in frames[0].items():
        other = frames[1].get(key)
        if other is not None and np.isfinite(own["value"]) and np.isfinite(other["value"]):
            signs = [0 if row["low"] <= 0 <= row["high"] else np.sign(row["value"]) for row in (own, other)]
            said = "agrees" if signs[0] == signs[1] != 0 else "does not" if signs[0] * signs[1] < 0 else ""
            numbers = [row[name] for row in (own, other) for name in ("value", "low", "high", "n")]
            rows.append([*key, *numbers, said or "cannot be said: an interval holds zero"])
    columns = [f"{name} {where}" for where in ("here", "there") for name in ("rho", "low", "high", "n")]
    return pd.DataFrame(rows, columns=["measure", "outcome", *columns, "verdict"])


def comparison_html(orders, signs):
    """Both for the page."""
    if orders.empty:
        return "<p>No cell has two norms in both tables.</p>"
    columns = ["cell (network, data, batch, momentum & decay, SkipInit)", "order here", "order there", "norms"]
    columns += ["Kendall's τ", "p", "verdict"]
    rows = [
        [*line[:4], format_number(row["tau"]), format_p_value(row["p"]), row["verdict"]]
        for row in orders.to_dict("records")
        for line in [list(row.values())]
    ]
    shown = table_html([(name, False) for name in columns], rows)
    page = f"<p>Order of norms by mean test accuracy, best first:</p>{shown}"
    if signs.empty:
        return f"{page}<p>No measure is there for enough runs of both tables.</p>"
    rows = []
    for row in signs.to_dict("records"):
        cells = []
        for where in ("here", "there"):
            rho, low, high, n = (row[f"{name} {where}"] for name in ("rho", "low", "high", "n"))
            cells.append(f"{rho:.2f} ({format_interval(low, high, 2)}; n = {n})")
        rows.append([MEASURES[row["measure"]], OUTCOMES[row["outcome"]], *cells, row["verdict"]])
    columns = ["measure", "outcome", "ρ here (95 % interval; n)", "ρ there", "sign"]
    said = "Spearman's ρ over the settings of these cells; the intervals are not adjusted for their number:"
    return f"{page}<p>{said}</p>{table_html([(name, False) for name in columns], rows)}"
