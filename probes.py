"""What happens inside a network while it trains: statistics of activations and gradients, hooked on from outside.

Nothing here waits for the device: statistics stay there until they are saved.
"""

import contextlib
import math
import re

import torch
from torch import nn
from torch.nn import functional as F

from distributed import World
from moments import CACHED_ELEMENTS, statistics_type
from transformer_model import VisionTransformer

ACTIVATION_KEYS = ("activation_norm", "activation_variance", "cosine_similarity", "stable_rank")
CONV_KEYS = ("std", "grad_norm")
KEYS = CONV_KEYS + ACTIVATION_KEYS
# The least share of the mean square that a variance may be, so that a digit is lost at most, in half precision a bit.
LEAST_LEFT = {torch.float32: 0.1, torch.float64: 0.1, torch.bfloat16: 0.5, torch.float16: 0.5}
FULL = (torch.float32, torch.float64)
GRAM_COLUMNS = 4096  # multiplied at a time in half precision on the CPU
ONE_DIRECTION = 0.99  # the trace of a squared matrix of trace 1 whose other directions count no more
# Power iterations on the CPU: the fewest samples for which they are quicker than all products, the most of them, and
# what they may be short of the eigenvalue, of it.
LEAST_SAMPLES, MOST_ITERATIONS, SHORTAGE = 128, 5, 1e-3
SQUARINGS, PRODUCTS = 8, 16  # together the 4096th power of the matrix of cosines


def _channels_last(x):
    """(N, C, H, W) as (N, H·W, C), tokens (N, T, C) and vectors (N, C) likewise: a view where memory allows."""
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).flatten(1, 2)
    return x if x.dim() == 3 else x.unsqueeze(1)


def channel_means(positions):
    """The mean of each column of positions (P, C), as a row (1, C): a product, which takes a third of torch.mean."""
    return positions.new_ones(1, len(positions)) @ positions / len(positions)


