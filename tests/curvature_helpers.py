"""Networks, images and exact answers in float64 for the tests of curvature."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from networks_helpers import shrink
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from config import convolution_of
from layer_defs import build_conv, build_norm
from models import Network, build_model

NETWORKS: dict[str, dict[str, Any]] = {
    "vgg": {"arch": "vgg"},
    "resnet-56": {"arch": "resnet-56"},
    "resnet-56 preact": {"arch": "resnet-56", "preact": True, "skipinit": True},
    "vit": {"arch": "vit", "image_size": 4, "patch_size": 2},
}
PRODUCTS = pytest.mark.parametrize(
    "options", [{"curvature": "hessian"}, {"curvature": "ggn"}, {"keep_graphs": True}], ids=["hessian", "ggn", "kept"]
)
Model = TypeVar("Model", bound=nn.Module)


def perturbed(model: Model) -> Model:
    """Return the model in float64, with its parameters and running statistics moved away from special values."""
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.3 * torch.rand_like(buffer))
    return model


def two_layers(norm_type: str, conv_type: str = "Plain") -> nn.Sequential:
    """Return two convolutions with norms and a classifier: about 200 parameters, for 5×5 images with 2 channels."""
    conv_type, bias = convolution_of(norm_type, conv_type)
    layers: list[nn.Module] = []
    for channels in (2, 3):
        layers.append(build_conv(conv_type, channels, 3, stride=2, bias=bias))
        layers += build_norm(norm_type, 3, 3)
    return perturbed(nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3)))


def network(name: str, norm_type: str) -> Network:
    """Return one of NETWORKS with few layers but every kind of layer, perturbed where it starts at special values."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        model = build_model(norm_type=norm_type, num_classes=4, **NETWORKS[name]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 or parameter is model.classifier.weight:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in model.buffers():
            buffer.add_(0.3 * torch.rand_like(buffer))
    return model


def images_and_labels(
    samples: int = 6, channels: int = 2, size: int = 5, classes: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images and labels, by default with the sizes that `two_layers` expects."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, channels, size, size, dtype=torch.float64, generator=generator)
    return images, torch.arange(samples) % classes


def rgb_images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Return four random images for `network`, so small that the last feature maps have a single position."""
    return images_and_labels(4, 3, 4, 4)


def in_two_batches(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Split the images and labels into batches of different sizes."""
    return [(images[:4], labels[:4]), (images[4:], labels[4:])]


def logits_of_flat_parameters(
    model: nn.Module,
) -> tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], torch.Tensor]:
    """Return the logits as a function of (flat parameters, images), and the model's flat parameters."""
    parameters = dict(model.named_parameters())
    sizes = [parameter.numel() for parameter in parameters.values()]

    def logits(vector: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        parts = zip(parameters.items(), vector.split(sizes), strict=True)
        return functional_call(model, {name: part.view_as(p) for (name, p), part in parts}, (images,))

    return logits, torch.cat([parameter.detach().reshape(-1) for parameter in parameters.values()])


def dense_hessian(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the Hessian of the mean loss with torch.autograd.functional.hessian."""
    logits, vector = logits_of_flat_parameters(model)
    return torch.autograd.functional.hessian(lambda v: F.cross_entropy(logits(v, images), labels), vector)


def double_backward(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Compute Hv by two backward passes through the model itself."""
    parameters = list(model.parameters())
    parts = [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)]
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    products = torch.autograd.grad(gradients, parameters, parts, materialize_grads=True)
    return torch.cat([product.reshape(-1) for product in products])


def symmetric(eigenvalues: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a dense symmetric matrix with these eigenvalues, and its eigenvectors."""
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return (basis * eigenvalues) @ basis.T, basis


def dense(matvec: Callable[[torch.Tensor], torch.Tensor], dimension: int) -> torch.Tensor:
    """Return the dense matrix of a matvec."""
    return torch.stack([matvec(row) for row in torch.eye(dimension, dtype=torch.float64)])


def assert_multiplies_by(
    matrix: torch.Tensor, matvec: Callable[[torch.Tensor], torch.Tensor], rtol: float, atol: float
) -> None:
    """Compare the products with three random vectors. A difference in any entry of the matrix changes each product."""
    for vector in torch.randn(3, len(matrix), dtype=torch.float64):
        torch.testing.assert_close(matvec(vector), matrix @ vector, rtol=rtol, atol=atol)
