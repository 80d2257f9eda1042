"""The cache of decoded images."""

import sys
import warnings

import torch

from normstudy.datasets.splits import tensor_digest
from normstudy.storage import remove_leftovers, write_torch

CACHE_NAME = "decoded-images.pt"
LEFTOVER_SECONDS = 3600  # after which nobody still writes a cache


def write_cache(stored, cache, listing):
    """Writes what was read into the cache, with its checksum and the listing of what it was read from."""
    remove_leftovers(cache.parent, f".{cache.name}.*.tmp", LEFTOVER_SECONDS)
    try:
        write_torch(cache, stored | {"listing": listing, "digest": _cache_digest(stored)})
    except OSError as error:
        warnings.warn(f"the decoded images could not be kept in {cache}: {error.strerror}", stacklevel=3)


def _cache_digest(stored):
    names = repr(stored["classes"]) if "classes" in stored else ""
    return names + tensor_digest(
        *[stored[f"{split}_{part}"] for split in ("train", "test") for part in ("images", "labels")]
    )


def read_cache(cache, listing, image_size):
    """The cache's dict, or None where it is missing, stale or damaged."""
    if not cache.exists():
        return None
    try:
        stored = torch.load(cache, weights_only=True, map_location="cpu")
        if stored["listing"] != listing or stored["resized_to"] not in (None, image_size):
            return None
        if stored["digest"] == _cache_digest(stored):
            return stored
    except Exception:  # torch.load has no common base for what a damaged file raises; decoding again mends it
        pass
    print(f"{cache} is damaged: the images are read anew", file=sys.stderr)
    return None
