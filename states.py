"""What a run has recorded: the state that it continues from, its checkpoints and probe dicts, and whether all of
them are still what was written."""

import copy
import sys

import torch

import runs
from errors import RunError
from files import read_json, read_torch, sha256_of, write_csv, write_json, write_torch
from probes import KEYS

MEND = "--overwrite=True starts the run over"
SUMMARIZED = 100  # iterations in probes.json
BEGINNING = {"epoch": 0, "rows": [], "seconds": 0.0, "within": None, "files": {}, "history": []}


def begin(run, config, dataset):
    """Makes the directory ready for a run on these images, and returns their fingerprint: config.json is written, or
    found to speak of the same run and images. With overwrite, what the directory held goes.

    Raises RunError where the run is of other images, or where neither config.json nor a state tells.
    """
    fingerprint = dataset.fingerprint()
    if config.overwrite:
        run.clear()
    states, complaints = read_states(run)
    if not (run.config.exists() or states or complaints or run.metrics.exists() or run.summary.exists()):
        write_json(run.config, runs.describe(config, dataset, fingerprint))
        return fingerprint
    try:
        if runs.stored_config(run).identity() != config.identity():
            raise RunError(f"{run.config} holds the settings of another run")
        stored = read_json(run.config).get("data", {}).get("fingerprint")
    except RunError as error:
        known = [state["data"] for _, state in states if state["identity"] == config.identity()]
        if not known:
            raise RunError(f"{error}; {MEND}") from None
        stored = known[0]
        if stored == fingerprint:
            print(f"{error}: written again, as {run.last} knows the run", file=sys.stderr)
            write_json(run.config, runs.describe(config, dataset, fingerprint))
    if stored != fingerprint:
        raise RunError(
            f"{run.path} was trained on other images (fingerprint {stored}, here {fingerprint}): "
            f"use another --results_dir, or {MEND}"
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
            _take(state, config, fingerprint, model, optimizer, recorder)
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            complaints.append(f"{path} does not fit this run ({(str(error).splitlines() or [''])[0][:120]})")
            continue
        if path != run.last:
            print(f"{(complaints or [f'{run.last} is missing'])[0]}: going on from {path.name}", file=sys.stderr)
            run.last.unlink(missing_ok=True)  # the next state must not put it in the place of the whole one
        _check_versions(run, config, state["history"])
        return {name: state[name] for name in BEGINNING}
    if complaints:
        raise RunError(f"{'; '.join(complaints)}; {MEND}")
    if run.metrics.exists() and len(run.metrics.read_bytes().splitlines()) > 1:
        raise RunError(f"{run.last} is missing, though {run.metrics.name} tells of epochs: put it back, or {MEND}")
    return copy.deepcopy(BEGINNING)


def _take(state, config, fingerprint, model, optimizer, recorder):
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
    before, now = history[-1]["versions"]["torch"], runs.versions()["torch"]
    if before != now and not config.mix_versions:
        raise RunError(
            f"{run.path} was trained with PyTorch {before}, and this is {now}: use that version, "
            f"or --mix_versions=True (results.csv will name both), or {MEND}"
        )


def origin(step, device, processes=1):
    """What the numbers from a global step on are made with: an entry of the progress's "history"."""
    made_with = {"git_commit": runs.git_commit(), "device": device.type, "processes": processes}
    return {"step": step, "versions": runs.versions()} | made_with


def note_origin(history, entry):
    """Adds an entry where it differs from the last one, and says what the numbers are from now on made with."""
    before = history[-1] if history else entry
    names = {"git_commit": "version of this program", "device": "device", "processes": "number of processes"}
    for name, words in names.items():
        if name in before and before[name] != entry[name]:
            print(f"this run goes on with another {words}: {before[name]}, now {entry[name]}", file=sys.stderr)
    if not history or before | {"step": 0} != entry | {"step": 0}:
        history.append(entry)


# What was recorded


def save_checkpoint(run, config, model, epoch, files):
    """Writes the model of `epoch` alone; with keep=last the older ones go, once the new one is there.

    `files` gets the name and SHA-256 of what is there then.
    """
    path = run.checkpoint(epoch)
    files[run.name_of(path)] = write_torch(path, model.state_dict())
    if config.keep == "last":
        for older in run.checkpoints():
            if older != path:
                older.unlink()
                files.pop(run.name_of(older), None)


def save_probes(run, epoch, dump, files):
    """Writes the probe dict of `epoch`; `files` gets its name and SHA-256."""
    path = run.probes(epoch)
    files[run.name_of(path)] = write_torch(path, dump)


def load_probes(run):
    """All probe dicts of a run as one: the keys of section 6, concatenated over iterations. None without dumps.

    Raises RunError where one is damaged, or not of this run.
    """
    dumps = [read_torch(path) for path in run.probe_dumps()]
    if not dumps:
        return None
    try:
        joined = {"sites": dumps[0]["sites"]}
        for key in dumps[0]:
            if key != "sites":
                joined[key] = torch.cat([dump[key] for dump in dumps])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise RunError(f"the probe dicts in {run.path / 'probes'} do not fit together ({reason})") from None
    return joined


def load_probes_of_whole_batches(run):
    """As load_probes, without the last batch of each epoch where it is smaller than the others, for statistics that
    depend on the number of samples jump there. With it where no recorded batch is larger."""
    probes = load_probes(run)
    if probes is None:
        return None
    try:
        settings = read_json(run.config)
        samples, size = settings["data"]["train_samples"], settings["batch_size"]
        steps = -(-samples // size)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise RunError(f"{run.config} is damaged ({error})") from None
    whole = (probes["iteration"] + 1) % steps != 0
    if samples % size == 0 or not whole.any():
        return probes
    return {key: values if key == "sites" else values[whole] for key, values in probes.items()}


def summarize_probes(run):
    """Writes probes.json, where there are probe dicts."""
    content = _probes_summary(run)
    if content is not None:
        write_json(run.probes_summary, content)


def _probes_summary(run):
    """What of the probe dicts fits into a few kilobytes: each statistic by site at the first and the last iteration,
    and its mean over sites at up to SUMMARIZED evenly chosen iterations, of whole batches. None without probe dicts."""
    probes = load_probes_of_whole_batches(run)
    if probes is None or not len(probes["iteration"]):
        return None
    chosen = torch.linspace(0, len(probes["iteration"]) - 1, SUMMARIZED).round().long().unique()
    content = {"sites": probes["sites"], "iteration": probes["iteration"][chosen].tolist()}
    for key in KEYS:
        values = probes[key].double()
        content[key] = {"first": values[0], "last": values[-1], "mean": values[chosen].nanmean(1)}
        content[key] = {name: [float(f"{x:.6g}") for x in part.tolist()] for name, part in content[key].items()}
    return content


def read_probes_summary(run):
    """The content of probes.json, or the same from the probe dicts where they alone are there; None without either."""
    return read_json(run.probes_summary) if run.probes_summary.exists() else _probes_summary(run)


def changed_files(run, summary):
    """The names of a finished run's files that are not what the run wrote; they may be deleted to save space."""
    files = summary.get("files", {}).items()
    return [name for name, digest in files if (run.path / name).exists() and sha256_of(run.path / name) != digest]


def are_metrics_whole(run):
    """Whether a finished run's metrics.csv is what the run wrote."""
    name = run.name_of(run.metrics)
    digest = runs.read_summary(run).get("files", {}).get(name)
    return run.metrics.exists() and digest in (None, sha256_of(run.metrics))


def mend_metrics(run):
    """Writes metrics.csv again from last.pt, which holds its rows. Raises RunError where that is not whole."""
    states, complaints = read_states(run)
    if not states:
        raise RunError("; ".join(complaints) or f"{run.last} is missing")
    print(f"{run.metrics} is missing or damaged: written again from {states[0][0].name}", file=sys.stderr)
    write_csv(run.metrics, runs.METRICS_COLUMNS, states[0][1]["rows"])
