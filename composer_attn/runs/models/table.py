"""Model names: torchvision's classification models, timm's behind ``timm/``, and a few of ours."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from composer_attn.runs.models.simplified_efficientnet import SimplifiedEfficientNet


def resnet10(num_classes: int = 1000, zero_init_residual: bool = False) -> nn.Module:
    """Build the smallest ResNet: one basic block a stage, widths 64 to 512."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes, zero_init_residual)


class ModelTable(Mapping):
    """What builds each model, by name; timm is imported only when it is asked for."""

    _ours: Mapping[str, Callable[..., nn.Module]] = {
        "resnet10": resnet10,
        "simplified_efficientnet": SimplifiedEfficientNet,
    }

    def __getitem__(self, name: str) -> Callable[..., nn.Module]:
        if name in self._ours:
            return self._ours[name]
        if name in torchvision.models.list_models(module=torchvision.models):
            return torchvision.models.get_model_builder(name)
        if str(name).startswith("timm/") and name in _timm_names():
            import timm

            return partial(timm.create_model, name.removeprefix("timm/"))
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from self._ours
        yield from torchvision.models.list_models(module=torchvision.models)
        if importlib.util.find_spec("timm"):
            yield from _timm_names()

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _timm_names() -> list[str]:
    import timm

    return [f"timm/{name}" for name in timm.list_models()]


MODELS = ModelTable()
