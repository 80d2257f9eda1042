"""Probe dicts: the names of their statistics, the files under probes/, and their summary probes.json."""

from collections.abc import Mapping
from typing import Any

from normstudy.cli import RunError, first_line
from normstudy.storage.files import read_json, read_torch, write_json, write_torch
from normstudy.storage.run_directory import RunDirectory

ACTIVATION_KEYS = ("activation_norm", "activation_variance", "cosine_similarity", "stable_rank")
CONV_KEYS = ("std", "grad_norm")
PROBE_KEYS = CONV_KEYS + ACTIVATION_KEYS  # of the outputs of layers
WEIGHT_KEYS = ("weight_norm", "update_angle")  # of their weights; runs of earlier versions lack them
EFFECTIVE_RATE = "effective_rate"  # of weights, computed from what is recorded (see effective_rates)
SUMMARIZED_ITERATIONS = 100  # maximum in probes.json


def save_probes(run: RunDirectory, epoch: int, dump: Mapping[str, Any], files: dict[str, str]) -> None:
    """Write the probe dict of an epoch, and add its name and SHA-256 to `files`."""
    path = run.probes(epoch)
    files[run.name_of(path)] = write_torch(path, dump)


def load_probes(run: RunDirectory) -> dict[str, Any] | None:
    """Return all probe dicts of a run as one, concatenated over T iterations, or None if there are none.

    The dict has "iteration" (T,) int64, "learning_rate" (T,) float64, "sites" {"conv": names, "activation": names,
    "weight": names}, and a (T, sites) float32 tensor for each of PROBE_KEYS and WEIGHT_KEYS. What an earlier version
    did not record is missing. Raises RunError if a probe dict is damaged or does not match the others.
    """
    import torch

    dumps = [read_torch(path) for path in run.probe_dumps()]
    if not dumps:
        return None
    try:
        joined = {"sites": dumps[0]["sites"]}
        required = ("iteration", *PROBE_KEYS)
        for key in dumps[0]:
            if key != "sites" and (key in required or all(key in dump for dump in dumps)):
                joined[key] = torch.cat([dump[key] for dump in dumps])
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"the probe dicts in {run.path / 'probes'} do not fit together ({first_line(error)})") from None
    return joined


def load_probes_of_whole_batches(run: RunDirectory) -> dict[str, Any] | None:
    """Return the probes of load_probes without the smaller last batch of each epoch.

    Statistics that depend on the number of samples jump at that batch. It is kept if no larger batch was recorded.
    """
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


def summarize_probes(run: RunDirectory) -> None:
    """Write probes.json if the run has probe dicts."""
    content = _probes_summary(run)
    if content is not None:
        write_json(run.probes_summary, content)


def _probes_summary(run: RunDirectory) -> dict[str, Any] | None:
    """Return the content of probes.json (a few kilobytes), or None if there are no probe dicts.

    For each statistic, it holds the values by site at the first and the last iteration, and the mean over sites at up
    to SUMMARIZED_ITERATIONS evenly spaced iterations. Smaller last batches are left out.
    """
    import torch

    probes = load_probes_of_whole_batches(run)
    if probes is None or not len(probes["iteration"]):
        return None
    chosen = torch.linspace(0, len(probes["iteration"]) - 1, SUMMARIZED_ITERATIONS).round().long().unique()
    content = {"sites": probes["sites"], "iteration": probes["iteration"][chosen].tolist()}
    probes |= effective_rates(run, probes)
    for key in (*PROBE_KEYS, *(key for key in (*WEIGHT_KEYS, EFFECTIVE_RATE) if key in probes)):
        values = probes[key].double()
        parts = {"first": values[0], "last": values[-1], "mean": values[chosen].nanmean(1)}
        content[key] = {name: [float(f"{x:.6g}") for x in part.tolist()] for name, part in parts.items()}
    return content


def effective_rates(run: RunDirectory, probes: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"effective_rate": (T, weights)}, or {} if an earlier version did not record the weights.

    The effective learning rate is that of a weight w whose scale does not change the output: rate/‖w‖² for SGD, and
    rate/‖w‖ for AdamW.
    """
    if not all(key in probes for key in (*WEIGHT_KEYS, "learning_rate")):
        return {}
    power = 1 if read_json(run.config).get("optimizer") == "adamw" else 2
    return {EFFECTIVE_RATE: probes["learning_rate"].double()[:, None] / probes["weight_norm"].double() ** power}


def read_probes_summary(run: RunDirectory) -> dict[str, Any] | None:
    """Return the content of probes.json, computed from the probe dicts if it is missing, or None without either."""
    return read_json(run.probes_summary) if run.probes_summary.exists() else _probes_summary(run)
