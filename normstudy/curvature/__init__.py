"""Matrix-free curvature of the cross-entropy loss of any PyTorch classifier. Requires only torch.

`hessian_matvec` multiplies vectors by the Hessian or the generalized Gauss-Newton matrix. `spectrum` and `lanczos`
accept any symmetric matrix given as a function v ↦ Av::

    matvec, dimension = hessian_matvec(model, batches)
    estimates = spectrum(matvec, dimension, 2, 10, torch.Generator().manual_seed(0), dtype=torch.float32)
    print(estimates.trace, estimates.trace_standard_error, estimates.max_eigen)
"""

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
