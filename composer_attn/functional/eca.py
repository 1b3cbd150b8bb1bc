"""Apply Efficient Channel Attention to any network."""

from collections.abc import Mapping

from torch import nn
from typing_extensions import Unpack

from composer_attn.attention import EfficientChannelAttention
from composer_attn.attention.base import ChannelOptions
from composer_attn.attention.signatures import signed
from composer_attn.functional.attention import attend_by, plan_by
from composer_attn.functional.common import Example
from composer_attn.functional.keywords import DEFAULTS, Surgery
from composer_attn.surgery import SurgeryPlan

KernelSize = int | Mapping[str, int] | None


class ECAOptions(ChannelOptions, total=False):
    """The keyword-only arguments of :class:`EfficientChannelAttention`."""

    gamma: float
    b: float


class ECASurgery(Surgery, ECAOptions, total=False):
    """The keyword arguments of the functions."""


@signed(ECASurgery, EfficientChannelAttention, *DEFAULTS)
def apply_eca(
    model: nn.Module,
    kernel_size: KernelSize = None,
    min_channels: int | None = None,
    **keywords: Unpack[ECASurgery],
) -> SurgeryPlan:
    """Add Efficient Channel Attention after the convolutions of a model, in place.

    ``apply_attention(model, "eca", ...)``: each chosen convolution scales its output channels,
    ``y = s conv(x)``, ``s = gate(conv1d(mean(conv(x))))``, where ``conv1d`` slides over adjacent
    channels (`Wang et al., 2020 <https://arxiv.org/abs/1910.03151>`_, equation 9).

    Args:
        model: any network.
        kernel_size: odd number of weights of each attention; ``None`` is the paper's adaptive rule,
            :func:`~composer_attn.attention.eca_kernel_size`. ``{pattern: size}`` sets it by stage,
            as in ``{"layer1.*": 3, "layer4.*": 7}``: the first pattern that matches a site's name
            applies, or the adaptive rule if none does.
        min_channels: see :func:`apply_attention`.
        keywords: those of :func:`apply_attention`; ``gate``, ``start`` and ``squeeze`` as in
            :func:`apply_squeeze_excite`; ``gamma`` and ``b``, divisor and offset of the adaptive
            rule.

    Returns:
        The plan that was applied.

    Raises:
        ComposerAttnError: as :func:`apply_attention`; nothing was changed.

    Warns:
        NothingAttendedWarning: nothing was chosen.

    Example:
        >>> import torch
        >>> from composer_attn import apply_eca
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 128, 3), torch.nn.ReLU())
        >>> print(apply_eca(model))
        EfficientChannelAttention: 1 of 1 candidates chosen, 5 parameters added
        site  kind    channels  parameters  chosen
        0     Conv2d  128       5           yes
    """
    own = {"kernel_size": kernel_size, "min_channels": min_channels}
    return attend_by(EfficientChannelAttention, model, own | keywords)


@signed(ECASurgery, EfficientChannelAttention, *DEFAULTS)
def plan_eca(
    model: nn.Module,
    kernel_size: KernelSize = None,
    min_channels: int | None = None,
    *,
    example: Example = None,
    **keywords: Unpack[ECASurgery],
) -> SurgeryPlan:
    """Return the plan of :func:`apply_eca` with the same arguments, changing nothing.

    Args:
        model: any network.
        kernel_size: see :func:`apply_eca`.
        min_channels: see :func:`apply_attention`.
        example: an example input, to include costs: see :func:`plan_attention`.
        keywords: those of :func:`apply_eca`.

    Returns:
        The plan.

    Raises:
        ComposerAttnError: as :func:`plan_attention`.

    Example:
        >>> import torch
        >>> from composer_attn import plan_eca
        >>> plan_eca(torch.nn.Conv2d(3, 64, 3)).sites[0].reason
        'fewer channels than min_channels=128'
    """
    own = {"kernel_size": kernel_size, "min_channels": min_channels}
    return plan_by(EfficientChannelAttention, model, example, own | keywords)
