"""Device-dependent code: the arithmetic of layers and probes in several forms, the switch between them, and devices."""

from normstudy.kernels.attention_forms import attention, plain_attention
from normstudy.kernels.convolutions import (
    RELU_GAIN,
    Conv2d,
    FoldedConv2d,
    TransformedConv2d,
    TransformedLinear,
    centred_weight,
    normalized_weight,
    standardized_weight,
)
from normstudy.kernels.declarations import ElementaryForm, with_differentiable_jvp
from normstudy.kernels.devices import (
    as_current,
    free_memory,
    is_bf16_emulated,
    is_out_of_memory,
    pick_device,
    training_arithmetic,
)
from normstudy.kernels.moments import (
    group_moments,
    in_dtype_of,
    map_moments,
    pooled_variance,
    ratio,
    scale_shift,
    to_statistics_dtype,
)
from normstudy.kernels.probe_statistics import (
    channel_variance,
    frobenius_norm,
    gram_matrix,
    gram_statistics,
    norms_and_angles,
)
from normstudy.kernels.settings import keep_freed_memory, own_settings
from normstudy.kernels.switch import FORMS, KERNELS, Form, form_of, use_form

__all__ = [
    "FORMS",
    "KERNELS",
    "RELU_GAIN",
    "Conv2d",
    "ElementaryForm",
    "FoldedConv2d",
    "Form",
    "TransformedConv2d",
    "TransformedLinear",
    "as_current",
    "attention",
    "centred_weight",
    "channel_variance",
    "form_of",
    "free_memory",
    "frobenius_norm",
    "gram_matrix",
    "gram_statistics",
    "group_moments",
    "in_dtype_of",
    "is_bf16_emulated",
    "is_out_of_memory",
    "keep_freed_memory",
    "map_moments",
    "normalized_weight",
    "norms_and_angles",
    "own_settings",
    "pick_device",
    "plain_attention",
    "pooled_variance",
    "ratio",
    "scale_shift",
    "standardized_weight",
    "to_statistics_dtype",
    "training_arithmetic",
    "use_form",
    "with_differentiable_jvp",
]