def channel_variance(x):
    """Population variance over N,H,W of each channel: (C,). x is (N, C, H, W), tokens (N, T, C) or (N, C)."""
    x = x.detach()
    if x.device.type == "cpu" and x.dtype in FULL:
        positions = _channels_last(x).flatten(0, 1)
        means = channel_means(positions)
        squares = []
        for part in positions.split(max(1, CACHED_ELEMENTS // positions.shape[1])):
            deviations = F.mse_loss(part, means.expand_as(part), reduction="none")
            squares.append(deviations.new_ones(1, len(part)) @ deviations)
        return torch.cat(squares).sum(0) / len(positions)
    # The kernels of batch normalization read once, and sum half precision in float32: to three or four digits.
    x = x if x.dim() == 4 else _channels_last(x).flatten(0, 1)
    zeros = torch.zeros(x.shape[1], device=x.device, dtype=statistics_type(x))
    if x.device.type == "cpu":
        return torch.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0)[1]
    ones = torch.ones_like(zeros)
    _, _, inverse_deviation = torch.native_batch_norm(x, ones, zeros, None, None, True, 0.0, 1e-30)
    return inverse_deviation.pow(-2)


def mean_variance(x, mean_square):
    """channel_variance(x).mean(), zero-dimensional, of x whose entries have this mean square.

    On the CPU that spares two walks over x, unless the channels' means are so large that digits would cancel.
    """
    if x.device.type == "cpu":
        positions = _channels_last(x.detach())
        if x.dtype in FULL:
            means = channel_means(positions.flatten(0, 1))
        else:  # for each sample, so that rounding to half precision averages out
            ones = positions.new_ones(1, 1, positions.shape[1]).expand(len(positions), -1, -1)
            means = torch.bmm(ones, positions).to(mean_square.dtype).mean(0) / positions.shape[1]
        variance = mean_square - means.square().mean()
        if variance > LEAST_LEFT[x.dtype] * mean_square:
            return variance
    return channel_variance(x).mean()


def frobenius_norm(x):
    """The root of the sum of squares of x (N, ...), zero-dimensional.

    On the CPU by products, which are quicker than torch.linalg.vector_norm, and in float32 also more exact.
    """
    rows = _channels_last(x.detach()).flatten(1)
    if x.device.type != "cpu":
        return torch.linalg.vector_norm(rows, dtype=statistics_type(x))
    if x.dtype in FULL:
        return torch.dot(rows.flatten(), rows.flatten()).sqrt()
    return torch.bmm(rows[:, None], rows[..., None]).sum(dtype=statistics_type(x)).sqrt()


def activation_statistics(x):
    """The four activation keys for a batch x of N samples: zero-dimensional tensors on x's device.

    x is (N, C, H, W), tokens (N, T, C) or (N, C).
    activation_norm: mean over samples of the L2 norm. activation_variance: mean over channels of the population
    variance over N,H,W. cosine_similarity: mean over ordered pairs i≠j of cos(x_i, x_j); NaN for a single sample.
    stable_rank: ‖U‖_F²/‖U‖₂² of the unit-length samples. An all-zero sample has cosine 0 with every other and adds
    nothing to U; where all are zero, the stable rank is 0. In half precision products are rounded to it, which
    leaves about three digits.
    """
    statistics, gram = begun_statistics(x)
    if gram is not None:
        statistics |= {key: value[0] for key, value in gram_statistics(gram[None]).items()}
    return {key: statistics[key] for key in ACTIVATION_KEYS}


def begun_statistics(x):
    """({key: value} of all activation keys, None), or of the variance alone with the products of samples (N, N) for
    the rest: see gram_statistics."""
    statistics = iterated_statistics(x)
    if statistics is not None:
        return statistics, None
    gram = gram_matrix(x)
    return {"activation_variance": mean_variance(x, gram.diagonal().sum() / x.numel())}, gram


def iterated_statistics(x):
    """The four activation keys of x by power iteration, on the CPU; None where that is not sure to be right and quick.

    The cosines of samples without negative entries are not negative, nor is then their leading direction v (Perron
    and Frobenius), so that a start of equal entries, and every iterate after it, has a cosine of 1/√N and more with
    v. Its Rayleigh quotient is then short of the largest eigenvalue by √N times the residual at most.
    """
    samples = _channels_last(x.detach()).flatten(1)
    if x.device.type != "cpu" or x.dtype not in FULL or len(x) < LEAST_SAMPLES or not samples.amin() >= 0:
        return None
    norms = torch.linalg.vector_norm(samples, dim=1)
    inverse = torch.where(norms > 0, 1 / norms.clamp_min(torch.finfo(x.dtype).tiny), 0)
    count = (norms > 0).sum()
    direction = (norms > 0).to(x.dtype) / count.sqrt()
    for iteration in range(MOST_ITERATIONS):
        image = inverse * (samples @ (samples.T @ (inverse * direction)))
        eigenvalue = direction @ image
        if iteration == 0:
            mean_cosine = (count * eigenvalue - count) / (len(x) * (len(x) - 1))
        length = torch.linalg.vector_norm(image)
        residual = torch.linalg.vector_norm(image - eigenvalue * direction)
        if residual * math.sqrt(len(x)) <= SHORTAGE * eigenvalue and length > 0:
            return {
                "activation_norm": norms.mean(),
                "activation_variance": mean_variance(x, norms.square().sum() / x.numel()),
                "cosine_similarity": mean_cosine,
                "stable_rank": count / eigenvalue,
            }
        direction = image / length
    return None


def gram_matrix(x):
    """The products of every two samples of x (N, ...), flattened: (N, N)."""
    samples = _channels_last(x.detach()).flatten(1)
    if x.device.type == "cpu" and x.dtype not in FULL:
        # Its kernel takes twice as long for wide matrices; sums of parts are rounded less, too.
        return sum((part @ part.T).to(statistics_type(x)) for part in samples.split(GRAM_COLUMNS, 1))
    return (samples @ samples.T).to(statistics_type(x))


def gram_statistics(grams):
    """What activation_statistics takes from the products of samples, (S, N, N) for S sites: (S,) each."""
    tiny = torch.finfo(grams.dtype).tiny
    norms = grams.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms.clamp_min(tiny), 0)
    cosines = grams * inverse[:, :, None] * inverse[:, None, :]
    frobenius = _traces(cosines)
    samples = grams.shape[1]
    pairs = samples * (samples - 1)
    mean_cosine = (cosines.sum((1, 2)) - frobenius) / pairs if pairs else torch.full_like(frobenius, torch.nan)
    return {
        "activation_norm": norms.mean(1),
        "cosine_similarity": mean_cosine,
        "stable_rank": frobenius / largest_eigenvalues(cosines).clamp_min(tiny),
    }


