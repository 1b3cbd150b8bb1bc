"""Run a network as in evaluation, whatever mode it and the caller are in, and leave no trace."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def forward_of(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Any]]:
    """Return the network in a model, and the function from images to its output.

    The forward of a ComposerModel takes a batch of images and labels. That of a ComposerClassifier
    passes the images on to its ``module``; any other is given labels of zero.
    """
    if all(cls.__name__ != "ComposerModel" for cls in type(model).__mro__):
        return model, model
    inner = model._modules.get("module")
    if inner is not None:
        return inner, inner

    def forward(images: Tensor) -> Any:
        return model((images, torch.zeros(len(images), dtype=torch.long, device=images.device)))

    return model, forward


@contextmanager
def as_in_evaluation(network: nn.Module) -> Iterator[None]:
    """Set all modules to evaluation, enable gradients, and restore every mode afterwards.

    The flags are set rather than ``eval()`` called, which a network may have given other effects.
    """
    training = {module: module.training for module in network.modules()}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Hooks that are added later do not run in code that is compiled already.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module, was in training.items():
                module.training = was
