"""The measures of class_similarity.json and measures.json: their columns in results.csv and their names in the report.

A line here gives a measure a column in the table, a line in the README.md of results, and a place in the report.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """What a measure is called and means. `error_over`: what its standard error is taken over; None if it has none."""

    title: str
    meaning: str
    error_over: str | None = None


IMAGES, DRAWS = "images", "draws of the noise"
OF_CLASS_SIMILARITY = {
    "class_similarity_pooled": Measure(
        "class similarity, pooled features", "`Class Similarity` of the features as the classifier pools them"
    ),
    "class_similarity_centred": Measure(
        "class similarity, centred", "`Class Similarity` of the class means after subtracting the global mean"
    ),
    "within_over_between": Measure(
        "within- / between-class variance",
        "Variance of the features within classes divided by their variance between classes",
    ),
    "nc1": Measure(
        "neural collapse nc1 (variance within classes)",
        "Neural collapse: variance within classes over that between them, along the class means",
    ),
    "nc2_equinorm": Measure(
        "neural collapse nc2 (equal norms)",
        "Neural collapse: spread of the norms of the centred class means, relative to their mean",
    ),
    "nc2_equiangularity": Measure(
        "neural collapse nc2 (equal angles)",
        "Neural collapse: standard deviation over class pairs of their cosines",
    ),
    "nc2_max_angle": Measure(
        "neural collapse nc2 (largest angles)",
        "Neural collapse: mean distance of these cosines from −1/(C−1), their value in a simplex",
    ),
    "nc3": Measure(
        "neural collapse nc3 (classifier and means)",
        "Neural collapse: distance between the classifier's weights and the centred class means, both of norm 1",
    ),
    "nc4": Measure(
        "neural collapse nc4 (nearest mean)",
        "Neural collapse: share of images whose nearest class mean is not that of the prediction",
    ),
    "effective_rank": Measure(
        "effective rank of the features",
        "exp of the entropy of the normalized singular values of the centred pooled features",
    ),
}
NEURAL_COLLAPSE_KEYS = (*(name for name in OF_CLASS_SIMILARITY if name.startswith("nc")), "effective_rank")
OF_MEASURES = {
    "l2_norm": Measure(
        "norm of the weights", "Norm of all weights of convolutions and linear layers, from `measures.json`"
    ),
    "distance_from_init": Measure(
        "distance from the start", "Norm of the difference between these weights and those at the start of training"
    ),
    "margin_10": Measure(
        "margin (10th percentile)",
        "10th percentile over images of the margin: the logit of the label minus the largest other",
        IMAGES,
    ),
    "inverse_squared_margin": Measure(
        "inverse squared margin", "1 divided by the square of `margin_10`; empty if that is not positive", IMAGES
    ),
    "cross_entropy": Measure("training cross-entropy", "Mean cross-entropy in nats on the images measured", IMAGES),
    "output_entropy": Measure("entropy of the outputs", "Mean entropy of the predicted probabilities in nats", IMAGES),
    "pac_bayes_sigma": Measure(
        "weight noise that costs accuracy",
        "Standard deviation of the noise in the weights that costs 0.1 of accuracy",
        DRAWS,
    ),
    "pac_bayes_magnitude_sigma": Measure(
        "relative weight noise that costs accuracy", "The same for noise in proportion to each weight", DRAWS
    ),
    "adaptive_sharpness_l2": Measure(
        "adaptive sharpness, L2",
        "Largest rise of the loss found within an L2 ball of relative changes of the weights",
        IMAGES,
    ),
    "adaptive_sharpness_linf": Measure("adaptive sharpness, L∞", "The same within an L∞ ball", IMAGES),
    "gradient_norm": Measure("norm of the gradient", "Norm of the gradient of the mean loss", IMAGES),
    "empirical_fisher_trace": Measure(
        "trace of the empirical Fisher matrix", "Mean over images of the squared norm of their gradients", IMAGES
    ),
    "gradient_noise_scale": Measure(
        "gradient noise scale", "Variance of the gradients of images over the squared norm of their mean", IMAGES
    ),
    "loss_range": Measure(
        "loss range along a step", "Largest minus smallest loss in nats along a training step", IMAGES
    ),
    "gradient_predictiveness": Measure(
        "change of the gradient along a step", "Largest change of the gradient along a training step", IMAGES
    ),
    "effective_smoothness": Measure(
        "effective smoothness along a step",
        "Largest change of the gradient along a training step, relative to the length moved",
        IMAGES,
    ),
    "effective_dimension": Measure(
        "effective dimension of the Hessian",
        "Number of eigenvalues of the Hessian that are large relative to 1: the sum of λ/(λ+1)",
        "Lanczos probes",
    ),
}
MEASURE_COLUMNS = OF_CLASS_SIMILARITY | OF_MEASURES


def columns_of(measures: dict[str, Measure]) -> dict[str, str]:
    """Return {column: meaning} of measures and their standard errors."""
    columns = {}
    for name, measure in measures.items():
        columns[name] = measure.meaning
        if measure.error_over is not None:
            columns[f"{name}_standard_error"] = f"Standard error of `{name}` over {measure.error_over}"
    return columns
