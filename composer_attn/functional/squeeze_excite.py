"""Apply Squeeze-and-Excitation to any network."""

from collections.abc import Mapping

from torch import nn
from typing_extensions import Unpack

from composer_attn.attention import SqueezeExcitation
from composer_attn.attention.base import ChannelOptions
from composer_attn.attention.signatures import signed
from composer_attn.functional.attention import attend_by, plan_by
from composer_attn.functional.common import Example
from composer_attn.functional.keywords import DEFAULTS, Surgery
from composer_attn.surgery import SurgeryPlan

Latent = int | float | Mapping[str, int | float]


class SqueezeExciteOptions(ChannelOptions, total=False):
    """The keyword-only arguments of :class:`SqueezeExcitation`."""

    bias: bool


class SqueezeExciteSurgery(Surgery, SqueezeExciteOptions, total=False):
    """The keyword arguments of the functions."""


@signed(SqueezeExciteSurgery, SqueezeExcitation, *DEFAULTS)
def apply_squeeze_excite(
    model: nn.Module,
    latent_channels: Latent = 64,
    min_channels: int | None = None,
    **keywords: Unpack[SqueezeExciteSurgery],
) -> SurgeryPlan:
    """Add Squeeze-and-Excitation after the convolutions of a model, in place.

    ``apply_attention(model, "squeeze_excite", ...)``: each chosen convolution scales its output
    channels, ``y = s conv(x)``, ``s = gate(W2 relu(W1 mean(conv(x))))`` (`Hu et al., 2018
    <https://arxiv.org/abs/1709.01507>`_, equations 2 to 4).

    Args:
        model: any network.
        latent_channels: width of the hidden layer: a count >= 1, or a fraction of the channels in
            (0, 1); the paper's reduction ratio ``r`` is ``1/r``. ``{pattern: width}`` sets it by
            stage: the first pattern that matches a site's name applies, or 64 if none does.
        min_channels: see :func:`apply_attention`.
        keywords: those of :func:`apply_attention`, and of the attention:

            - start: ``paper``: random layers; ``identity``: scales of exactly 1, so that the
              outputs of a pretrained network are unchanged at first.
            - gate: ``sigmoid``, ``hard_sigmoid``, ``tanh`` or ``relu``.
            - squeeze: ``avg``, ``max``, ``std``, ``avg+max`` (adds the logits of both, as CBAM
              does), or ``none``: no pooling, each position is scaled by an excitation of its own
              channels (the paper's "NoSqueeze").
            - bias: whether the linear layers have biases.

    Returns:
        The plan that was applied; print it to see every candidate, and why others were passed over.

    Raises:
        ComposerAttnError: as :func:`apply_attention`; nothing was changed.

    Warns:
        NothingAttendedWarning: nothing was chosen.

    Example:
        >>> import torch
        >>> from composer_attn import apply_squeeze_excite
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 128, 3), torch.nn.ReLU())
        >>> print(apply_squeeze_excite(model, latent_channels=1 / 16))
        SqueezeExcitation: 1 of 1 candidates chosen, 2,048 parameters added
        site  kind    channels  parameters  chosen
        0     Conv2d  128       2,048       yes
    """
    own = {"latent_channels": latent_channels, "min_channels": min_channels}
    return attend_by(SqueezeExcitation, model, own | keywords)


@signed(SqueezeExciteSurgery, SqueezeExcitation, *DEFAULTS)
def plan_squeeze_excite(
    model: nn.Module,
    latent_channels: Latent = 64,
    min_channels: int | None = None,
    *,
    example: Example = None,
    **keywords: Unpack[SqueezeExciteSurgery],
) -> SurgeryPlan:
    """Return the plan of :func:`apply_squeeze_excite` with the same arguments, changing nothing.

    Args:
        model: any network.
        latent_channels: see :func:`apply_squeeze_excite`.
        min_channels: see :func:`apply_attention`.
        example: an example input, to include costs: see :func:`plan_attention`.
        keywords: those of :func:`apply_squeeze_excite`.

    Returns:
        The plan.

    Raises:
        ComposerAttnError: as :func:`plan_attention`.

    Example:
        >>> import torch
        >>> from composer_attn import plan_squeeze_excite
        >>> plan = plan_squeeze_excite(torch.nn.Conv2d(3, 256, 3))
        >>> len(plan.chosen), plan.parameters
        (1, 32768)
    """
    own = {"latent_channels": latent_channels, "min_channels": min_channels}
    return plan_by(SqueezeExcitation, model, example, own | keywords)
