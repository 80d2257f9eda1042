"""Measures of the gradients of single images: their size, and their noise relative to the mean gradient."""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from normstudy.measures.network_loss import NetworkLoss, norm


def gradient_products(
    network: NetworkLoss, advance: Callable[[], object] = lambda: None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return ‖g_i‖² and g_i·ḡ of each image, (m,) float64 each, and ‖ḡ‖², by one backward pass per image.

    g_i is the gradient of an image's loss by all trainable parameters, and ḡ their mean. `advance` is called after each
    image.
    """
    parameters = [each for each in network.model.parameters() if each.requires_grad]
    _, mean = network.gradient(parameters)
    squares, products = [], []
    with network.evaluation(), torch.enable_grad():
        for inputs, labels in network.batches:
            for image, label in zip(inputs.split(1), labels.split(1), strict=True):
                gradient = torch.autograd.grad(F.cross_entropy(network.model(image), label), parameters)
                squares.append(torch.stack([each.square().sum() for each in gradient]).double().sum())
                pairs = zip(gradient, mean, strict=True)
                products.append(torch.stack([(each * other).sum() for each, other in pairs]).double().sum())
                advance()
    return torch.stack(squares).cpu(), torch.stack(products).cpu(), norm(mean) ** 2


def gradient_measures(network: NetworkLoss, advance: Callable[[], object] = lambda: None) -> dict[str, float | None]:
    """Return gradient_norm, empirical_fisher_trace and gradient_noise_scale, with standard errors over images.

    gradient_norm is ‖ḡ‖, empirical_fisher_trace the mean of ‖g_i‖². gradient_noise_scale is tr Σ̂/(‖ḡ‖² − tr Σ̂/m), with
    the unbiased covariance Σ̂ of the g_i (McCandlish 2018). It is None unless its denominator exceeds two of its
    standard errors. Errors are those of the jackknife, in closed form.
    """
    squares, products, mean_square = gradient_products(network, advance)
    return noise_scale(squares, products, mean_square)


def noise_scale(squares: torch.Tensor, products: torch.Tensor, mean_square: float) -> dict[str, float | None]:
    """Return gradient_measures from ‖g_i‖² and g_i·ḡ, (m,) each, and ‖ḡ‖²."""
    m = len(squares)
    if m < 3:
        names = ("gradient_norm", "empirical_fisher_trace", "gradient_noise_scale")
        values = (math.sqrt(mean_square), squares.mean().item(), None)
        return {**dict(zip(names, values, strict=True)), **{f"{name}_standard_error": None for name in names}}
    signal, noise = _signal_and_noise(squares.sum(), torch.tensor(mean_square, dtype=squares.dtype), m)
    # Without image i: the mean is (m ḡ − g_i)/(m − 1).
    mean_squares = (m**2 * mean_square - 2 * m * products + squares) / (m - 1) ** 2
    signals, noises = _signal_and_noise(squares.sum() - squares, mean_squares, m - 1)
    denominator_error = _jackknife(signals)
    is_defined = signal.item() > 2 * denominator_error
    return {
        "gradient_norm": math.sqrt(mean_square),
        "gradient_norm_standard_error": _jackknife(mean_squares.clamp_min(0).sqrt()),
        "empirical_fisher_trace": squares.mean().item(),
        "empirical_fisher_trace_standard_error": (squares.std() / math.sqrt(m)).item(),
        "gradient_noise_scale": float(noise / signal) if is_defined else None,
        "gradient_noise_scale_standard_error": _jackknife(noises / signals) if is_defined else None,
    }


def _signal_and_noise(
    total_square: torch.Tensor, mean_square: torch.Tensor, m: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unbiased estimates of ‖E g‖² and tr Σ from Σ‖g_i‖², ‖ḡ‖² and the number of images."""
    noise = (total_square - m * mean_square) / (m - 1)
    return mean_square - noise / m, noise


def _jackknife(values: torch.Tensor) -> float:
    """Return the standard error of an estimate from its values with one image left out each, (m,)."""
    m = len(values)
    return math.sqrt((m - 1) / m * (values - values.mean()).square().sum().item())
