"""What happens inside a network while it trains: statistics of activations and gradients, hooked on from outside.

Nothing here waits for the device: statistics stay there until they are saved.
"""

import re

import torch
from torch import nn

from transformer_model import VisionTransformer

ACTIVATION_KEYS = ("activation_norm", "activation_variance", "cosine_similarity", "stable_rank")
CONV_KEYS = ("std", "grad_norm")
KEYS = CONV_KEYS + ACTIVATION_KEYS
SQUARINGS, PRODUCTS = 6, 64  # together the 4096th power of the matrix of cosines


def _channels_last(x):
    """(N, C, H, W) as (N, H·W, C), tokens (N, T, C) and vectors (N, C) likewise: a view where memory allows."""
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).flatten(1, 2)
    return x if x.dim() == 3 else x.unsqueeze(1)


def _statistics_type(x):
    """float64 for float64, float32 for the rest."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def channel_variance(x):
    """Population variance over N,H,W of each channel: (C,). x is (N, C, H, W), tokens (N, T, C) or (N, C)."""
    x = x.detach()
    if x.dtype not in (torch.bfloat16, torch.float16):
        rows = _channels_last(x).flatten(0, 1)
        return (rows - rows.mean(0)).square_().mean(0)
    # The batch-normalization kernel reads half precision once and sums in float32: to about four digits.
    x = x if x.dim() == 4 else _channels_last(x).flatten(0, 1)
    ones = torch.ones(x.shape[1], device=x.device)
    _, _, inverse_deviation = torch.native_batch_norm(x, ones, ones, None, None, True, 0.0, 1e-30)
    return inverse_deviation.pow(-2)


def activation_statistics(x):
    """The four activation keys for a batch x of N samples: zero-dimensional tensors on x's device.

    x is (N, C, H, W), tokens (N, T, C) or (N, C).
    activation_norm: mean over samples of the L2 norm. activation_variance: mean over channels of the population
    variance over N,H,W. cosine_similarity: mean over ordered pairs i≠j of cos(x_i, x_j); NaN for a single sample.
    stable_rank: ‖U‖_F²/‖U‖₂² of the unit-length samples. An all-zero sample has cosine 0 with every other and adds
    nothing to U; where all are zero, the stable rank is 0. In half precision products are rounded to it, which
    leaves about three digits.
    """
    samples = _channels_last(x.detach()).flatten(1)
    gram = (samples @ samples.T).to(_statistics_type(x))
    tiny = torch.finfo(gram.dtype).tiny
    norms = gram.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms.clamp_min(tiny), 0)
    cosines = gram * inverse[:, None] * inverse
    frobenius = cosines.diagonal().sum()
    pairs = len(samples) * (len(samples) - 1)
    mean_cosine = (cosines.sum() - frobenius) / pairs if pairs else torch.full_like(frobenius, torch.nan)
    statistics = (
        norms.mean(),
        channel_variance(x).mean(),
        mean_cosine,
        frobenius / largest_eigenvalue(cosines).clamp_min(tiny),
    )
    return dict(zip(ACTIVATION_KEYS, statistics, strict=True))


def largest_eigenvalue(gram):
    """The largest eigenvalue of a matrix of cosines (N, N), without a decomposition or a device sync.

    Six squarings take its 64th power P; 64 products with P leave the leading direction, whose Rayleigh quotient is
    short of the eigenvalue by less than 1e-3 of it even where the second one is as close as it can be.
    """
    tiny = torch.finfo(gram.dtype).tiny
    power = gram
    for _ in range(SQUARINGS):
        power = power / power.diagonal().sum().clamp_min(tiny)
        power = power @ power
    power = power / power.diagonal().sum().clamp_min(tiny)
    # The largest column lies nearest the leading direction and cannot be orthogonal to it.
    direction = power.index_select(1, power.diagonal().argmax().view(1)).squeeze(1)
    for _ in range(PRODUCTS):
        direction = power @ (direction / torch.linalg.vector_norm(direction).clamp_min(tiny))
    direction = direction / torch.linalg.vector_norm(direction).clamp_min(tiny)
    return direction @ (gram @ direction)


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
    """

    def __init__(self, model):
        self.sites = find_sites(model)
        self.names = {kind: [name for name, _ in sites] for kind, sites in self.sites.items()}
        self.iterations = []
        self.rows = {key: [] for key in KEYS}
        self._row = None
        self._handles = [
            module.register_forward_hook(self._hook(kind, index))
            for kind, sites in self.sites.items()
            for index, (_, module) in enumerate(sites)
        ]

    def _hook(self, kind, index):
        observe = self._observe_conv if kind == "conv" else self._observe_activation

        def hook(module, inputs, output):
            if self._row is not None:
                observe(self._row, index, output)

        return hook

    @torch.no_grad()
    def _observe_conv(self, row, index, output):
        row["std"][index] = channel_variance(output).sqrt().mean()

        def keep_norm(gradient):
            row["grad_norm"][index] = torch.linalg.vector_norm(gradient, dtype=_statistics_type(gradient))

        if output.requires_grad:
            output.register_hook(keep_norm)

    @torch.no_grad()
    def _observe_activation(self, row, index, output):
        with torch.autocast(output.device.type, enabled=False):
            for key, value in activation_statistics(output).items():
                row[key][index] = value

    def step(self, iteration):
        """A context in which one training step is recorded as `iteration`; nothing is kept if it does not end."""
        return _Step(self, iteration)

    def finish(self, iteration, row):
        """Keeps a finished step: one stacked tensor a key."""
        self.iterations.append(iteration)
        for key, sites in row.items():
            self.rows[key].append(torch.stack(sites))

    def state_dict(self):
        """The dict of section 6 for the iterations since the last dump, on the CPU.

        iteration (T,) int64, sites {"conv": names, "activation": names}, and one (T, sites) float32 tensor a key.
        """
        state = {"iteration": torch.tensor(self.iterations, dtype=torch.int64), "sites": self.names}
        for key, rows in self.rows.items():
            width = len(self.names["conv" if key in CONV_KEYS else "activation"])
            state[key] = torch.stack(rows).float().cpu() if rows else torch.empty(0, width)
        return state

    def load_state_dict(self, state):
        """Takes back what state_dict() gave."""
        self.iterations = state["iteration"].tolist()
        self.rows = {key: list(state[key]) for key in KEYS}

    def drop_after(self, iteration):
        """Forgets what was recorded after `iteration`."""
        kept = sum(recorded <= iteration for recorded in self.iterations)
        self.iterations = self.iterations[:kept]
        self.rows = {key: rows[:kept] for key, rows in self.rows.items()}

    def dump(self):
        """state_dict(), and forgets it."""
        state = self.state_dict()
        self.iterations = []
        self.rows = {key: [] for key in KEYS}
        return state

    def close(self):
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()


class _Step:
    def __init__(self, recorder, iteration):
        self.recorder, self.iteration = recorder, iteration

    def __enter__(self):
        names = self.recorder.names
        self.row = {key: [None] * len(names["conv" if key in CONV_KEYS else "activation"]) for key in KEYS}
        self.recorder._row = self.row

    def __exit__(self, kind, error, traceback):
        self.recorder._row = None
        if kind is None:
            self.recorder.finish(self.iteration, self.row)
