"""Float32 products without TF32 or bf16."""

import torch

from normstudy.curvature import full_float32


def test_low_precision_products_are_off_inside_and_back_after():
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
