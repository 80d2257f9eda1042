"""The state that a run continues from: last.pt, and the check that it belongs to this run and these images."""

import copy
import sys

import torch

from normstudy.cli import RunError
from normstudy.storage.files import read_json, read_torch, write_json, write_torch
from normstudy.storage.provenance import git_commit, versions
from normstudy.storage.run_settings import describe_run, stored_config

START_OVER = "--overwrite=True starts the run over"
BEGINNING = {"epoch": 0, "rows": [], "seconds": 0.0, "within": None, "files": {}, "history": []}


def begin_run(run, config, dataset):
    """Makes the directory ready for a run on these images, and returns their fingerprint: config.json is written, or
    found to speak of the same run and images. With overwrite, what the directory held goes.

    Raises RunError where the run is of other images, or where neither config.json nor a state tells.
    """
    fingerprint = dataset.fingerprint()
    if config.overwrite:
        run.clear()
    states, complaints = read_states(run)
    if not (run.config.exists() or states or complaints or run.metrics.exists() or run.summary.exists()):
        write_json(run.config, describe_run(config, dataset, fingerprint))
        return fingerprint
    try:
        if stored_config(run).identity() != config.identity():
            raise RunError(f"{run.config} holds the settings of another run")
        stored = read_json(run.config).get("data", {}).get("fingerprint")
    except RunError as error:
        known = [state["data"] for _, state in states if state["identity"] == config.identity()]
        if not known:
            raise RunError(f"{error}; {START_OVER}") from None
        stored = known[0]
        if stored == fingerprint:
            print(f"{error}: written again, as {run.last} knows the run", file=sys.stderr)
            write_json(run.config, describe_run(config, dataset, fingerprint))
    if stored != fingerprint:
        raise RunError(
            f"{run.path} was trained on other images (fingerprint {stored}, here {fingerprint}): "
            f"use another --results_dir, or {START_OVER}"
        )
    return fingerprint


def save_state(run, config, fingerprint, model, optimizer, recorder, progress):
    """Writes last.pt: everything that the run needs to continue. The state before it becomes previous.pt.

    progress, beside the weights: "epoch" (whole epochs), "rows" of metrics.csv, "seconds", "within" (the losses of a
    begun epoch), "files" ({name: SHA-256} of what was written), "history" (versions that the run was made with).
    """
    random_states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_states["cuda"] = torch.cuda.get_rng_state_all()
    state = {
        "identity": config.identity(),
        "data": fingerprint,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "probes": None if recorder is None else recorder.state_dict(),
        "random_states": random_states,
    }
    write_torch(run.last, state | progress, run.previous)


def read_states(run):
    """([(path, state) of whole states, the newest first], [a complaint for each damaged one])."""
    states, complaints = [], []
    for path in (run.last, run.previous):
        if path.exists():
            try:
                state = read_torch(path)
                missing = {"identity", "data", "model", "optimizer", "probes", "random_states", *BEGINNING} - set(state)
                if missing:
                    raise RunError(f"{path} lacks {', '.join(sorted(missing))}: it is from another program or version")
                states.append((path, state))
            except RunError as error:
                complaints.append(str(error))
            except TypeError:
                complaints.append(f"{path} is not a state of a run")
    return states, complaints


def load_state(run, config, fingerprint, model, optimizer, recorder):
    """Takes the newest whole state back into model, optimizer and recorder, and returns the progress.

    Where nothing was recorded, that of a run that has not begun. Raises RunError where states are there and none can
    be used, and where the state is of another version of PyTorch, unless config.mix_versions.
    """
    states, complaints = read_states(run)
    for path, state in states:
        try:
            _restore(state, config, fingerprint, model, optimizer, recorder)
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            complaints.append(f"{path} does not fit this run ({(str(error).splitlines() or [''])[0][:120]})")
            continue
        if path != run.last:
            print(f"{(complaints or [f'{run.last} is missing'])[0]}: going on from {path.name}", file=sys.stderr)
            run.last.unlink(missing_ok=True)  # the next state must not put it in the place of the whole one
        _check_versions(run, config, state["history"])
        return {name: state[name] for name in BEGINNING}
    if complaints:
        raise RunError(f"{'; '.join(complaints)}; {START_OVER}")
    if run.metrics.exists() and len(run.metrics.read_bytes().splitlines()) > 1:
        raise RunError(
            f"{run.last} is missing, though {run.metrics.name} tells of epochs: put it back, or {START_OVER}"
        )
    return copy.deepcopy(BEGINNING)


def _restore(state, config, fingerprint, model, optimizer, recorder):
    if state["identity"] != config.identity():
        raise ValueError("it belongs to other settings")
    if state["data"] != fingerprint:
        raise ValueError("it belongs to other images")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if recorder is not None:
        recorder.load_state_dict(state["probes"])
    torch.set_rng_state(state["random_states"]["cpu"])
    if torch.cuda.is_available() and "cuda" in state["random_states"]:
        torch.cuda.set_rng_state_all(state["random_states"]["cuda"])


def _check_versions(run, config, history):
    """Numbers of two versions of PyTorch are not mixed unless the user says so."""
    before, now = history[-1]["versions"]["torch"], versions()["torch"]
    if before != now and not config.mix_versions:
        raise RunError(
            f"{run.path} was trained with PyTorch {before}, and this is {now}: use that version, "
            f"or --mix_versions=True (results.csv will name both), or {START_OVER}"
        )


def state_origin(step, device, processes=1):
    """What the numbers from a global step on are made with: an entry of the progress's "history"."""
    made_with = {"git_commit": git_commit(), "device": device.type, "processes": processes}
    return {"step": step, "versions": versions()} | made_with


def note_origin(history, entry):
    """Adds an entry where it differs from the last one, and says what the numbers are from now on made with."""
    before = history[-1] if history else entry
    names = {"git_commit": "version of this program", "device": "device", "processes": "number of processes"}
    for name, words in names.items():
        if name in before and before[name] != entry[name]:
            print(f"this run goes on with another {words}: {before[name]}, now {entry[name]}", file=sys.stderr)
    if not history or before | {"step": 0} != entry | {"step": 0}:
        history.append(entry)
