"""Errors from the choice of images: algebra of the two-way layout, and coverage over draws from a known pool."""

import functools
import math

import pytest
import torch
from curvature_helpers import symmetric
from scipy import stats
from torch import nn
from torch.func import functional_call, hessian, vmap
from torch.nn import functional as F

from normstudy.curvature import ImageBlocks, layout_errors, spectrum

POOL, CLASSES, IMAGES, BLOCKS = 2000, 5, 60, 10


def test_the_errors_are_those_of_the_two_way_layout():
    """Against sums of squares written out, in float64."""
    values = torch.randn(7, 10, dtype=torch.float64) + torch.randn(7, 1) + 2 * torch.randn(1, 10)
    mean = sum(float(value) for value in values.flatten()) / 70
    rows = [sum(row.tolist()) / 10 for row in values]
    columns = [sum(column.tolist()) / 7 for column in values.T]
    ms_rows = 10 * sum((row - mean) ** 2 for row in rows) / 6
    ms_columns = 7 * sum((column - mean) ** 2 for column in columns) / 9
    rest = sum((float(values[p, b]) - rows[p] - columns[b] + mean) ** 2 for p in range(7) for b in range(10)) / 54
    found = layout_errors(values)
    assert found.probe == pytest.approx(math.sqrt(ms_rows / 70))
    assert found.image == pytest.approx(math.sqrt(ms_columns / 70))
    assert found.total == pytest.approx(math.sqrt((ms_rows + ms_columns - rest) / 70))
    numerator = (ms_rows + ms_columns - rest) ** 2
    assert found.degrees == pytest.approx(numerator / (ms_rows**2 / 6 + ms_columns**2 / 9 + rest**2 / 54))
    assert found.probe == pytest.approx(float(values.mean(1).std()) / math.sqrt(7))


def test_all_images_of_the_pool_have_no_error():
    values = torch.randn(6, 5, dtype=torch.float64) + 3 * torch.randn(1, 5)
    every = layout_errors(values, pool_fraction=1.0)
    assert every.image == 0
    assert every.total == every.probe
    assert layout_errors(values).total > every.total


@pytest.mark.parametrize(("shape", "known"), [((1, 5), "image"), ((5, 1), "probe"), ((1, 1), None)])
def test_an_error_that_cannot_be_known_is_nan(shape, known):
    found = layout_errors(torch.randn(shape, dtype=torch.float64))
    assert {name for name in ("probe", "image", "total") if not math.isnan(getattr(found, name))} == {known} - {None}


