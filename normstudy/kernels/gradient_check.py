"""Whether gradients are finite, without waiting for the device."""

from collections.abc import Sequence

import torch

from normstudy.kernels.switch import form_of


def loss_or_nan(loss: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The loss; NaN if any gradient is not finite."""
    if form_of(loss, "gradient_check") == "device":
        total = torch.nn.utils.get_total_norm(gradients)
    else:
        total = torch.stack([gradient.sum() for gradient in gradients]).sum()
    return loss + 0 * total  # 0·∞ is NaN
