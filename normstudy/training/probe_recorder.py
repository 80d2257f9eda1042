"""Records the probe statistics that docs/files.md defines, with hooks, while a network trains."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models import Network, weight_names
from normstudy.kernels import channel_variance, frobenius_norm, gram_matrix, gram_statistics, norms_and_angles
from normstudy.storage import CONV_KEYS, PROBE_KEYS, WEIGHT_KEYS
from normstudy.training.processes import ALONE, World

SiteValues = dict[str, dict[int, torch.Tensor]]  # {statistic: {index of a site: zero-dimensional value}}
GRAM = "gram"  # an extra key: (N, N) matrices, from which other statistics are computed at the end of a pass


@dataclass
class Observation:
    """One observed training step; `row` is for keep(), and None unless the step has succeeded."""

    row: torch.Tensor | None = None


class ProbeRecorder:
    """Records the probe statistics of training steps.

    The forward pass, the backward pass and the update of the weights inside `with recorder.observe() as observation:`
    are observed. `keep(iteration, observation.row, rate)` records them, unless the step has failed and left no row.
    `dump()` returns the dict of the iterations since the last dump and forgets them; `close()` removes the hooks.
    Neither losses nor the state_dict change. If processes share a batch, one process gathers its parts for each site,
    and all get the same rows.
    """

    def __init__(self, model: Network, world: World = ALONE) -> None:
        self.world = world
        self.sites = model.probe_sites()
        self.weights: list[torch.Tensor] = [model.get_parameter(name) for name in weight_names(model)]
        self.iterations: list[int] = []
        self.rates: list[float] = []
        self.rows: list[torch.Tensor] = []
        self.device = next(model.parameters()).device
        self._values: SiteValues | None = None  # of the observed pass
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._hook(kind, site))
            for kind, names in self.sites.items()
            for site, name in enumerate(names)
        ]
        self.sites = {**self.sites, "weight": weight_names(model)}

    def _hook(self, kind: str, site: int) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        observe = self._observe_conv if kind == "conv" else self._observe_activation

        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            if self._values is not None:
                observe(self._values, site, output)

        return hook

    @torch.no_grad()
    def _observe_conv(self, values: SiteValues, site: int, output: torch.Tensor) -> None:
        whole = self.world.gather(output, site % self.world.size)
        if whole is not None:
            values["std"][site] = channel_variance(whole).sqrt().mean()

        def keep_norm(gradient: torch.Tensor) -> None:
            values["grad_norm"][site] = frobenius_norm(gradient)

        if output.requires_grad:
            output.register_hook(keep_norm)

    @torch.no_grad()
    def _observe_activation(self, values: SiteValues, site: int, output: torch.Tensor) -> None:
        whole = self.world.gather(output, site % self.world.size)
        if whole is not None:
            with torch.autocast(output.device.type, enabled=False):
                values["activation_variance"][site] = channel_variance(whole).mean()
                values[GRAM][site] = gram_matrix(whole)

    @contextlib.contextmanager
    def observe(self) -> Iterator[Observation]:
        """Observe one training step, inside a `with` block."""
        observation = Observation()
        self._values = {key: {} for key in (*PROBE_KEYS, GRAM)}
        before = [weight.detach().clone() for weight in self.weights]
        try:
            yield observation
            with torch.no_grad():
                weights = norms_and_angles(before, self.weights)
            observation.row = torch.cat([self._assemble_row(self._values), *weights])
        finally:
            self._values = None

    @torch.no_grad()
    def _assemble_row(self, values: SiteValues) -> torch.Tensor:
        """Return the PROBE_KEYS of the row of one pass: one value per statistic and site, in the order of _columns().

        With several processes, each holds the values of some sites. Of each gradient it holds the norm of its own
        part, which is too large by a factor equal to the number of processes.
        """
        grams = values.pop(GRAM)
        if grams:
            for key, column in gram_statistics(list(grams.values())).items():
                values[key].update(zip(grams, column, strict=True))
        if self.world.size > 1:
            zero = torch.zeros((), device=self.device)
            values = {key: dict.fromkeys(range(self._width(key)), zero) | values[key] for key in PROBE_KEYS}
            values["grad_norm"] = {site: norm.square() for site, norm in values["grad_norm"].items()}
        columns = [torch.stack([values[key][site] for site in range(self._width(key))]) for key in PROBE_KEYS]
        row = self.world.sum(torch.cat(columns))
        if self.world.size > 1:
            norms = row[self._columns()["grad_norm"]]
            norms.copy_(norms.sqrt() / self.world.size)
        return row

    def keep(self, iteration: int, row: torch.Tensor, rate: float) -> None:
        """Keep the row of an observed step under `iteration`, with its learning rate."""
        self.iterations.append(iteration)
        self.rates.append(rate)
        self.rows.append(row)

    def _width(self, key: str) -> int:
        """Return the number of sites at which a statistic is recorded."""
        kind = "weight" if key in WEIGHT_KEYS else "conv" if key in CONV_KEYS else "activation"
        return len(self.sites[kind])

    def _columns(self) -> dict[str, slice]:
        """Return {statistic: its slice of a row}."""
        columns, start = {}, 0
        for key in (*PROBE_KEYS, *WEIGHT_KEYS):
            columns[key] = slice(start, start + self._width(key))
            start += self._width(key)
        return columns

    def state_dict(self) -> dict[str, Any]:
        """Return the probe dict of docs/files.md for the iterations since the last dump, on the CPU.

        It holds iteration (T,) int64, learning_rate (T,) float64, sites {"conv": names, "activation": names,
        "weight": names}, and for each statistic a (T, sites) float32 tensor.
        """
        columns = self._columns()
        width = columns[WEIGHT_KEYS[-1]].stop
        rows = torch.stack(self.rows).float().cpu() if self.rows else torch.empty(0, width)
        state = {"iteration": torch.tensor(self.iterations, dtype=torch.int64), "sites": self.sites}
        state["learning_rate"] = torch.tensor(self.rates, dtype=torch.float64)
        return state | {key: rows[:, part].clone() for key, part in columns.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that state_dict() returned; what an earlier version did not record becomes NaN."""
        self.iterations = state["iteration"].tolist()
        steps = len(self.iterations)
        unknown = torch.full((steps,), math.nan, dtype=torch.float64)
        self.rates = state.get("learning_rate", unknown).tolist()
        parts = [state[key] for key in PROBE_KEYS]
        parts += [state.get(key, torch.full((steps, self._width(key)), math.nan)) for key in WEIGHT_KEYS]
        self.rows = list(torch.cat(parts, dim=1).to(self.device))

    def drop_after(self, iteration: int) -> None:
        """Forget the rows recorded after `iteration`."""
        kept = sum(recorded <= iteration for recorded in self.iterations)
        self.iterations, self.rates, self.rows = self.iterations[:kept], self.rates[:kept], self.rows[:kept]

    def dump(self) -> dict[str, Any]:
        """Return state_dict() and forget its iterations."""
        state = self.state_dict()
        self.iterations, self.rates, self.rows = [], [], []
        return state

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
