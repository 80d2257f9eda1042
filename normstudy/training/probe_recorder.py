"""Records the statistics of section 6 while a network trains, through hooks."""

import contextlib

import torch

from normstudy.kernels import channel_variance, frobenius_norm, gram_statistics, partial_statistics
from normstudy.storage import ACTIVATION_KEYS, CONV_KEYS, PROBE_KEYS
from normstudy.training.processes import World


class ProbeRecorder:
    """Records the statistics of one training step after another.

    with recorder.step(iteration): forward and backward are recorded. `dump()` gives the dict of the iterations
    since the last dump and forgets them. Hooks go with `close()`. Neither losses nor the state_dict change.
    Where processes share a batch, its parts meet for each site in one of them, and all get the same rows.
    """

    def __init__(self, model, world=None):
        self.world = world or World()
        self.names = model.probe_sites()
        self.iterations = []
        self.rows = []
        self.device = next(model.parameters()).device
        self._values = None
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._hook(kind, index))
            for kind, names in self.names.items()
            for index, name in enumerate(names)
        ]

    def _hook(self, kind, index):
        observe = self._observe_conv if kind == "conv" else self._observe_activation

        def hook(module, inputs, output):
            if self._values is not None:
                observe(self._values, index, output)

        return hook

    @torch.no_grad()
    def _observe_conv(self, values, index, output):
        whole = self.world.gather(output, index % self.world.size)
        if whole is not None:
            values["std"][index] = channel_variance(whole).sqrt().mean()

        def keep_norm(gradient):
            values["grad_norm"][index] = frobenius_norm(gradient)

        if output.requires_grad:
            output.register_hook(keep_norm)

    @torch.no_grad()
    def _observe_activation(self, values, index, output):
        whole = self.world.gather(output, index % self.world.size)
        if whole is not None:
            with torch.autocast(output.device.type, enabled=False):
                statistics, values["gram"][index] = partial_statistics(whole)
                for key, value in statistics.items():
                    values[key][index] = value

    def observe(self):
        """A context in which one forward and backward pass is observed; `row` of what it gives is then for keep()."""
        return _Observation(self)

    def assemble_row(self, values):
        """A row, KEYS flat, of {key: one value a site}. Of several processes, each has the values of some sites, and of
        every gradient the norm of its part, as many times too large as there are processes."""
        if self.world.size > 1:
            missing = torch.zeros((), device=self.device)
            values = {key: [missing if value is None else value for value in values[key]] for key in PROBE_KEYS}
            values["grad_norm"] = [norm.square() for norm in values["grad_norm"]]
        row = self.world.sum(torch.cat([torch.stack(values[key]) for key in PROBE_KEYS]))
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
        for key in PROBE_KEYS:
            width = len(self.names["conv" if key in CONV_KEYS else "activation"])
            columns[key] = slice(start, start + width)
            start += width
        return columns

    def state_dict(self):
        """The dict of section 6 for the iterations since the last dump, on the CPU.

        iteration (T,) int64, sites {"conv": names, "activation": names}, and one (T, sites) float32 tensor a key.
        """
        columns = self._columns()
        width = columns[PROBE_KEYS[-1]].stop
        rows = torch.stack(self.rows).float().cpu() if self.rows else torch.empty(0, width)
        state = {"iteration": torch.tensor(self.iterations, dtype=torch.int64), "sites": self.names}
        return state | {key: rows[:, part].clone() for key, part in columns.items()}

    def load_state_dict(self, state):
        """Takes back what state_dict() gave."""
        self.iterations = state["iteration"].tolist()
        self.rows = list(torch.cat([state[key] for key in PROBE_KEYS], dim=1).to(self.device))

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
            self.row = self.recorder.assemble_row(self.values)
        del self.values
