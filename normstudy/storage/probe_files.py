"""Probe dicts: the names of their statistics, the files under probes/, and probes.json, their summary."""

import torch

from normstudy.cli import RunError
from normstudy.storage.files import read_json, read_torch, write_json, write_torch

ACTIVATION_KEYS = ("activation_norm", "activation_variance", "cosine_similarity", "stable_rank")
CONV_KEYS = ("std", "grad_norm")
PROBE_KEYS = CONV_KEYS + ACTIVATION_KEYS
SUMMARIZED = 100  # iterations in probes.json


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
    for key in PROBE_KEYS:
        values = probes[key].double()
        content[key] = {"first": values[0], "last": values[-1], "mean": values[chosen].nanmean(1)}
        content[key] = {name: [float(f"{x:.6g}") for x in part.tolist()] for name, part in content[key].items()}
    return content


def read_probes_summary(run):
    """The content of probes.json, or the same from the probe dicts where they alone are there; None without either."""
    return read_json(run.probes_summary) if run.probes_summary.exists() else _probes_summary(run)
