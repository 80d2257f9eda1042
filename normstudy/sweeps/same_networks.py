"""Runs of a sweep that build the same network from other settings, of which only one is trained."""

import collections
from collections.abc import Sequence

from config import GROUPED_NORMS, canonical_norm
from normstudy.sweeps.grid import SweepRun


def without_repeats(runs: Sequence[SweepRun]) -> tuple[list[SweepRun], list[tuple[SweepRun, SweepRun]]]:
    """Return the runs, each network once, and the pairs (run left out, the run of the same network).

    Runs repeat each other if only norm_type and p_grouping differ and canonical_norm is the same. The one that is kept
    has the norm of canonical_norm (InstanceNorm, LayerNorm); if there is none, the first is kept.
    """
    by_network = collections.defaultdict[object, list[SweepRun]](list)
    for run in runs:
        norm, grouping = _canonical(run)
        settings = run.config.identity() | {"norm_type": norm, "p_grouping": grouping}
        by_network[tuple(settings.items())].append(run)
    kept, repeats = {}, []
    for same in by_network.values():
        [first, *_] = sorted(same, key=lambda run: run.config.norm_type != _canonical(run)[0])  # a stable sort
        kept[first.directory.path] = first
        repeats += [(run, first) for run in same if run is not first]
    return [run for run in runs if run.directory.path in kept], repeats


def describe_repeats(repeats: Sequence[tuple[SweepRun, SweepRun]]) -> str:
    """Return one line that says which norms build the same network, and how many runs are left out for it."""
    archs = collections.defaultdict[tuple[str, str], dict[str, None]](dict)  # {(left out, kept): networks in order}
    for run, kept in repeats:
        archs[_norm(run), _norm(kept)][run.config.arch] = None
    pairs = [f"{other} is {norm} ({', '.join(networks)})" for (other, norm), networks in archs.items()]
    return f"the same network is trained once: {'; '.join(pairs)}; runs left out: {len(repeats)}"


def _canonical(run: SweepRun) -> tuple[str, float | None]:
    return canonical_norm(run.config.arch, run.config.norm_type, run.config.p_grouping)


def _norm(run: SweepRun) -> str:
    """Return a run's norm as text: InstanceNorm, or GroupNorm with p_grouping=1."""
    norm, grouping = run.config.norm_type, run.config.p_grouping
    return f"{norm} with p_grouping={grouping:g}" if norm in GROUPED_NORMS else norm
