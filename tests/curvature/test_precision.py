"""Float32 without TF32, bf16 or autocast."""

from typing import Any

import pytest
import torch
from torch import nn

from normstudy.curvature import full_float32, hessian_matvec

HAS_NEW_SETTINGS = hasattr(torch.backends, "fp32_precision")


def matmul_precision():
    if HAS_NEW_SETTINGS:
        return torch.backends.cuda.matmul.fp32_precision
    return torch.get_float32_matmul_precision()


def test_low_precision_products_are_off_inside_and_back_after():
    torch.set_float32_matmul_precision("medium")
    try:
        before = matmul_precision()
        with full_float32():
            assert matmul_precision() == ("ieee" if HAS_NEW_SETTINGS else "highest")
        assert matmul_precision() == before
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not HAS_NEW_SETTINGS, reason="this PyTorch has no settings per library")
def test_the_settings_of_each_library_are_restored():
    backends: Any = torch.backends
    convolutions = backends.mkldnn.conv
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "bf16"
    try:
        with full_float32():
            assert convolutions.fp32_precision == "ieee"
        assert convolutions.fp32_precision == "bf16"
    finally:
        convolutions.fp32_precision = before


@pytest.mark.parametrize(
    "context", [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.no_grad]
)
def test_a_product_is_the_same_whatever_surrounds_it(context):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    images, labels = torch.randn(4, 3, 6, 6), torch.arange(4)
    vector = torch.randn(sum(each.numel() for each in model.parameters()))
    expected = hessian_matvec(model, [(images, labels)])[0](vector)
    with context():
        assert torch.equal(hessian_matvec(model, [(images.clone(), labels)])[0](vector.clone()), expected)


@pytest.mark.parametrize("before", [False, True])
def test_the_choice_of_kernels_is_timed_during_a_product_and_left_as_it_was(monkeypatch, before):
    seen = []

    class Model(nn.Linear):
        def forward(self, x):
            seen.append(torch.backends.cudnn.benchmark)
            return super().forward(x)

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    matvec, dimension = hessian_matvec(Model(3, 2), [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))])
    matvec(torch.ones(dimension))
    assert set(seen) == {True}
    assert torch.backends.cudnn.benchmark == before