def _traces(matrices):
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def largest_eigenvalues(matrices):
    """The largest eigenvalue of each matrix of cosines (S, N, N), without a decomposition or a device sync: (S,).

    Eight squarings take its 256th power P; 16 products with P leave the leading direction, whose Rayleigh quotient
    is short of the eigenvalue by less than 1e-3 of it even where the second one is as close as it can be. The CPU,
    which may look, stops squaring where the leading directions are alone already.
    """
    tiny = torch.finfo(matrices.dtype).tiny
    power = matrices / _traces(matrices).clamp_min(tiny)[:, None, None]
    for _ in range(SQUARINGS):
        power = power @ power
        traces = _traces(power)  # 1 where one direction is left
        power = power / traces.clamp_min(tiny)[:, None, None]
        if power.device.type == "cpu" and traces.min() > ONE_DIRECTION:
            break
    # The largest column lies nearest the leading direction and cannot be orthogonal to it.
    largest = power.diagonal(dim1=1, dim2=2).argmax(1)
    direction = power.gather(2, largest[:, None, None].expand(-1, power.shape[1], 1))
    for _ in range(PRODUCTS):
        direction = power @ _unit(direction)
    direction = _unit(direction)
    return (direction * (matrices @ direction)).sum((1, 2))


def _unit(vectors):
    """Vectors (S, N, 1) at length 1; zeros stay."""
    length = vectors.square().sum(1, keepdim=True).sqrt()
    return vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)


def find_sites(model):
    """{"conv": [(name, module)], "activation": [(name, module)]} of a network, in the order of its layers.

    VGG, ResNet: every convolution, and every module named activation…; ViT: attention and MLP branches, and blocks.
    """
    named = list(model.named_modules())
    if isinstance(model, VisionTransformer):
        conv = [(name, module) for name, module in named if re.fullmatch(r"blocks\.\d+\.(attention|mlp)", name)]
        activation = [(name, module) for name, module in named if re.fullmatch(r"blocks\.\d+", name)]
    else:
        conv = [(name, module) for name, module in named if isinstance(module, nn.Conv2d)]
        activation = [(name, module) for name, module in named if re.search(r"(^|[._])activation\d*$", name)]
    return {"conv": conv, "activation": activation}


