"""Texts of the report that are the same for all runs: the notes of its tables, and its methods."""

from normstudy.report.tables import MIN_POINTS, OUTCOMES, SIGNIFICANT

CELL_NOTE = (
    "A cell is a set of runs with equal hyperparameters, network and data set included: they differ only in the norm, "
    "its grouping and the seed."
)
TUNED_NOTE = (
    " Where learning rates were tuned, each norm is at its own best rate, and a cell does not distinguish rates."
)
NOTES = {
    "no runs": "There are no runs yet.",
    "no accuracy": "No run has a test accuracy.",
    "no baseline": "No norm shares a cell with the baseline norm; --baseline=NORM chooses another one.",
    "no measure": f"No measure has values for at least {MIN_POINTS} settings.",
    "no shared cell": "No cell has at least two norms in both tables.",
    "no shared measure": "No measure has enough settings in both tables.",
    "baseline": "Paired by cell and seed. “Within chance”: neither a difference nor its absence is shown. "
    "“Equivalent”: the interval lies within ±1 point. The last column is the number of seeds with which a difference "
    "of 1 point would be found in four of five cases. Verdicts are not adjusted for the number of norms.",
    "claims": "n counts norms, or groupings. p values are not adjusted for the number of claims.",
    "orders": "Order of the norms by mean test accuracy, best first, with Kendall's τ between the two orders. In this "
    "section, only the settings in the first column define a cell. If these runs differ in other hyperparameters "
    "within it, only the combination with the most norms is used; the other table is not restricted in this way.",
    "signs": "Spearman's ρ between norms, in the cells above. Signs are compared only if both intervals exclude zero; "
    "the intervals are not adjusted for the number of rows.",
}
METHODS = [
    f"Outcomes: {', '.join(OUTCOMES.values())}. A run counts as failed if it ended without a finite result or has no "
    "test accuracy. Failed runs are counted, but rankings, effects and correlations leave them out.",
    "Primary analysis: see docs/report.md, which defined it in advance. Spearman's ρ between norms in the cells with "
    "at least five norms, averaged over cells. p permutes whole norms, jointly over cells; p (Holm) is adjusted for "
    "the other measures of the primary analysis. The interval is a t-interval on the scale of Fisher's z, with the "
    "standard error of resampled norms and cells. Sharpness, weight noise and curvature are those of eval mode, where "
    "moved weights meet running statistics that no longer fit: a difference between norms with and without such "
    "statistics may come from that. Everything else is exploratory: it was not chosen in advance.",
    "Advantage of a norm: the mean over cells of its mean test accuracy minus the mean of the norms' means in the "
    "cell; a norm's mean in a cell averages its groupings. Cells with one norm are left out. The interval is a "
    "t-interval: over cells if there are at least five, else over seeds for these cells, with each norm's own variance "
    "(Welch). The interval of a rank holds the ranks that pairwise comparisons with all other norms leave open "
    "(Bonferroni). The error from the choice of test images is not in these intervals, since all norms are tested on "
    "the same images; the table of cells gives it for single accuracies.",
    "Best rate: each norm at the learning rate with the highest validation accuracy of one seed, among the rates at "
    "which training reached its loss (--stop_at_loss); test images play no part. The seed that chose the rate is one "
    "of those that are averaged, and was lucky on average; the summary gives the primary coefficient without it. "
    "Intervals are for the chosen rates, and do not contain the error of the choice.",
    "Late runs, which did not reach the training loss at which they were to stop, are in no ranking, coefficient or "
    "claim. At equal settings, the cells with a late run are left out of rankings, unless all cells have one.",
    "Same network: InstanceNorm is GroupNorm with p = 1, and LayerNorm on feature maps is GroupNorm with one group. "
    "They count as one norm, and are listed under both names among the groupings.",
    "Unscaled curvature (Hessian trace, eigenvalues) changes with the size of weights that a norm makes irrelevant, so "
    "a difference between two norms may only reflect that size. Element- and filter-scaled curvature does not. "
    "run_hessian.py --scale=element or --scale=filter measures it.",
    "Setting: norm, grouping and all hyperparameters but the seed. For correlations, a setting is one point, the mean "
    "over its runs, because seeds of one setting are not independent evidence of a trend over norms.",
    "Within norms: the mean of Spearman's ρ over the settings of a norm in a cell (groupings and rates, permuted "
    "jointly over cells), or over the seeds of a setting. Rates are compared by the seed that chose among "
    "them. Pooled: one coefficient over all settings (at the best rates, if rates were tuned), which includes "
    "differences between networks; it has no p value because settings of a norm are not independent.",
    "Intervals of Ψ: the central 95 % of resampled groups. p (Holm): adjusted for all rows of the same family and way "
    f"(Holm 1979). Verdicts: “agrees” or “does not agree” if an interval excludes zero or p < {SIGNIFICANT}; otherwise "
    "the comparison is inconclusive.",
    "Granulated (Jiang et al. 2020): ψ of a hyperparameter (here also of the norm with its grouping) is the mean, over "
    f"groups of settings that differ only in it, and in what follows from it (n; no ψ for fewer than {MIN_POINTS}), of "
    "the sign agreement of measure and outcome over pairs of settings; Ψ is the mean of all ψ. The lowest and highest "
    "ψ are the worst cases that Dziugaite et al. 2020 ask for: for a predictive measure, both have the same sign.",
    "Measures: the Hessian is that of the mean cross-entropy of training images in eval mode. Rescaling the weights "
    "before most norms, together with the running statistics, leaves the function unchanged but not the Hessian, so a "
    "smaller trace or λ_max of one norm does not by itself mean a flatter minimum. Class similarity is the mean cosine "
    "between class means of the features before pooling. Measures at the first or last iteration are layer statistics, "
    "averaged over the layers where they are finite. In the table of runs, s.e. is the standard error over random "
    "probes, without the choice of images; an eigenvalue lies within the residual (in parentheses) of λ_max. The "
    "README.md next to a results.csv explains its columns. The table of the original study uses other definitions: its "
    "Trace is not the trace of the Hessian.",
]
