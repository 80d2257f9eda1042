"""Grids of runs: every combination of the values in a command line or preset."""

import collections
import dataclasses
import importlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from config import BATCH_NORMS, ONLY_WITH, SWITCHES, Config, applies, resolve, shares_of_batch
from normstudy.cli import UsageError
from normstudy.storage import RunDirectory, directory_of, measurement_name, run_name
from normstudy.sweeps.flag_values import split_words
from normstudy.sweeps.flags import MEASUREMENT_FLAGS
from normstudy.sweeps.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its settings, the flags that pass them to main.py, and its directory.

    measurement_flags: the preset's flags of measurements, {flag: one string per measurement}. measurements: those that
    the sweep makes, {name: the command line}.
    """

    config: Config
    flags: tuple[str, ...]
    directory: RunDirectory
    measurement_flags: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    measurements: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)


def expand(
    given: Mapping[str, Any], preset: str | None = None, processes: int = 1
) -> tuple[list[SweepRun], dict[str, int]]:
    """Return the runs of the given flags and preset, and {reason: number of combinations left out for it}.

    given: {flag: its values, or the value of a runtime flag}. processes: the number of processes per run. Each run
    occurs once, in the order of the product. Flags that do not apply to a combination are dropped. Raises UsageError if
    no run is left, or if a given flag applies to no combination.
    """
    runtime = {f.name for f in dataclasses.fields(Config) if f.metadata["runtime"]}
    shared = {name: value for name, value in given.items() if name in runtime}
    swept = {name: values for name, values in given.items() if name not in runtime}
    runs: dict[str, SweepRun] = {}
    left_out: collections.Counter[str] = collections.Counter()
    seen, used = set(), set[str]()
    for grid in PRESETS[preset].grids if preset else ({},):
        measuring = {name: _strings(grid[name]) for name in grid if name in MEASUREMENT_FLAGS}
        grid = {name: grid[name] for name in grid if name not in MEASUREMENT_FLAGS} | swept
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True)) | shared
            settings = vars(Config()) | chosen
            chosen = {name: value for name, value in chosen.items() if applies(name, settings)}
            used |= chosen.keys()
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
    for name, value in given.items():
        if name not in used and (name not in SWITCHES or value not in (False, (False,))):
            owner, wanted = ONLY_WITH[name]
            raise UsageError(f"--{name} applies to no run of this sweep; it needs --{owner}={' or '.join(wanted)}")
    return list(runs.values()), dict(left_out)


def with_measurements(run: SweepRun, kinds: Iterable[str], options: Mapping[str, Sequence[str]]) -> SweepRun:
    """Return the run with the measurements that the sweep makes of it.

    Their flags are those in `options`, {flag: strings}, or else the preset's, or none. They are parsed here, so that a
    wrong one ends the command before anything trains. Without batch statistics, the Hessian in train mode is that in
    eval mode: if equal flags ask for both, only the latter is measured.

    Raises UsageError if the flags name a run or cannot be split into words, or if two measurements of a run would have
    the same name.
    """
    measurements: dict[str, tuple[str, ...]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        flag = f"{kind}_flags"
        for given in options.get(flag) or run.measurement_flags.get(flag) or ("",):
            words = split_words(given, flag)
            # Commands are looked up by name, so that this package imports none, and measures can be added.
            command = importlib.import_module(f"run_{kind}")
            parse = getattr(command, "parse_args", None) or command.build_parser().parse_args
            parsed = parse(words)
            if parsed.runs or parsed.results_dir != parse([]).results_dir:
                raise UsageError(
                    f"--{flag} takes neither RUN nor --results_dir, because it measures the sweep's own runs"
                )
            name = measurement_name(kind, vars(parsed))
            if name in measurements:
                raise UsageError(f"--{flag} asks for {name} twice; add --tag=NAME to one of them")
            measurements[name] = (f"run_{kind}.py", str(run.directory.path), *words)
            settings[name] = vars(parsed)
    if run.config.norm_type not in BATCH_NORMS:
        for name, own in settings.items():
            if own.get("bn_mode") == "train" and own | {"bn_mode": "eval"} in settings.values():
                del measurements[name]
    return dataclasses.replace(run, measurements=measurements)


def _strings(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
