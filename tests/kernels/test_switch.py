"""The switch between forms."""

import pytest
import torch

from normstudy.kernels import FORMS, KERNELS, form_of, use_form


def test_the_device_decides_by_default():
    assert form_of(torch.zeros(1), "map_moments") == "cpu"
    assert form_of(torch.zeros(1, device="meta"), "map_moments") == "device"


@pytest.mark.parametrize("form", FORMS)
def test_a_block_has_one_form_for_all_kernels_or_some(form):
    with use_form(form):
        assert {form_of(torch.zeros(1), kernel) for kernel in KERNELS} == {form}
    with use_form("plain"):
        with use_form(form, "attention"):
            assert form_of(torch.zeros(1), "attention") == form
            assert form_of(torch.zeros(1), "map_moments") == "plain"
        assert form_of(torch.zeros(1), "attention") == "plain"
    assert form_of(torch.zeros(1), "attention") == "cpu"


def test_the_form_comes_back_after_an_error():
    with pytest.raises(ZeroDivisionError), use_form("plain"):
        _ = 1 / 0
    assert form_of(torch.zeros(1), "attention") == "cpu"


@pytest.mark.parametrize(("form", "kernels"), [("fast", ()), ("plain", ("moments",))])
def test_unknown_names_are_errors(form, kernels):
    with pytest.raises(ValueError, match="is not one of"), use_form(form, *kernels):
        pass
