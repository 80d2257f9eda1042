"""Grids of runs: every combination of the values in a command line or preset."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from config import ONLY_WITH, Config, resolve, shares_of_batch
from normstudy.cli import UsageError
from normstudy.storage import RunDirectory, directory_of, run_name
from normstudy.sweeps.flags import MEASUREMENT_FLAGS
from normstudy.sweeps.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its settings, the flags that pass them to main.py, and its directory."""

    config: Config
    flags: tuple[str, ...]
    directory: RunDirectory
    measurement_flags: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)


def expand(
    given: Mapping[str, Any], preset: str | None = None, processes: int = 1
) -> tuple[list[SweepRun], dict[str, int]]:
    """Return the runs of the given flags and preset, and {reason: number of combinations left out for it}.

    given: {flag: its values, or the value of a runtime flag}. processes: the number of processes per run. Each run
    occurs once, in the order of the product. Raises UsageError if no run is left.
    """
    runtime = {f.name for f in dataclasses.fields(Config) if f.metadata["runtime"]}
    shared = {name: value for name, value in given.items() if name in runtime}
    swept = {name: values for name, values in given.items() if name not in runtime}
    runs: dict[str, SweepRun] = {}
    left_out: collections.Counter[str] = collections.Counter()
    seen = set()
    for grid in PRESETS[preset] if preset else ({},):
        measuring = {name: grid[name] for name in grid if name in MEASUREMENT_FLAGS}
        grid = {name: grid[name] for name in grid if name not in MEASUREMENT_FLAGS} | swept
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True)) | shared
            for name, (owner, wanted) in ONLY_WITH.items():
                if chosen.get(owner, getattr(Config, owner)) not in wanted:
                    chosen.pop(name, None)
            key = tuple(chosen.items())
            if key in seen:
                continue
            seen.add(key)
            try:
                config = resolve(chosen)
                config = dataclasses.replace(config, batch_shares=shares_of_batch(config, processes))
            except UsageError as error:
                left_out[str(error)] += 1
                continue
            name = run_name(config)
            if name not in runs:
                flags = tuple(f"--{flag}={value}" for flag, value in chosen.items())
                runs[name] = SweepRun(config, flags, directory_of(config), measuring)
    if not runs:
        raise UsageError(f"main.py would refuse every combination: {next(iter(left_out))}")
    return list(runs.values()), dict(left_out)
