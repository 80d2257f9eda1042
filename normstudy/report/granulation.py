"""Granulated rank correlation (Jiang et al. 2020)."""

import numpy as np
import pandas as pd

from normstudy.report.correlation import RESAMPLES
from normstudy.report.tables import MEASURES, MIN_POINTS, OUTCOMES, hyperparameters, setting_keys


def groups_by_axis(table):
    """{hyperparameter: [(positions of runs, their settings)]}: groups of runs that differ in it alone."""
    axes = ["Label", *hyperparameters(table)]
    found = {}
    for axis in axes:
        keys = setting_keys(table, [name for name in axes if name != axis]).to_numpy()
        settings = table[axis].astype(str).to_numpy()
        _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
        found[axis] = [(group, settings[group]) for group in groups if len(set(settings[group])) > 1]
    return found


def granulated_psi(table, measure, outcome, resamples=RESAMPLES, seed=0, groups=None):
    """Ψ of Jiang et al. 2020, section 3: ({hyperparameter: (ψ, groups of runs)}, Ψ, low, high).

    ψ of a hyperparameter is the mean, over groups of runs that differ in it alone, of the sign agreement of measure
    and outcome over the group's pairs (ties count 0); a hyperparameter with fewer than LEAST groups has none, for one
    pair would weigh as much as all others. Ψ is the mean of all ψ, with the 95 % interval of resampling groups. The
    smallest and largest ψ are its worst cases (after Dziugaite et al. 2020). `groups` are alike(table) of the runs that
    did not fail, where they are known already.
    """
    usable = table[~table["has_failed"]]
    x, y = usable[measure].to_numpy(float), usable[outcome].to_numpy(float)
    is_there = np.isfinite(x) & np.isfinite(y)
    generator = np.random.default_rng(seed)
    found, samples = {}, []
    for axis, members in (groups or groups_by_axis(usable)).items():
        taus = []
        for positions, settings in members:
            kept = is_there[positions]
            tau = sign_agreement(x[positions[kept]], y[positions[kept]], settings[kept])
            if np.isfinite(tau):
                taus.append(tau)
        if len(taus) >= MIN_POINTS:
            taus = np.array(taus)
            found[axis] = (float(taus.mean()), len(taus))
            samples.append(taus[generator.integers(0, len(taus), (resamples, len(taus)))].mean(1))
    if not found:
        return {}, np.nan, np.nan, np.nan
    low, high = np.quantile(np.mean(samples, axis=0), [0.025, 0.975])
    return found, float(np.mean([psi for psi, _ in found.values()])), float(low), float(high)


def granulated_table(table, measures=MEASURES, outcomes=OUTCOMES, resamples=RESAMPLES, seed=0):
    """granulated() of every measure and outcome: a frame with Ψ as value, its interval, worst cases, and every ψ with
    its number of groups."""
    rows, groups = [], groups_by_axis(table[~table["has_failed"]])
    for measure in measures:
        for outcome in outcomes:
            found, value, low, high = granulated_psi(table, measure, outcome, resamples, seed, groups)
            row = {"measure": measure, "outcome": outcome, "value": value, "low": low, "high": high}
            psis = {axis: psi for axis, (psi, _) in found.items()}
            row["lowest"] = min(psis, key=psis.get) if psis else ""
            row["highest"] = max(psis, key=psis.get) if psis else ""
            for axis, (psi, n) in found.items():
                row |= {f"ψ {axis}": psi, f"groups {axis}": n}
            rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["measure", "outcome", "value", "low", "high"])


def sign_agreement(x, y, setting):
    """The mean of sign(xᵢ−xⱼ)·sign(yᵢ−yⱼ) over pairs whose setting differs; NaN where there is none."""
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    pairs = setting[:, None] != setting
    return float(signs[pairs].mean()) if pairs.any() else np.nan
