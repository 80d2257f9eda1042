"""Matrix-free curvature of the loss of any PyTorch model: cross-entropy, or another one. Requires only torch.

`hessian_matvec` multiplies vectors by the Hessian or the generalized Gauss-Newton matrix. `spectrum` and `lanczos`
accept any symmetric matrix given as a function v ↦ Av::

    matvec, dimension = hessian_matvec(model, batches)
    estimates = spectrum(matvec, dimension, 2, 10, torch.Generator().manual_seed(0), dtype=torch.float32)
    print(estimates.trace, estimates.trace_standard_error, estimates.max_eigen)
"""

from .image_errors import ImageBlocks, layout_errors
from .krylov_space import lanczos, ritz_values
from .model_state import has_running_statistics, in_mode, unwrap
from .objective import layer_sizes
from .precision import full_float32
from .products import FEWEST_SAMPLES, bytes_per_sample, hessian_matvec, loss_and_gradient
from .scaling import parameter_scales
from .spectral_estimates import ProbeState, Spectrum, rademacher, spectrum
from .thick_restart import eigenpairs

__all__ = [
    "FEWEST_SAMPLES",
    "ImageBlocks",
    "ProbeState",
    "Spectrum",
    "bytes_per_sample",
    "eigenpairs",
    "full_float32",
    "has_running_statistics",
    "hessian_matvec",
    "in_mode",
    "lanczos",
    "layer_sizes",
    "layout_errors",
    "loss_and_gradient",
    "parameter_scales",
    "rademacher",
    "ritz_values",
    "spectrum",
    "unwrap",
]
