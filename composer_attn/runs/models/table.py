"""Models by name: torchvision's for classification, timm's with prefix ``timm/``, and our own."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torchvision
from torch import nn
from torchvision.models.mnasnet import MNASNet
from torchvision.models.resnet import BasicBlock, ResNet

from composer_attn.checks import is_real
from composer_attn.errors import ArgumentError
from composer_attn.runs.models.efficientnet import efficientnet
from composer_attn.runs.models.simplified_efficientnet import SimplifiedEfficientNet


def resnet10(num_classes: int = 1000, zero_init_residual: bool = False) -> nn.Module:
    """Build the smallest ResNet: one basic block per stage, widths 64 to 512."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes, zero_init_residual)


def mnasnet(num_classes: int = 1000, width_mult: float = 1.0, dropout: float = 0.2) -> nn.Module:
    """Build torchvision's MNASNet at any width: its own builders each fix theirs."""
    if not is_real(width_mult) or width_mult <= 0:
        raise ArgumentError(f"width_mult must be a number greater than 0; got {width_mult!r}")
    return MNASNet(width_mult, num_classes, dropout)


class ModelTable(Mapping):
    """Mapping from names to model builders; timm is imported only if needed."""

    _ours: Mapping[str, Callable[..., nn.Module]] = {
        "efficientnet": efficientnet,
        "mnasnet": mnasnet,
        "resnet10": resnet10,
        "simplified_efficientnet": SimplifiedEfficientNet,
    }

    def __getitem__(self, name: str) -> Callable[..., nn.Module]:
        if name in self._ours:
            return self._ours[name]
        if name in torchvision.models.list_models(module=torchvision.models):
            build = torchvision.models.get_model_builder(name)
            return partial(_one_output, build) if name in _SEVERAL_OUTPUTS else build
        if str(name).startswith("timm/") and not _has_timm():
            return _without_timm
        if str(name).startswith("timm/") and name in _timm_names():
            import timm

            return partial(timm.create_model, name.removeprefix("timm/"))
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from self._ours
        yield from torchvision.models.list_models(module=torchvision.models)
        if _has_timm():
            yield from _timm_names()

    def __len__(self) -> int:
        return sum(1 for _ in self)


# Their auxiliary classifiers add outputs in training; Composer's algorithms expect a single one.
_SEVERAL_OUTPUTS = ("googlenet", "inception_v3")
AUXILIARY = ("aux1", "aux2", "AuxLogits")


def _one_output(build: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    """Build a network of :data:`_SEVERAL_OUTPUTS` without its auxiliary classifiers."""
    if arguments.pop("aux_logits", False):
        raise ArgumentError("auxiliary classifiers cannot be trained here: leave out aux_logits")
    arguments.setdefault("init_weights", not arguments.get("weights"))
    network: Any = build(**arguments, aux_logits=True)  # required by published weights
    network.aux_logits = False
    for name in AUXILIARY:
        if hasattr(network, name):
            setattr(network, name, None)
    return network


def _has_timm() -> bool:
    return importlib.util.find_spec("timm") is not None


def _without_timm(**arguments: Any) -> nn.Module:
    raise ImportError("models named timm/... need timm: pip install 'composer-attn[timm]'")


def _timm_names() -> list[str]:
    import timm

    return [f"timm/{name}" for name in timm.list_models()]


MODELS = ModelTable()
