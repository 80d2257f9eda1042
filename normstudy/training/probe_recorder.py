"""Records the statistics of docs/files.md (Probes) while a network trains, through hooks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models import Network
from normstudy.kernels import channel_variance, frobenius_norm, gram_matrix, gram_statistics
from normstudy.storage import CONV_KEYS, PROBE_KEYS
from normstudy.training.processes import ALONE, World

SiteValues = dict[str, dict[int, torch.Tensor]]  # {statistic: {index of a site: zero-dimensional value}}
GRAM = "gram"  # beside the statistics: (N, N) matrices, of which the rest are made at the end of a pass


@dataclass
class Observation:
    """One forward and backward pass that the hooks observe; `row` is for keep(), once the pass has ended well."""

    row: torch.Tensor | None = None


class ProbeRecorder:
    """Records the statistics of one training step after another.

    with recorder.step(iteration): forward and backward are recorded. `dump()` gives the dict of the iterations
    since the last dump and forgets them. Hooks go with `close()`. Neither losses nor the state_dict change.
    Where processes share a batch, its parts meet for each site in one of them, and all get the same rows.
    """

    def __init__(self, model: Network, world: World = ALONE) -> None:
        self.world = world
        self.sites = model.probe_sites()
        self.iterations: list[int] = []
        self.rows: list[torch.Tensor] = []
        self.device = next(model.parameters()).device
        self._values: SiteValues | None = None  # of the pass that is observed
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._hook(kind, site))
            for kind, names in self.sites.items()
            for site, name in enumerate(names)
        ]

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
        """A context in which one forward and backward pass is observed."""
        observation = Observation()
        self._values = {key: {} for key in (*PROBE_KEYS, GRAM)}
        try:
            yield observation
            observation.row = self._assemble_row(self._values)
        finally:
            self._values = None

    @torch.no_grad()
    def _assemble_row(self, values: SiteValues) -> torch.Tensor:
        """The row (statistics and sites,) of one pass, in the order of _columns().

        Of several processes, each has the values of some sites, and of every gradient the norm of its part, as many
        times too large as there are processes.
        """
        grams = values.pop(GRAM)
        if grams:
            for key, column in gram_statistics(torch.stack(list(grams.values()))).items():
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

    def keep(self, iteration: int, row: torch.Tensor) -> None:
        """Keep the row of an observed step as `iteration`."""
        self.iterations.append(iteration)
        self.rows.append(row)

    @contextlib.contextmanager
    def step(self, iteration: int) -> Iterator[None]:
        """A context in which one training step is recorded as `iteration`; nothing is kept if it does not end."""
        with self.observe() as observation:
            yield
        if observation.row is not None:
            self.keep(iteration, observation.row)

    def _width(self, key: str) -> int:
        """The number of sites that have a statistic."""
        return len(self.sites["conv" if key in CONV_KEYS else "activation"])

    def _columns(self) -> dict[str, slice]:
        """{statistic: its part of a row}."""
        columns, start = {}, 0
        for key in PROBE_KEYS:
            columns[key] = slice(start, start + self._width(key))
            start += self._width(key)
        return columns

    def state_dict(self) -> dict[str, Any]:
        """The probe dict of docs/files.md for the iterations since the last dump, on the CPU.

        iteration (T,) int64, sites {"conv": names, "activation": names}, and one (T, sites) float32 tensor a key.
        """
        columns = self._columns()
        width = columns[PROBE_KEYS[-1]].stop
        rows = torch.stack(self.rows).float().cpu() if self.rows else torch.empty(0, width)
        state = {"iteration": torch.tensor(self.iterations, dtype=torch.int64), "sites": self.sites}
        return state | {key: rows[:, part].clone() for key, part in columns.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what state_dict() gave."""
        self.iterations = state["iteration"].tolist()
        self.rows = list(torch.cat([state[key] for key in PROBE_KEYS], dim=1).to(self.device))

    def drop_after(self, iteration: int) -> None:
        """Forget the rows recorded after `iteration`."""
        kept = sum(recorded <= iteration for recorded in self.iterations)
        self.iterations, self.rows = self.iterations[:kept], self.rows[:kept]

    def dump(self) -> dict[str, Any]:
        """Return state_dict(), and forget its iterations."""
        state = self.state_dict()
        self.iterations, self.rows = [], []
        return state

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
