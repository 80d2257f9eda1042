"""SGD gives the results of torch.optim.SGD, and the state of other parameters is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normstudy.training.optimizer import SGD


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_sgd_is_that_of_torch(momentum, weight_decay):
    start = [torch.randn(3, 4), torch.randn(5), torch.zeros(())]
    own, other = ([tensor.clone().requires_grad_() for tensor in start] for _ in range(2))
    optimizer = SGD(own, momentum, weight_decay)
    expected = torch.optim.SGD(other, lr=1.0, momentum=momentum, weight_decay=weight_decay)
    for index in range(5):
        for parameters in (own, other):
            loss = torch.stack([(parameter - 1).pow(4).sum() for parameter in parameters]).sum()
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
        expected.param_groups[0]["lr"] = 0.01 / (1 + index)
        expected.step()
        optimizer.step(0.01 / (1 + index))
        if index == 2:  # continued from its state
            state, optimizer = optimizer.state_dict(), SGD(own, momentum, weight_decay)
            optimizer.load_state_dict(state)
    torch.testing.assert_close(own, other)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in own)


def test_sgd_refuses_the_state_of_other_parameters():
    with_momentum = SGD([torch.zeros(3)], 0.9, 0.0)
    for other in (SGD([torch.zeros(4)], 0.9, 0.0), SGD([torch.zeros(3)], 0.0, 0.0)):
        with pytest.raises(ValueError, match="other parameters"):
            with_momentum.load_state_dict(other.state_dict())


def test_training_does_not_load_the_compiler(tmp_path):
    """Loading it would take seconds at the start of every run."""
    flags = ["--dataset=Synthetic", "--train_samples=20", "--test_samples=20", "--epochs=1"]
    code = f"""
import sys
import main
main.main({[*flags, f"--results_dir={tmp_path}"]!r})
assert "torch._dynamo" not in sys.modules
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
