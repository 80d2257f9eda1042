"""The evaluation of a split."""

import pytest
import torch
from torch.nn import functional as F

from config import parse_args
from models import build_from_config
from normstudy.datasets import load
from normstudy.datasets.batches import to_network_input
from normstudy.training.evaluation import Evaluation


def test_the_loss_is_a_mean_over_samples_not_over_batches():
    """300 samples are evaluated as 256 and 44."""
    settings = parse_args(["--dataset=Synthetic", "--train_samples=300", "--test_samples=300"])
    dataset = load(settings)
    torch.manual_seed(0)
    model = build_from_config(settings, 10)
    found, _ = Evaluation(settings, model)(dataset.test)
    with torch.no_grad():
        logits = model.eval()(to_network_input(dataset.test.images))
    assert found == pytest.approx(F.cross_entropy(logits, dataset.test.labels).item(), rel=1e-5)
