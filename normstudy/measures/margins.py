"""Margins: how far the output of the right class lies above the others."""

import math

import torch

from normstudy.measures.network_loss import NetworkLoss

RESAMPLES = 400  # bootstrap resamples of the images for the error of the percentile


def margins(network: NetworkLoss) -> torch.Tensor:
    """Return z_y − max_{j≠y} z_j of each image, (m,), float64."""
    logits, labels = network.logits(), network.labels[:, None]
    return (logits.gather(1, labels) - logits.scatter(1, labels, -math.inf).amax(1, keepdim=True))[:, 0]


def margin_measures(network: NetworkLoss, generator: torch.Generator) -> dict[str, float | None]:
    """Return margin_10 (10th percentile of the margins) and inverse_squared_margin, with standard errors over images.

    The inverse squared margin is None where the percentile is not positive.
    """
    found = margins(network)
    samples = torch.randint(len(found), (RESAMPLES, len(found)), generator=generator)
    percentile = found.quantile(0.1).item()
    error = found[samples].quantile(0.1, dim=1).std().item()
    is_positive = percentile > 0
    return {
        "margin_10": percentile,
        "margin_10_standard_error": error,
        "inverse_squared_margin": percentile**-2 if is_positive else None,
        "inverse_squared_margin_standard_error": 2 * error / percentile**3 if is_positive else None,
    }
