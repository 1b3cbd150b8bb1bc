"""Files of weights for networks with a backbone: of all of it, or of the classifier in it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from composer.utils import dist
from torch import Tensor, nn

from composer_attn.functional import load_weights
from composer_attn.functional.weights import fill, read_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """Paths of weights.

    Attributes:
        network: of the whole network.
        backbone: of a classifier, attended or plain, whose feature extractor is the backbone.
    """

    network: str | None = None
    backbone: str | None = None


NO_FILES = Files()


def load_files(network: nn.Module, body: nn.Module, files: Files) -> None:
    """Load files into a detector or a network of segmentation, in place.

    Call it when the network is attended: attention is loaded from files that have it, and starts
    anew where they have none. What is for another number of classes starts anew, which is logged.

    Args:
        network: the whole network.
        body: the part of it that is a classifier without its last layers.
        files: the files.

    Raises:
        CheckpointError: a file is of another network, damaged, or refers to code.
        OSError: there is no such file.
    """
    if files.network is not None:
        left = load_weights(network, files.network, new_classifier=True)
        new = [name for name in left if ".attention." not in name]
        if new and dist.get_local_rank() == 0:
            log.warning(
                "the weights of %s are for another number of classes: %s keep their initial values",
                files.network, ", ".join(new),
            )  # fmt: skip
    if files.backbone is not None:
        load_backbone(body, files.backbone)


def load_backbone(body: nn.Module, path: str) -> None:
    """Load a classifier's file into a backbone, leaving out its last layers.

    Raises:
        CheckpointError: the file is of another network, damaged, or refers to code.
        OSError: there is no such file.
    """
    fill_backbone(body, read_weights(_named_as_in_classifiers(body), path), path)


def fill_backbone(body: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load the state dict of a classifier into a backbone, leaving out its last layers."""
    named = _named_as_in_classifiers(body)
    children = {name for name, _ in named.named_children()}
    tops = {name.partition(".")[0] for name in weights}
    fill(named, weights, source, tuple(f"{top}." for top in tops - children))


def _named_as_in_classifiers(body: nn.Module) -> nn.Module:
    """Return a module in which parameters have the names that they have in the classifier.

    Those of a MobileNet are in a child of their own, ``features``, which is the backbone.
    """
    if not all(name.isdigit() for name, _ in body.named_children()):
        return body
    classifier: Any = nn.Module()
    classifier.features = body
    return classifier
