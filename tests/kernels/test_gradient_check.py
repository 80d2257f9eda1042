"""A loss keeps its bits, or is NaN where a gradient is not finite."""

import math

import pytest
import torch

from normstudy.kernels import loss_or_nan

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [-math.inf], [math.inf, -math.inf]])
def test_a_loss_is_kept_to_the_bit_unless_a_gradient_is_not_finite(bad, device):
    loss = torch.tensor(0.1, device=device)
    gradients = [torch.full((3, 4), 1e6, device=device), torch.zeros(5, device=device), torch.randn(7, device=device)]
    assert torch.equal(loss_or_nan(loss, gradients), loss)
    gradients[0].view(-1)[: len(bad)] = torch.tensor(bad)
    assert loss_or_nan(loss, gradients).isnan()
