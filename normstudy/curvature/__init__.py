"""Curvature of the loss of any PyTorch model, without ever forming the matrix. Needs torch alone."""

from .krylov_space import lanczos
from .objective import layer_sizes
from .precision import full_float32
from .products import bytes_per_sample, hessian_matvec, loss_and_gradient
from .spectral_estimates import Spectrum, rademacher, spectrum

__all__ = [
    "Spectrum",
    "bytes_per_sample",
    "full_float32",
    "hessian_matvec",
    "lanczos",
    "layer_sizes",
    "loss_and_gradient",
    "rademacher",
    "spectrum",
]
