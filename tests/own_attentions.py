"""The attentions in docs/your_own_attention.md, and small networks to test them on."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "your_own_attention.md"
MODULES = {
    "effective_se": "my_attention",
    "cbam_channel": "cbam",
    "simam": "simam",
    "spatial_gate": "spatial",
}
# Those that are a ChannelAttention, and accept its options.
CHANNEL = ("effective_se", "cbam_channel")


def printed() -> dict[str, str]:
    """Return the files on the page by name, and the shell commands as ``shell``."""
    pattern = re.compile(r'^```\w+ title="(.+?)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
    return dict(pattern.findall(PAGE.read_text()))


def import_printed(name: str, folder: Path) -> ModuleType:
    """Write the page's file that registers an attention to a folder, and import it."""
    module = MODULES[name]
    file = folder / f"{module}.py"
    file.write_text(printed()[file.name])
    spec = importlib.util.spec_from_file_location(f"printed_{module}", file)
    # So that its classes can be pickled.
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def own(registry, tmp_path) -> list[str]:
    """Register all attentions on the page."""
    for name in MODULES:
        import_printed(name, tmp_path)
    return list(MODULES)


def resnet() -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5)


def mobilenet() -> nn.Module:
    setting = [[1, 8, 1, 1], [6, 16, 2, 2]]
    return torchvision.models.MobileNetV2(5, 0.25, setting)


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Conv3d(8, 16, 3),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


NETWORKS = {
    "resnet": (resnet, (3, 32, 32), 256),
    "mobilenet": (mobilenet, (3, 32, 32), 24),
    "volume": (volume, (3, 5, 6, 7), 8),
}
each_own = pytest.mark.parametrize("name", MODULES)
each_network = pytest.mark.parametrize("network", NETWORKS)


def build(network: str) -> tuple[nn.Module, tuple[int, ...], int]:
    """Build a network with random statistics and weights; return its shape and min_channels."""
    make, shape, channels = NETWORKS[network]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.normal_(module.bias)
    return model, shape, channels


def batch(shape: tuple[int, ...], samples: int = 2) -> torch.Tensor:
    return torch.randn(samples, *shape)
