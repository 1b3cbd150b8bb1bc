"""Reproduce and count published networks by surgery; print the tables of docs/published.md.

python -m benchmarks.published
"""

from collections.abc import Iterable
from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import nn

from benchmarks.bn_inception import BNInception
from composer_attn import (
    EfficientChannelAttention,
    SqueezeExcitation,
    apply_eca,
    apply_squeeze_excite,
)
from composer_attn.runs.training.network_cost import count_macs, count_parameters

# Names that the code in a row can use.
_NAMES = {
    "BNInception": BNInception,
    "SqueezeExcitation": SqueezeExcitation,
    "apply_eca": apply_eca,
    "apply_squeeze_excite": apply_squeeze_excite,
    "create": timm.create_model,
    "models": torchvision.models,
    "nn": nn,
}


@dataclass(frozen=True)
class Network:
    """A published network, made from a plain one.

    Attributes:
        plain: code that builds the plain network.
        recipe: code that attends ``model``.
        parameters: the published number, or code that builds the published network.
        source: who published it; empty if unpublished.
        side: height and width in pixels of the image that multiply-accumulates are counted for.
    """

    plain: str
    recipe: str
    parameters: int | str | None = None
    source: str = ""
    side: int = 224


@dataclass(frozen=True)
class Complexity:
    """A row of the SENet paper's tables 2 and 3.

    Attributes:
        name: as printed.
        plain: code that builds the plain network.
        recipe: code that attends ``model``.
        gflops: as printed, without and with attention.
        side: height and width of the image, in pixels.
        digits: number of decimals printed.
    """

    name: str
    plain: str
    recipe: str
    gflops: tuple[float, float]
    side: int = 224
    digits: int = 2

    @property
    def printed(self) -> float:
        """The difference shown in the table, in GFLOPs."""
        return round(self.gflops[1] - self.gflops[0], self.digits)


@dataclass(frozen=True)
class Counted:
    """Counts of a network, plain and attended; ``squeezed`` is the number of averaged elements."""

    sites: int
    parameters: tuple[int, int]
    macs: tuple[int, int]
    squeezed: int

    @property
    def added(self) -> float:
        """GFLOPs added, as the SENet paper counts: the excitation, and one per averaged element."""
        return (self.macs[1] - self.macs[0] + self.squeezed) / 1e9


_SE = 'apply_squeeze_excite(model, 1 / 16, min_channels=1, placement="residual", bias=True)'
_ECA = 'apply_eca(model, min_channels=1, placement="residual")'
_OURS = "apply_eca(model, replace=True)"
_AFTER = "apply_squeeze_excite(model, latent_channels=64, min_channels=128)"
_ATTN, _BY_ATTN = '"{}", block_args={{"attn_layer": "eca"}}', "timm, `attn_layer='eca'`"
_WITH_ECA, _BY_LAYER = 'create("efficientnet_b0", se_layer="eca")', "timm, `se_layer='eca'`"


def _timms(plain: str, own: str, recipe: str) -> Network:
    return Network(f'create("{plain}")', recipe, f'create("{own}")', f"timm `{own}`")


def _timms_eca(name: str) -> Network:
    return Network(f"models.{name}()", _ECA, f"create({_ATTN.format(name)})", _BY_ATTN)


def _released(name: str, sizes: tuple[int, ...], parameters: int) -> Network:
    by_stage = ", ".join(f'"layer{stage}.*": {size}' for stage, size in enumerate(sizes, 1))
    recipe = f'apply_eca(model, {{{by_stage}}}, min_channels=1, placement="residual")'
    return Network(f"models.{name}()", recipe, parameters, "ECA-Net's authors' code")


