"""PAC-Bayes measures: the size of the Gaussian noise in the weights that costs a tenth of accuracy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from normstudy.measures.network_loss import NetworkLoss

DRAWS = 10
DROP = 0.1  # of accuracy
PRECISION = 1.01  # ratio of the ends of the last interval
STARTS = {"pac_bayes_sigma": 0.01, "pac_bayes_magnitude_sigma": 0.2}  # the first σ that is tried
MOST_DOUBLINGS = 40
SLOPE_RATIO = 1.15  # the slope for the error is taken between points at least this ratio away from σ
KEPT_BYTES = 1 << 30  # up to this size, the draws are stored, because drawing them anew at every σ is slow


class Draws:
    """Standard normal noise for each weight, once for each seed."""

    def __init__(self, weights: Sequence[torch.Tensor], seeds: Sequence[int]) -> None:
        self.weights, self.seeds = weights, seeds
        self.are_kept = len(seeds) * sum(each.nbytes for each in weights) <= KEPT_BYTES
        self._kept: dict[int, list[torch.Tensor]] = {}

    def __getitem__(self, seed: int) -> list[torch.Tensor]:
        if seed in self._kept:
            return self._kept[seed]
        generator = torch.Generator(self.weights[0].device).manual_seed(seed)
        noise = [torch.empty_like(each).normal_(generator=generator) for each in self.weights]
        if self.are_kept:
            self._kept[seed] = noise
        return noise


@dataclass
class NoiseSearch:
    """The search for σ. `tried` is {σ: (the accuracies (draws,), the mean loss)}."""

    network: NetworkLoss
    start: float  # the first σ
    is_relative: bool  # noise of standard deviation σ·|w| in place of σ
    draws: Draws  # the same at every σ
    tried: dict[float, tuple[torch.Tensor, float]] = field(default_factory=dict)
    advance: Callable[[], object] = lambda: None

    def accuracy(self, sigma: float) -> float:
        """Return the mean accuracy over the draws with noise of this size."""
        if sigma not in self.tried:
            found = [self._evaluate(sigma, seed) for seed in self.draws.seeds]
            accuracies, losses = zip(*found, strict=True)
            self.tried[sigma] = torch.tensor(accuracies, dtype=torch.float64), sum(losses) / len(losses)
        return self.tried[sigma][0].mean().item()

    def _evaluate(self, sigma: float, seed: int) -> tuple[float, float]:
        noise = [sigma * each for each in self.draws[seed]]
        if self.is_relative:
            noise = [each * weight.detach().abs() for each, weight in zip(noise, self.network.weights, strict=True)]
        with self.network.moved(noise):
            logits = self.network.logits()
        self.advance()
        loss = F.cross_entropy(logits, self.network.labels).item()
        return (logits.argmax(1) == self.network.labels).double().mean().item(), loss

    def largest(self, least_accuracy: float) -> float | None:
        """Return the largest σ at which the accuracy is at least this, to 1 %; None if no noise lowers it so far."""
        low = high = self.start
        for _ in range(MOST_DOUBLINGS):
            if self.accuracy(low) >= least_accuracy:
                break
            high, low = low, low / 2
        for _ in range(MOST_DOUBLINGS):
            if self.accuracy(high) < least_accuracy:
                break
            low, high = high, high * 2
        if not self.accuracy(low) >= least_accuracy > self.accuracy(high):
            return None
        while high / low > PRECISION:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.accuracy(middle) >= least_accuracy else (low, middle)
        return low

    def error(self, sigma: float) -> float | None:
        """Return the standard error of σ over draws, from the spread of accuracies and their slope, or None."""
        below = [each for each in self.tried if each <= sigma / SLOPE_RATIO]
        above = [each for each in self.tried if each >= sigma * SLOPE_RATIO]
        low, high = max(below, default=sigma / SLOPE_RATIO), min(above, default=sigma * SLOPE_RATIO)
        slope = (self.accuracy(low) - self.accuracy(high)) / math.log(high / low)
        spread = self.tried[sigma][0].std().item() / math.sqrt(len(self.draws.seeds))
        return sigma * spread / slope if slope > 0 else None


def noise_measures(
    network: NetworkLoss, generator: torch.Generator, advance: Callable[[], object] = lambda: None
) -> tuple[dict[str, float | None], dict[str, NoiseSearch]]:
    """Return pac_bayes_sigma and pac_bayes_magnitude_sigma with their standard errors over draws, and both searches.

    They are the largest σ for which Gaussian noise of standard deviation σ (σ·|w|) in the weights costs at most 0.1 of
    accuracy, in the mean over the same ten draws at every σ (Jiang 2020, Dziugaite 2020). They are None if the accuracy
    is below chance + 0.1, where chance is the share of the largest class. `advance` is called after each of the
    evaluations, about 2 · 10 · 10.
    """
    draws = Draws(network.weights, torch.randint(2**62, (DRAWS,), generator=generator).tolist())
    logits = network.logits()
    accuracy = (logits.argmax(1) == network.labels).double().mean().item()
    chance = network.labels.bincount().max().item() / len(network)
    measures: dict[str, float | None] = {}
    searches = {}
    for name, start in STARTS.items():
        search = NoiseSearch(network, start, name == "pac_bayes_magnitude_sigma", draws, advance=advance)
        sigma = search.largest(accuracy - DROP) if accuracy >= chance + DROP else None
        measures[name] = sigma
        measures[f"{name}_standard_error"] = None if sigma is None else search.error(sigma)
        searches[name] = search
    return measures, searches