@functools.cache
def pool(width: int):
    """Return the Hessian of each image of a pool, (POOL, d, d), for a small trained network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        labels = torch.arange(POOL) % CLASSES
        centres = 0.4 * torch.randn(CLASSES, width, generator=generator)
        images = (centres[labels] + torch.randn(POOL, width, generator=generator)).double()
        model = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    parameters = dict(model.named_parameters())
    sizes = [each.numel() for each in parameters.values()]
    flat = torch.cat([each.detach().reshape(-1) for each in parameters.values()])

    def loss(vector, image, label):
        parts = zip(parameters.items(), vector.split(sizes), strict=True)
        outputs = functional_call(model, {name: part.view_as(p) for (name, p), part in parts}, (image[None],))
        return F.cross_entropy(outputs, label[None])

    each = vmap(hessian(loss), (None, 0, 0))
    return torch.cat([each(flat, x, y).detach() for x, y in zip(images.split(250), labels.split(250), strict=True)])


def a_draw(hessians, seed):
    """Return ImageBlocks of a class-balanced draw from the pool, and the mean Hessian of the draw."""
    generator = torch.Generator().manual_seed(seed)
    of_class = IMAGES // CLASSES
    chosen = [torch.randperm(POOL // CLASSES, generator=generator)[:of_class] * CLASSES + c for c in range(CLASSES)]
    blocks = [hessians[torch.cat(chosen)[index::BLOCKS]].mean(0) for index in range(BLOCKS)]
    products = [functools.partial(torch.mv, block) for block in blocks]
    return ImageBlocks(products, [IMAGES // BLOCKS] * BLOCKS, POOL), torch.stack(blocks).mean(0)


@pytest.mark.parametrize("width", [10, 24])
def test_total_errors_cover_the_pool(width):
    hessians = pool(width)
    whole = hessians.mean(0)
    trace, top = whole.trace().item(), torch.linalg.eigvalsh(whole)[-1].item()
    square = (whole.square().sum() / len(whole) - (whole.trace() / len(whole)) ** 2).item()
    covered, covered_by_probes, bracketed, widened, variances = [], [], [], [], []
    for seed in range(200):
        blocks, mean = a_draw(hessians, seed)
        generator = torch.Generator().manual_seed(seed)
        found = spectrum(
            functools.partial(torch.mv, mean), len(mean), 2, 12, generator, trace_probes=12, image_blocks=blocks
        )
        half = stats.t.ppf(0.975, found.trace_degrees_of_freedom) * found.trace_total_error
        covered.append(abs(found.trace - trace) <= half)
        covered_by_probes.append(abs(found.trace - trace) <= stats.t.ppf(0.975, 13) * found.trace_standard_error)
        bracketed.append(found.max_eigen_cross_fitted <= top <= found.max_eigen)
        error = found.max_eigen_image_error
        widened.append(found.max_eigen_cross_fitted - error <= top <= found.max_eigen + error)
        variances.append(found.eigen_variance)

    def share(cases):
        return sum(cases) / len(cases)

    assert 0.92 <= share(covered) <= 0.98
    assert share(covered_by_probes) < 0.87  # so the error of the images is needed
    assert share(bracketed) >= (
        0.9 if width == 24 else 0.6
    )  # the bias exceeds the noise only if d is much larger than m
    assert share(widened) >= 0.9
    mean_variance, error = torch.tensor(variances).mean().item(), torch.tensor(variances).std().item() / math.sqrt(200)
    assert abs(mean_variance - square) <= 4 * error


def test_a_single_block_has_no_image_error_and_the_same_estimates():
    matrix, _ = symmetric(torch.randn(40, dtype=torch.float64))
    product = functools.partial(torch.mv, matrix)
    plain = spectrum(product, 40, 2, 5, torch.Generator().manual_seed(0), trace_probes=6)
    single = ImageBlocks([product], [7])
    found = spectrum(product, 40, 2, 5, torch.Generator().manual_seed(0), trace_probes=6, image_blocks=single)
    for name in ("trace", "trace_standard_error", "eigen_variance", "max_eigen", "products", "samples"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name), rel=1e-12), name
    assert math.isnan(found.trace_image_error)
    assert math.isnan(found.max_eigen_cross_fitted)


def test_blocks_of_unequal_size_have_the_mean_over_images():
    matrices = [symmetric(torch.randn(30, dtype=torch.float64))[0] for _ in range(3)]
    sizes = [4, 3, 3]
    whole = torch.stack([size * matrix for size, matrix in zip(sizes, matrices, strict=True)]).sum(0) / 10
    product = functools.partial(torch.mv, whole)
    blocks = ImageBlocks([functools.partial(torch.mv, matrix) for matrix in matrices], sizes)
    found = spectrum(
        product,
        30,
        1,
        30,
        torch.Generator().manual_seed(0),
        trace_probes=3,
        image_blocks=blocks,
    )
    plain = spectrum(product, 30, 1, 30, torch.Generator().manual_seed(0), trace_probes=3)
    assert found.trace == pytest.approx(plain.trace)
    assert found.max_eigen == pytest.approx(torch.linalg.eigvalsh(whole)[-1].item())
    assert found.products == plain.products + 1 + 16  # the error of the largest eigenvalue, and the halves
    assert found.block_errors["all"].image == pytest.approx(found.trace_image_error)
