"""The settings of a run, from a command line or from its config.json."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config import PROBE_FLAGS, Config, check_applicable, from_settings, shares_of_batch
from normstudy.cli import RunError, UsageError
from normstudy.storage.files import read_json
from normstudy.storage.provenance import git_commit, package_versions
from normstudy.storage.run_directory import RunDirectory, directory_of, earlier_hash, identity_hash


def open_run(config: Config, processes: int = 1) -> tuple[Config, RunDirectory]:
    """Return the Config and the directory of a command line's run.

    A run that exists keeps its settings of probes. With c_dir, the settings come from its config.json, and runtime
    flags that are also given replace the stored ones. Raises RunError if c_dir has no readable config.json, if this
    number of processes would take batch statistics of other shares of a batch than the run does, or if probes are asked
    of a run that has finished without them. Raises UsageError if a given flag does not apply to the run of c_dir.
    """
    if config.c_dir is None:
        config = dataclasses.replace(config, batch_shares=shares_of_batch(config, processes))
        run = directory_of(config)
        return _with_probes_of(run, config), run
    run = RunDirectory(config.c_dir)
    if not run.path.is_dir():
        raise RunError(f"--c_dir={config.c_dir} is not a folder; give the folder of a run of this program")
    changes = {name: getattr(config, name) for name in ("overwrite", "download", "mix_versions")}
    given = config.given
    changes |= {name: getattr(config, name) for name in given}
    try:
        config = dataclasses.replace(stored_config(run), **changes)
    except RunError as error:
        raise RunError(f"{error}; to continue the run, give the flags that it was started with") from None
    check_applicable(config, given)
    if config.batch_shares != shares_of_batch(config, processes):
        way = f"torchrun with {config.batch_shares} processes and without --sync_bn"
        if config.batch_shares == 1:
            way = "one process or --sync_bn=True"
        raise RunError(
            f"{run.path} takes batch statistics of {config.batch_shares} share(s) of each batch; continue it with {way}"
        )
    return config, run


def _with_probes_of(run: RunDirectory, config: Config) -> Config:
    """Return the Config with the settings of probes that the run in the directory was started with, if there is one."""
    if config.overwrite or not run.config.exists():
        return config
    try:
        stored = stored_config(run)
    except RunError:
        return config  # prepare_run reports it
    if run.summary.exists() and config.probe_layers and not stored.probe_layers:
        raise RunError(
            f"{run.path} has finished without probes: use --overwrite=True to train it again with them, or "
            "--probe_layers=False to report it"
        )
    kept = {name: getattr(stored, name) for name in PROBE_FLAGS}
    changed = [f"--{name}={kept[name]}" for name in PROBE_FLAGS if kept[name] != getattr(config, name)]
    if changed and not run.summary.exists():
        print(f"{run.path} continues with the {' '.join(changed)} that it was started with", file=sys.stderr)
    return dataclasses.replace(config, **kept)


def is_same_run(settings: Mapping[str, Any], config: Config) -> bool:
    """Return whether stored settings, such as those in a saved state, are those of the run of a Config."""
    try:
        return from_settings(settings).identity() == config.identity()
    except (UsageError, AttributeError, TypeError):
        return False


def stored_config(run: RunDirectory) -> Config:
    """Return the Config in a run directory's config.json. Raises RunError if its settings are missing or invalid."""
    settings = read_json(run.config)
    missing = sorted(Config().identity().keys() - settings.keys())
    if missing:
        raise RunError(f"{run.config} lacks {', '.join(missing)}: it is from another version, or damaged")
    try:
        return from_settings(settings)
    except UsageError as error:
        raise RunError(f"{run.config} contains settings that do not fit together: {error}") from None


def read_summary(run: RunDirectory) -> dict[str, Any]:
    """Return the content of summary.json. Raises RunError if it is missing, damaged, or belongs to other settings."""
    summary = read_json(run.summary)
    if summary.get("status") not in ("done", "diverged"):
        raise RunError(f"{run.summary} is damaged: its status is {summary.get('status')!r}")
    config = stored_config(run)
    if summary.get("identity") not in (None, identity_hash(config), earlier_hash(config)):
        raise RunError(f"{run.summary} and {run.config} do not belong to the same run")
    return summary


def describe_run(config: Config, data: Mapping[str, object]) -> dict[str, object]:
    """Return the content of config.json: every setting, the versions, the git commit, and a description of the data."""
    settings = {name: value for name, value in vars(config).items() if name != "given"}
    return settings | {
        "versions": package_versions(),
        "git_commit": git_commit(),
        "data": dict(data),
    }


def reads_same_folder(run: RunDirectory, config: Config) -> bool:
    """Return whether the run's images came from the folder that `config` names, or are made from the seed."""
    try:
        stored = str(read_json(run.config).get("data_dir", ""))
    except RunError:
        return False
    return config.dataset == "Synthetic" or Path(stored).resolve() == Path(config.data_dir).resolve()
