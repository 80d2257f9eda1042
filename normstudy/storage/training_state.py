"""The state that a run continues from (last.pt), and checks that it belongs to this run and these images."""

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from config import Config
from normstudy.cli import RunError, first_line
from normstudy.storage.files import read_json, read_torch, write_json, write_torch
from normstudy.storage.provenance import package_versions
from normstudy.storage.run_directory import RunDirectory
from normstudy.storage.run_settings import describe_run, is_same_run, stored_config

START_OVER = "use --overwrite=True to start the run over"
NO_PROGRESS: dict[str, Any] = {"epoch": 0, "rows": [], "seconds": 0.0, "within": None, "files": {}, "history": []}
NO_PROGRESS |= {"reached_loss": False}
LATER_KEYS = {"reached_loss"}  # states of earlier versions lack them
STATE_KEYS = {"identity", "data", "model", "optimizer", "probes", *NO_PROGRESS} - LATER_KEYS


class Stateful(Protocol):
    """A network, an optimizer or a recorder, whose state can be saved and loaded."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> object: ...


StatefulParts = Mapping[str, Stateful | None]  # "model", "optimizer" and "probes", which may be None


def prepare_run(run: RunDirectory, config: Config, data: Mapping[str, Any]) -> str:
    """Prepare the directory for a run on the images that `data` describes; return their fingerprint.

    Writes config.json, or checks that the existing one is of the same run and images. With overwrite, the directory is
    cleared first. Raises RunError if the run used other images, or if neither config.json nor a state tells which.
    """
    fingerprint: str = data["fingerprint"]
    if config.overwrite:
        run.clear()
    states, complaints = read_states(run)
    if not (run.config.exists() or states or complaints or run.metrics.exists() or run.summary.exists()):
        write_json(run.config, describe_run(config, data))
        return fingerprint
    try:
        if stored_config(run).identity() != config.identity():
            raise RunError(f"{run.config} contains the settings of another run")
        stored = read_json(run.config).get("data", {}).get("fingerprint")
    except RunError as error:
        known = [state["data"] for _, state in states if is_same_run(state["identity"], config)]
        if not known:
            raise RunError(f"{error}; {START_OVER}") from None
        stored = known[0]
        if stored == fingerprint:
            print(f"{error}; rewriting it, because {run.last} belongs to this run", file=sys.stderr)
            write_json(run.config, describe_run(config, data))
    if stored != fingerprint:
        raise RunError(
            f"{run.path} was trained on other images (fingerprint {stored}, here {fingerprint}): "
            f"use another --results_dir, or {START_OVER}"
        )
    return fingerprint


def save_state(
    run: RunDirectory, config: Config, fingerprint: str, parts: StatefulParts, progress: dict[str, Any]
) -> None:
    """Write last.pt, with everything that the run needs to continue. The old last.pt becomes previous.pt.

    Random states are not needed: data order and flips are functions of the seed and the epoch.

    progress: "epoch" (completed epochs), "rows" of metrics.csv, "seconds", "within" (the losses of a partial epoch),
    "files" ({name: SHA-256} of written files), "history" (see history_entry).
    """
    states = {name: None if part is None else part.state_dict() for name, part in parts.items()}
    identity = {"identity": config.identity(), "data": fingerprint}
    write_torch(run.last, identity | states | progress, run.previous)


def read_states(run: RunDirectory) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """Return [(path, state)] of the intact states, newest first, and a complaint for each damaged one."""
    states, complaints = [], []
    for path in (run.last, run.previous):
        if path.exists():
            try:
                state = read_torch(path)
                missing = STATE_KEYS - set(state)
                if missing:
                    raise RunError(f"{path} lacks {', '.join(sorted(missing))}: it is from another program or version")
                states.append((path, state))
            except RunError as error:
                complaints.append(str(error))
            except TypeError:
                complaints.append(f"{path} is not the saved state of a run")
    return states, complaints


def load_state(run: RunDirectory, config: Config, fingerprint: str, parts: StatefulParts) -> dict[str, Any]:
    """Load the newest intact state into the parts; return the progress (see save_state).

    If nothing was recorded, this is NO_PROGRESS. Raises RunError if states or epochs were recorded but no state can be
    used, or if the state comes from another version of PyTorch, unless config.mix_versions is set.
    """
    states, complaints = read_states(run)
    for path, state in states:
        try:
            _restore(state, config, fingerprint, parts)
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            complaints.append(f"{path} does not fit this run ({first_line(error)})")
            continue
        if path != run.last:
            print(f"{(complaints or [f'{run.last} is missing'])[0]}; continuing from {path.name}", file=sys.stderr)
            run.last.unlink(missing_ok=True)  # or the next save would replace the intact state with it
        _check_versions(run, config, state["history"])
        return {name: state.get(name, nothing) for name, nothing in NO_PROGRESS.items()}
    if complaints:
        raise RunError(f"{'; '.join(complaints)}; {START_OVER}")
    if run.metrics.exists() and len(run.metrics.read_bytes().splitlines()) > 1:
        raise RunError(f"{run.last} is missing, but {run.metrics.name} lists epochs: put it back, or {START_OVER}")
    return copy.deepcopy(NO_PROGRESS)


def _restore(state: Mapping[str, Any], config: Config, fingerprint: str, parts: StatefulParts) -> None:
    if not is_same_run(state["identity"], config):
        raise ValueError("it belongs to other settings")
    if state["data"] != fingerprint:
        raise ValueError("it belongs to other images")
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(state[name])


def _check_versions(run: RunDirectory, config: Config, history: list[dict[str, Any]]) -> None:
    """Raise RunError if another version of PyTorch trained the run last, unless config.mix_versions is set."""
    before, now = history[-1]["versions"]["torch"], package_versions()["torch"]
    if before != now and not config.mix_versions:
        raise RunError(
            f"{run.path} was trained with PyTorch {before}, but this is PyTorch {now}: use that version "
            f"or --mix_versions=True (results.csv will name both), or {START_OVER}"
        )
