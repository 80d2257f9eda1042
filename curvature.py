"""Hessian-vector products of a network's loss, and what Lanczos makes of any matrix-vector product.

`hessian_matvec` turns a network into v ↦ Hv; everything after it takes a matvec and never sees a network.
"""

import contextlib
import itertools
import math
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import twin

CURVATURES = ("hessian", "ggn")
# Modules whose forward-mode derivative is known to be right when it is differentiated once more. Some of PyTorch's
# are not: layer norm's and training batch norm's are wrong without a word, softmax's refuses. See the tests.
TWICE_DIFFERENTIABLE = (nn.Conv2d, nn.Linear, nn.ReLU, nn.Tanh, nn.GELU, nn.Identity, nn.Flatten, nn.Sequential)
OWN_MODULES = ("convolutions", "layer_defs", "models", "transformer_model")


@contextlib.contextmanager
def full_float32():
    """float32 products without TF32 or bf16 inside; the settings come back as they were."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(matmul)


class _Objective:
    """The mean cross-entropy of a network over batches, as a function of its trainable parameters.

    Batches are (images, labels); they may be any iterable that can be walked again and again. forward_mode=False:
    to be differentiated backwards alone.
    """

    def __init__(self, model, batches, loss, bn_mode, forward_mode=True):
        if loss != "cross_entropy":
            raise ValueError(f"loss {loss!r} is not cross_entropy")
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no trainable parameters")
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.dimension = sum(self.sizes)
        if isinstance(batches, (tuple, list)) and any(isinstance(each, torch.Tensor) for each in batches):
            raise ValueError("batches are a list of pairs: [(images, labels)]")
        self.batches = list(batches) if iter(batches) is batches else batches
        self.model = twin(model, bn_mode, forward_mode=forward_mode)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self.names = [names[id(parameter)] for parameter in self.parameters]
        self.is_twice_differentiable = all(
            type(module) in TWICE_DIFFERENTIABLE or type(module).__module__ in OWN_MODULES
            for module in self.model.modules()
        )

    def logits(self, images, parameters=None):
        parameters = self.parameters if parameters is None else parameters
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(self.model, dict(zip(self.names, parameters, strict=True)), (images,))

    def summed_loss(self, images, labels):
        return F.cross_entropy(self.logits(images), labels, reduction="sum")

    def gradient_graph(self, images, labels):
        """The gradient of the summed loss in each parameter, differentiable; None where it does not depend on one."""
        loss = self.summed_loss(images, labels)
        return torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)

    def sum_over_batches(self, function):
        """function(images, labels), a list of tensors, summed over all batches and divided by the samples."""
        total, samples = None, 0
        reference = self.parameters[0]
        with full_float32(), torch.enable_grad():
            for images, labels in self.batches:
                if not images.is_floating_point() or labels.is_floating_point():
                    raise ValueError("images are floating-point numbers, scaled as in training, labels are whole ones")
                images = images.to(reference.device, reference.dtype)
                values = function(images, labels.to(reference.device, torch.int64))
                samples += len(labels)
                total = values if total is None else torch._foreach_add(total, values)
        if total is None:
            raise ValueError("there are no batches")
        return [value / samples for value in total]

    def split(self, vector):
        """A flat vector as one tensor for each parameter, laid out as that is."""
        if vector.shape != (self.dimension,):
            raise ValueError(f"the vector has shape {tuple(vector.shape)}, not ({self.dimension},)")
        parts = vector.detach().to(self.parameters[0]).split(self.sizes)
        return [
            torch.empty_like(parameter).copy_(part.view(parameter.shape))
            for parameter, part in zip(self.parameters, parts, strict=True)
        ]


def _flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def hessian_matvec(model, batches, loss="cross_entropy", *, curvature="hessian", bn_mode="eval", keep_graphs=False):
    """(matvec, dimension): v ↦ Hv on flat vectors (dimension,), H of the mean loss over all samples of the batches.

    The vectors follow model.parameters(), trainable ones alone. The result comes in the type and on the device of
    v; the arithmetic is the model's, float32 without TF32. The model is read at every product and never changed:
    mode, buffers, gradients and hooks stay. batches: an iterable of (images, labels); a generator is kept as a list.
    curvature="ggn": the generalized Gauss-Newton matrix Jᵀ H_out J (Schraudolph 2002) in place of the Hessian.
    bn_mode="train": norms with running statistics use those of each batch instead.
    keep_graphs=True: the first product keeps the graph of each batch's gradient for the next ones, which take three
    quarters of the arithmetic; bytes_per_sample tells what that holds. The model must then stay as it is
    (RuntimeError), and the batches come in the same order. Of Hessians only.
    Raises ValueError for other names, for graphs of a Gauss-Newton matrix, for no batches, for images that are not
    floating-point numbers, and for a vector of another length.

    A product is one forward pass with tangents and one backward pass through both (Pearlmutter 1994): H v is the
    gradient of the directional derivative ⟨∇L, v⟩, which forward mode gives. The convolutions of a product cost
    8/3 of those of a gradient; of a kept graph of the gradient ⟨∇L, v⟩ is differentiated backwards, which costs 6/3.
    A network with modules that are not known here is differentiated backwards twice.
    """
    if curvature not in CURVATURES:
        raise ValueError(f"curvature {curvature!r} is none of {', '.join(CURVATURES)}")
    if curvature == "ggn" and keep_graphs:
        raise ValueError("keep_graphs is for Hessians only")
    objective = _Objective(model, batches, loss, bn_mode)
    backward = _Objective(model, (), loss, bn_mode, forward_mode=False)
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", FutureWarning)  # of what PyTorch loads at the first dual tensor
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
    kept = []

    def matvec(vector):
        tangents = objective.split(vector)
        batch_numbers = itertools.count()

        def forward_product(images, labels):
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(p, t) for p, t in zip(objective.parameters, tangents, strict=True)]
                logits, slopes = forward_ad.unpack_dual(objective.logits(images, duals))
                slopes = torch.zeros_like(logits) if slopes is None else slopes
                probabilities = torch.softmax(logits, 1)
                if curvature == "hessian":
                    # ⟨∇L, v⟩ of the sum over samples: ⟨softmax(z) − y, ż⟩.
                    output = ((probabilities - F.one_hot(labels, logits.shape[1])) * slopes).sum()
                    weights = None
                else:
                    # H_out ż of each sample: p ⊙ ż − p ⟨p, ż⟩.
                    weighted = (probabilities * slopes).detach()
                    output, weights = logits, weighted - probabilities.detach() * weighted.sum(1, keepdim=True)
            # Outside the level: inside, the backward pass would carry tangents of its own.
            return _gradients(output, objective.parameters, weights)

        def backward_product(gradients, keeps_graph):
            used = [(g, t) for g, t in zip(gradients, tangents, strict=True) if g is not None and g.requires_grad]
            return _gradients([g for g, _ in used], backward.parameters, [t for _, t in used], keeps_graph)

        def product(images, labels):
            if keep_graphs:
                number = next(batch_numbers)
                if number == len(kept):
                    kept.append(backward.gradient_graph(images, labels))
                return backward_product(kept[number], keeps_graph=True)
            if curvature == "hessian" and not objective.is_twice_differentiable:
                return backward_product(backward.gradient_graph(images, labels), keeps_graph=False)
            return forward_product(images, labels)

        return _flat(objective.sum_over_batches(product)).to(vector)

    return matvec, objective.dimension


def _gradients(output, parameters, weights=None, keeps_graph=False):
    """The gradient of output (weighted) in each parameter, zeros where it does not depend on one."""
    gradients = torch.autograd.grad(output, parameters, weights, retain_graph=keeps_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def loss_and_gradient(model, batches, loss="cross_entropy", *, bn_mode="eval"):
    """(mean loss over all samples, its flat gradient (dimension,)) of what hessian_matvec differentiates twice."""
    objective = _Objective(model, batches, loss, bn_mode)

    def both(images, labels):
        total = objective.summed_loss(images, labels)
        return [total.detach(), *_gradients(total, objective.parameters)]

    mean, *gradient = objective.sum_over_batches(both)
    return mean.item(), _flat(gradient)


def bytes_per_sample(model, batch, **options):
    """Bytes that a product keeps for its backward pass, for each sample of a batch (images, labels) of four or more.

    options: of hessian_matvec; with keep_graphs=True they are what stays after the product. Gradients and temporary
    tensors of the widest layers come on top.
    """
    images, labels = batch
    kept = []
    for samples in (2, 4):
        storages = {}

        def keep(tensor, storages=storages):
            with contextlib.suppress(RuntimeError):  # a tangent known to be zero has no memory
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        matvec, dimension = hessian_matvec(model, [(images[:samples], labels[:samples])], **options)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            matvec(torch.zeros(dimension))
        kept.append(sum(storages.values()))
    return (kept[1] - kept[0]) / 2


# Lanczos


@dataclass(frozen=True)
class Krylov:
    """What Lanczos leaves: the tridiagonal matrix's diagonal (m,) and off-diagonal (m−1,), the norm of what was
    left over, the basis (m, n), and the first product, matvec(start)."""

    diagonal: torch.Tensor
    off_diagonal: torch.Tensor
    remainder: float
    basis: torch.Tensor
    first_product: torch.Tensor

    def quadrature(self):
        """(nodes, weights, residuals), (m,) each, ascending, float64 on the CPU: Gauss quadrature of the spectral
        measure of the start (Golub & Welsch 1969); an eigenvalue lies within the residual of each node (rounding of
        the basis' type included)."""
        matrix = torch.diag(self.diagonal) + torch.diag(self.off_diagonal, 1) + torch.diag(self.off_diagonal, -1)
        nodes, vectors = torch.linalg.eigh(matrix)
        rounding = torch.finfo(self.basis.dtype).eps * nodes.abs().max()
        return nodes, vectors[0].square(), self.remainder * vectors[-1].abs() + rounding


def krylov(matvec, start, num_steps, basis_device=None):
    """At most num_steps of Lanczos from `start` (n,), each product orthogonalized twice against the whole basis.

    Stops early where the Krylov space is finished. The basis (num_steps, n) lies on basis_device (start's own by
    default). Raises ValueError for a start that is zero or not finite, or no steps, ArithmeticError for a product
    that is not finite.
    """
    length = torch.linalg.vector_norm(start).item()
    if not (length > 0 and math.isfinite(length)) or num_steps < 1:
        raise ValueError("Lanczos needs a finite start that is not zero, and at least one step")
    num_steps = min(num_steps, len(start))
    basis = torch.empty(num_steps, len(start), dtype=start.dtype, device=basis_device or start.device)
    epsilon = torch.finfo(start.dtype).eps
    finished = min(10 * math.sqrt(len(start)) * epsilon, max(1e-6, 10 * epsilon))
    diagonal, off_diagonal, scale = [], [], 0.0
    direction = start / length
    for step in range(num_steps):
        basis[step] = direction
        product = matvec(direction)
        if step == 0:
            first_product = product * length
        rest = product.to(basis)
        known = basis[: step + 1]
        diagonal_entry = 0.0
        for _ in range(2):
            coefficients = known @ rest
            rest = rest - coefficients @ known
            diagonal_entry += coefficients[step].item()
        beta = torch.linalg.vector_norm(rest).item()
        if not math.isfinite(diagonal_entry + beta):
            raise ArithmeticError(f"the matrix-vector product of step {step + 1} is not finite")
        diagonal.append(diagonal_entry)
        scale = max(scale, abs(diagonal_entry), beta)
        if beta <= finished * scale:
            beta = 0.0
            break
        off_diagonal.append(beta)
        direction = (rest / beta).to(start.device)
    size = len(diagonal)
    return Krylov(
        torch.tensor(diagonal, dtype=torch.float64),
        torch.tensor(off_diagonal[: size - 1], dtype=torch.float64),
        beta,
        basis[:size],
        first_product,
    )


def lanczos(matvec, start, num_steps):
    """(nodes, weights), (m,) each with m ≤ num_steps, float64: Gauss quadrature of the spectral measure of `start`.

    Σ weights · f(nodes) = uᵀ f(A) u for u = start/‖start‖ and every polynomial f of degree up to 2m−1; the weights
    sum to 1. The nodes are Ritz values of the symmetric matrix A behind matvec. Raises as `krylov` does.
    """
    nodes, weights, _ = krylov(matvec, start, num_steps).quadrature()
    return nodes, weights


@dataclass(frozen=True)
class Spectrum:
    """Estimates of a symmetric matrix's spectrum, with standard errors over probes (NaN for a single one).

    trace = Σλ, eigen_mean = Σλ/n, eigen_variance = Σλ²/n − (Σλ/n)². max_eigen and min_eigen are the outermost Ritz
    values of all probes; an eigenvalue lies within their residual. nodes, weights (probes, steps) float64: the
    quadrature of each probe that took all steps; a Krylov space that finished early is filled up with weight 0.
    block_traces: {name: (trace, standard error)} of diagonal blocks, which add up to the trace. products: how many
    matrix-vector products were taken; samples: by how many probes.
    """

    trace: float
    trace_standard_error: float
    eigen_mean: float
    eigen_mean_standard_error: float
    eigen_variance: float
    eigen_variance_standard_error: float
    max_eigen: float
    max_eigen_residual: float
    min_eigen: float
    min_eigen_residual: float
    nodes: torch.Tensor
    weights: torch.Tensor
    block_traces: dict
    products: int
    samples: int


def rademacher(dimension, generator, dtype=torch.float64):
    """A vector (dimension,) of independent signs, drawn on the generator's device."""
    signs = torch.randint(0, 2, (dimension,), generator=generator, device=generator.device, dtype=torch.int8)
    return signs.to(dtype).mul_(2).sub_(1)


def _mean_and_error(samples):
    """The mean over probes and its standard error, samples (probes,) float64."""
    error = samples.std(correction=1) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return samples.mean().item(), float(error)


def _probes_for(part, traces):
    """How many probes make the standard error of the trace so small a part of it, judged by those (probes,) that are
    there: their own number where they do, and no more than twice as many, for that is a guess."""
    mean, error = _mean_and_error(traces)
    if error <= part * abs(mean):
        return len(traces)
    needed = len(traces) * (error / (part * mean)) ** 2 if mean and math.isfinite(error) else math.inf
    return max(len(traces) + 1, math.ceil(min(2 * len(traces), needed)))


def spectrum(
    matvec,
    dimension,
    num_probes,
    num_steps,
    generator,
    *,
    trace_probes=0,
    trace_error=None,
    most_probes=None,
    expect=None,
    blocks=None,
    dtype=torch.float64,
    device="cpu",
    basis_device=None,
):
    """The Spectrum of a symmetric matrix (dimension, dimension) from Rademacher probes.

    num_probes take num_steps of Lanczos each (Ubaru, Chen & Saad 2017); trace_probes more take one product each,
    which is all that the trace (Hutchinson 1990) and the second moment need. With trace_error, probes are added until
    the trace's standard error is at most this part of it, or there are most_probes in all; expect(products) is then
    told how many products these may take. blocks: {name: size} in the order of the vector, sizes adding up to the
    dimension. dtype and device: of the vectors that matvec is given.
    Raises ValueError for no probes, for an error that is not positive or has no most_probes, and for blocks that do
    not fit, else as `krylov` does.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError("the generator is one of PyTorch's: torch.Generator().manual_seed(0)")
    if num_probes < 1 or trace_probes < 0:
        raise ValueError("at least one probe must take the steps of Lanczos")
    if trace_error is not None and not (trace_error > 0 and most_probes):
        raise ValueError("trace_error is positive, and needs most_probes, where to stop if the trace is near zero")
    blocks = {"all": dimension} if blocks is None else blocks
    if sum(blocks.values()) != dimension:
        raise ValueError(f"the blocks have {sum(blocks.values())} entries, the matrix {dimension}")
    quadratures, products = [], 0
    block_samples, squares = [], []
    wanted = num_probes + trace_probes
    while len(squares) < wanted:
        index = len(squares)
        probe = rademacher(dimension, generator, dtype).to(device)
        found = krylov(matvec, probe, num_steps if index < num_probes else 1, basis_device)
        if index < num_probes:
            quadratures.append(found.quadrature())
        products += len(found.diagonal)
        image = found.first_product
        del found  # the basis is large
        parts = (probe * image).split(list(blocks.values()))
        block_samples.append(torch.stack([part.sum() for part in parts]).cpu().double())
        squares.append(torch.linalg.vector_norm(image).cpu().double() ** 2)
        if len(squares) == wanted and trace_error is not None:
            wanted = min(_probes_for(trace_error, torch.stack(block_samples).sum(1)), max(most_probes, wanted))
            if expect is not None:
                expect(products + wanted - len(squares))
    block_samples, squares = torch.stack(block_samples), torch.stack(squares)
    traces = block_samples.sum(1)
    trace, trace_error = _mean_and_error(traces)
    mean, mean_error = trace / dimension, trace_error / dimension
    # The square of an estimated mean is too large by its variance.
    excess = 0.0 if math.isnan(mean_error) else mean_error**2
    variance = (squares.mean() / dimension).item() - mean**2 + excess
    _, variance_error = _mean_and_error(squares / dimension - 2 * mean * traces / dimension)
    largest = max(((nodes[-1], residuals[-1]) for nodes, _, residuals in quadratures), key=lambda pair: pair[0])
    smallest = min(((nodes[0], residuals[0]) for nodes, _, residuals in quadratures), key=lambda pair: pair[0])
    steps = max(len(nodes) for nodes, _, _ in quadratures)
    return Spectrum(
        trace=trace,
        trace_standard_error=trace_error,
        eigen_mean=mean,
        eigen_mean_standard_error=mean_error,
        eigen_variance=max(variance, 0.0),
        eigen_variance_standard_error=variance_error,
        max_eigen=largest[0].item(),
        max_eigen_residual=largest[1].item(),
        min_eigen=smallest[0].item(),
        min_eigen_residual=smallest[1].item(),
        nodes=torch.stack([F.pad(nodes, (0, steps - len(nodes)), value=nodes[-1]) for nodes, _, _ in quadratures]),
        weights=torch.stack([F.pad(weights, (0, steps - len(weights))) for _, weights, _ in quadratures]),
        block_traces={name: _mean_and_error(samples) for name, samples in zip(blocks, block_samples.T, strict=True)},
        products=products,
        samples=len(squares),
    )
