"""One image file as upright pixels, shrunk while it is decoded."""

import errno
import struct
import warnings
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from normstudy.cli import RunError, first_line

VERSION = 2  # of the pixels that decode_image returns; caches of another version are not used
DRAFT = 2  # a JPEG is decoded at a reduced size that is at least this factor above the wanted one
DAMAGE = (None, errno.EINVAL, errno.EOVERFLOW)  # errno of an OSError that comes from the content of a file
UPRIGHT = {  # {EXIF orientation: the transposition that makes the image upright}
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(Exception):
    """An image file that is damaged, or whose pixels have no meaning as RGB."""


class Decoded(NamedTuple):
    """The pixels of an image, (H, W, 3) uint8, and whether they were shrunk."""

    pixels: np.ndarray
    is_shrunk: bool


def decode_image(path: str, image_size: int | None = None) -> Decoded:
    """Decode an image file in any format that PIL reads, and turn it upright as its EXIF orientation says.

    An image with a side above image_size is resized to image_size × image_size pixels; all others keep their size.
    Raises Unreadable if the file is damaged, and RunError if it cannot be read for another reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about large images and damaged metadata
            return _decode(path, image_size)
    except UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except OSError as error:
        if error.errno in DAMAGE:
            raise Unreadable(first_line(error)) from None
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except MemoryError:
        raise
    except Exception as error:  # PIL raises many types for damaged files
        raise Unreadable(first_line(error)) from None


def _decode(path: str, image_size: int | None) -> Decoded:
    with Image.open(path) as image:
        if image_size is None or max(image.size) <= image_size:
            return Decoded(_upright_rgb(image), False)
        image.draft(None, (DRAFT * image_size, DRAFT * image_size))
        return Decoded(resize(_upright_rgb(image), image_size), True)


def resize(pixels: np.ndarray, image_size: int) -> np.ndarray:
    """Resize pixels (H, W, 3) to (image_size, image_size, 3): bilinear, and averaging where they shrink."""
    if pixels.shape[:2] == (image_size, image_size):
        return pixels
    size = (image_size, image_size)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image, upright and in 8-bit RGB, (H, W, 3).

    16 bits are scaled, and alpha is dropped. Raises ValueError for floating-point pixels.
    """
    image.load()  # a TIFF is turned upright here, and then says so
    orientation = _orientation(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    return np.asarray(image)


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation of a loaded image, or None if there is none or the metadata are damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error, OSError):
        return None
