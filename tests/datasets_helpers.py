"""Small data sets for tests, comparisons between them, and folders of images."""

import itertools

import torch
from PIL import Image

from config import parse_args
from normstudy import datasets
from normstudy.datasets import Dataset, Split, training_batch, training_order


def load(**flags):
    return datasets.load(parse_args([f"--{name}={value}" for name, value in flags.items()]))


def random_images(count, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def random_split(count, num_classes=2, seed=0, **size):
    return Split(random_images(count, seed=seed, **size), torch.arange(count) % num_classes)


def training_batches(split, batch_size, seed, epoch, image_size=None, first_step=0):
    """Yield the training batches of one epoch from step `first_step` on."""
    order, flips = training_order(split, seed, epoch)
    for start in range(first_step * batch_size, len(split), batch_size):
        batch = slice(start, start + batch_size)
        yield training_batch(split, order[batch], flips[batch], image_size)


def numbered_split(count, num_classes=1):
    """Return a split whose image i is filled with i, so that it is recognizable after flips and scaling."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4).contiguous()
    return Split(images, torch.arange(count) % num_classes)


def numbers(images):
    """Return the numbers of the samples of a numbered split in these network inputs."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def same_dataset(a, b):
    return a.classes == b.classes and same(a.train, b.train) and same(a.test, b.test)


def same_batches(a, b):
    a, b = list(a), list(b)
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(torch.equal(x, y) and torch.equal(s, t) for (x, s), (y, t) in pairs)


def flip_byte(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def write_image(path, pixels, **options):
    """Write pixels (3, H, W) uint8 in the format of the path's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, **options)


def make_folder(root, extension="bmp", height=8, width=8, seed=0):
    """Write three training and two test images of each of two classes; return their Dataset."""
    splits = {}
    for name, count in (("train", 3), ("test", 2)):
        images = random_images(2 * count, height, width, seed=seed + count)
        labels = torch.tensor([0] * count + [1] * count)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            write_image(root / name / ("ant", "bee")[label] / f"{index}.{extension}", image)
        splits[name] = Split(images, labels)
    return Dataset(**splits, classes=("ant", "bee"))


def make_folder_of_two_sizes(root):
    """Write flat images in two sizes; return their colors, which resizing must not change."""
    colours = random_images(4)[:, :, :1, :1]
    for colour, side, (split, label) in zip(
        colours, (8, 12, 12, 8), itertools.product(("train", "test"), ("ant", "bee")), strict=True
    ):
        write_image(root / split / label / "image.png", colour.expand(3, side, side + 1))
    return colours