NETWORKS = (
    Network(
        "models.resnet50()",
        _SE.replace(", bias=True", ""),
        25_557_032 + 2_514_944,
        "SENet paper, equation 5",
    ),
    *(
        Network(f"models.{name}()", _SE, f'create("se{name}")', f"timm `se{name}`")
        for name in ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_64x4d")
    ),
    _timms("resnet18", "legacy_seresnet18", _SE),
    _timms("resnet34", "legacy_seresnet34", _SE),
    _timms("resnext101_32x4d", "seresnext101_32x4d", _SE),
    _timms("resnet50t", "seresnet50t", _SE),
    _timms("resnetaa50d", "seresnetaa50d", _SE),
    _timms("resnet152d", "seresnet152d", _SE),
    _timms("resnet200d", "seresnet200d", _SE),
    *map(_timms_eca, ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")),
    _timms("resnet26t", "ecaresnet26t", _ECA),
    _timms("resnet50d", "ecaresnet50d", _ECA),
    _timms("resnet50t", "ecaresnet50t", _ECA),
    _timms("resnet101d", "ecaresnet101d", _ECA),
    _timms("resnet200d", "ecaresnet200d", _ECA),
    *map(
        _released,
        ("resnet50", "resnet101", "resnet152"),
        ((3, 5, 5, 7), (3, 3, 5, 7), (3, 3, 5, 7)),
        (25_557_032 + 80, 44_549_160 + 157, 60_192_808 + 234),
    ),
    Network("models.efficientnet_b0()", _OURS, _WITH_ECA, _BY_LAYER),
    Network('create("efficientnet_b0")', _OURS, _WITH_ECA, _BY_LAYER),
    Network('create("seresnet50")', _OURS, f"create({_ATTN.format('resnet50')})", _BY_ATTN),
    *(
        Network(f"models.{name}()", _AFTER, side=299 if "v3(" in name else 224)
        for name in (
            "resnet50", "resnext50_32x4d", "vgg16", "densenet121", "mobilenet_v2",
            "mobilenet_v3_large", "regnet_y_400mf", "efficientnet_b0",
        )
    ),
    Network("models.googlenet(init_weights=False)", _AFTER),
    Network("models.inception_v3(init_weights=False)", _AFTER, side=299),
    Network("models.resnet50()", "apply_eca(model, min_channels=128)"),
)  # fmt: skip

_WHOLE_MODULES = (
    "model.inceptions = nn.Sequential(*[nn.Sequential(m, SqueezeExcitation(m.channels, 1 / 16, "
    "bias=True)) for m in model.inceptions])"
)
_BRANCH_ENDS = (
    'apply_squeeze_excite(model, 1 / 16, min_channels=1, include=["repeat*.conv2d", '
    '"block8.conv2d"], bias=True)'
)
COMPLEXITIES = (
    Complexity("ResNet-50", "models.resnet50()", _SE, (3.86, 3.87)),
    Complexity("ResNet-101", "models.resnet101()", _SE, (7.58, 7.60)),
    Complexity("ResNet-152", "models.resnet152()", _SE, (11.30, 11.32)),
    Complexity("ResNeXt-50", "models.resnext50_32x4d()", _SE, (4.24, 4.25)),
    Complexity("ResNeXt-101", 'create("resnext101_32x4d")', _SE, (7.99, 8.00)),
    Complexity(
        "VGG-16",
        "models.vgg16_bn()",
        "apply_squeeze_excite(model, 1 / 16, min_channels=1, bias=True)",
        (15.47, 15.48),
    ),
    Complexity("BN-Inception", "BNInception()", _WHOLE_MODULES, (2.03, 2.04)),
    Complexity(
        "MobileNet",
        'create("mobilenetv1_100")',
        'apply_squeeze_excite(model, 1 / 16, min_channels=1, include="*.conv_pw", bias=True)',
        (0.569, 0.572),
        digits=3,
    ),
    Complexity(
        "Inception-ResNet-v2", 'create("inception_resnet_v2")', _BRANCH_ENDS, (11.75, 11.76), 299
    ),
)


def build(code: str) -> nn.Module:
    """Run code that builds a network, on the meta device."""
    # RegNet computes its widths with tensors, which have no values on the meta device.
    with torch.device("cpu" if "regnet" in code else "meta"):
        return eval(code, dict(_NAMES)).to("meta")


def count(row: Network | Complexity) -> Counted:
    """Build a row's network, attend it, and count both."""
    model = build(row.plain)
    image = torch.empty(1, 3, row.side, row.side, device="meta")
    parameters, macs = count_parameters(model), count_macs(model, image)
    with torch.device("meta"):
        exec(row.recipe, dict(_NAMES, model=model))
    kinds = (SqueezeExcitation, EfficientChannelAttention)
    attentions = [module for module in model.modules() if isinstance(module, kinds)]
    squeezed = []
    for attention in attentions:
        attention.register_forward_pre_hook(lambda _, inputs: squeezed.append(inputs[0].numel()))
    attended = count_macs(model, image)
    return Counted(
        len(attentions), (parameters, count_parameters(model)), (macs, attended), sum(squeezed)
    )


def published(row: Network) -> int | None:
    """Return the number of parameters of a row's network according to its source."""
    if isinstance(row.parameters, str):
        return count_parameters(build(row.parameters))
    return row.parameters


def of_network(row: Network) -> str:
    """Format a row of the table of networks."""
    found, theirs = count(row), published(row)
    macs = [f"{each / 1e9:.3f}" for each in found.macs]
    cells = (f"`{row.plain}`", f"`{row.recipe}`", found.sites, *map(_grouped, found.parameters))
    return _line(*cells, _grouped(theirs) if theirs else "", row.source, *macs)


def of_complexity(row: Complexity) -> str:
    """Format a row of the table of GFLOPs."""
    found = count(row)
    ours = (found.macs[0], found.macs[1] - found.macs[0], found.squeezed)
    cells = (f"{each / 1e9:.4f}" for each in ours)
    paper = (f"{each:.{row.digits}f}" for each in (*row.gflops, row.printed))
    return _line(row.name, f"`{row.recipe}`", *cells, f"{found.added:.4f}", *paper)


def _grouped(number: int) -> str:
    return f"{number:,}"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(cells: Iterable[str]) -> str:
    cells = list(cells)
    return f"{_line(*cells)}\n|{'---|' * len(cells)}"


NETWORKS_HEAD = _head((
    "plain network", "recipe", "attentions", "parameters, plain", "attended", "published", "by",
    "GFLOPs, plain", "attended",
))  # fmt: skip
COMPLEXITIES_HEAD = _head((
    "network", "recipe", "plain, ours", "+ excitation", "+ squeeze", "sum added", "plain, paper",
    "SE, paper", "added",
))  # fmt: skip


def main() -> None:
    """Print both tables."""
    print(NETWORKS_HEAD, *map(of_network, NETWORKS), sep="\n")
    print()
    print(COMPLEXITIES_HEAD, *map(of_complexity, COMPLEXITIES), sep="\n")


if __name__ == "__main__":
    main()