class Recorder:
    """Records the statistics of one training step after another.

    with recorder.step(iteration): forward and backward are recorded. `dump()` gives the dict of the iterations
    since the last dump and forgets them. Hooks go with `close()`. Neither losses nor the state_dict change.
    Where processes share a batch, its parts meet for each site in one of them, and all get the same rows.
    """

    def __init__(self, model, world=None):
        self.world = world or World()
        self.sites = find_sites(model)
        self.names = {kind: [name for name, _ in sites] for kind, sites in self.sites.items()}
        self.iterations = []
        self.rows = []
        self.device = next(model.parameters()).device
        self._values = None
        self._handles = [
            module.register_forward_hook(self._hook(kind, index))
            for kind, sites in self.sites.items()
            for index, (_, module) in enumerate(sites)
        ]

    def _hook(self, kind, index):
        observe = self._observe_conv if kind == "conv" else self._observe_activation

        def hook(module, inputs, output):
            if self._values is not None:
                observe(self._values, index, output)

        return hook

    @torch.no_grad()
    def _observe_conv(self, values, index, output):
        whole = self.world.gathered(output, index % self.world.size)
        if whole is not None:
            values["std"][index] = channel_variance(whole).sqrt().mean()

        def keep_norm(gradient):
            values["grad_norm"][index] = frobenius_norm(gradient)

        if output.requires_grad:
            output.register_hook(keep_norm)

    @torch.no_grad()
    def _observe_activation(self, values, index, output):
        whole = self.world.gathered(output, index % self.world.size)
        if whole is not None:
            with torch.autocast(output.device.type, enabled=False):
                statistics, values["gram"][index] = begun_statistics(whole)
                for key, value in statistics.items():
                    values[key][index] = value

    def observe(self):
        """A context in which one forward and backward pass is observed; `row` of what it gives is then for keep()."""
        return _Observation(self)

    def put_together(self, values):
        """A row, KEYS flat, of {key: one value a site}. Of several processes, each has the values of some sites, and of
        every gradient the norm of its part, as many times too large as there are processes."""
        if self.world.size > 1:
            missing = torch.zeros((), device=self.device)
            values = {key: [missing if value is None else value for value in values[key]] for key in KEYS}
            values["grad_norm"] = [norm.square() for norm in values["grad_norm"]]
        row = self.world.total(torch.cat([torch.stack(values[key]) for key in KEYS]))
        if self.world.size > 1:
            norms = row[self._columns()["grad_norm"]]
            norms.copy_(norms.sqrt() / self.world.size)
        return row

    def keep(self, iteration, row):
        """Keeps the row of an observed step as `iteration`."""
        self.iterations.append(iteration)
        self.rows.append(row)

    @contextlib.contextmanager
    def step(self, iteration):
        """A context in which one training step is recorded as `iteration`; nothing is kept if it does not end."""
        with self.observe() as observation:
            yield
        self.keep(iteration, observation.row)

    def _columns(self):
        """{key: slice of a row}."""
        columns, start = {}, 0
        for key in KEYS:
            width = len(self.names["conv" if key in CONV_KEYS else "activation"])
            columns[key] = slice(start, start + width)
            start += width
        return columns

    def state_dict(self):
        """The dict of section 6 for the iterations since the last dump, on the CPU.

        iteration (T,) int64, sites {"conv": names, "activation": names}, and one (T, sites) float32 tensor a key.
        """
        columns = self._columns()
        width = columns[KEYS[-1]].stop
        rows = torch.stack(self.rows).float().cpu() if self.rows else torch.empty(0, width)
        state = {"iteration": torch.tensor(self.iterations, dtype=torch.int64), "sites": self.names}
        return state | {key: rows[:, part].clone() for key, part in columns.items()}

    def load_state_dict(self, state):
        """Takes back what state_dict() gave."""
        self.iterations = state["iteration"].tolist()
        self.rows = list(torch.cat([state[key] for key in KEYS], dim=1).to(self.device))

    def drop_after(self, iteration):
        """Forgets what was recorded after `iteration`."""
        kept = sum(recorded <= iteration for recorded in self.iterations)
        self.iterations, self.rows = self.iterations[:kept], self.rows[:kept]

    def dump(self):
        """state_dict(), and forgets it."""
        state = self.state_dict()
        self.iterations, self.rows = [], []
        return state

    def close(self):
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()


class _Observation:
    """What the hooks write into: {key: one value a site}. `row`, after a pass that ended well: all of KEYS, flat."""

    def __init__(self, recorder):
        self.recorder = recorder
        self.row = None

    def __enter__(self):
        conv, activation = (len(self.recorder.names[kind]) for kind in ("conv", "activation"))
        self.values = {key: [None] * conv for key in CONV_KEYS}
        self.values |= {key: [None] * activation for key in (*ACTIVATION_KEYS, "gram")}
        self.recorder._values = self.values
        return self

    @torch.no_grad()
    def __exit__(self, kind, error, traceback):
        self.recorder._values = None
        if kind is None:
            grams = {index: gram for index, gram in enumerate(self.values["gram"]) if gram is not None}
            if grams:
                for key, column in gram_statistics(torch.stack(list(grams.values()))).items():
                    for index, value in zip(grams, column, strict=True):
                        self.values[key][index] = value
            self.row = self.recorder.put_together(self.values)
        del self.values
