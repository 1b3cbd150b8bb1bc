"""Files of weights for a detector: of the whole network, or of the classifier in its backbone."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from composer_attn.functional import load_weights
from composer_attn.functional.weights import fill, read_weights


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


def load_files(network: Any, files: Files) -> tuple[str, ...]:
    """Load files into a detector, in place.

    Call it when the detector is attended: attention is loaded from files that have it, and starts
    anew where they have none.

    Returns:
        The names of a new classifier's weights, which no file has.

    Raises:
        CheckpointError: a file is of another network, damaged, or refers to code.
        OSError: there is no such file.
    """
    left: tuple[str, ...] = ()
    if files.network is not None:
        left = load_weights(network, files.network, new_classifier=True)
    if files.backbone is not None:
        load_backbone(network.backbone.body, files.backbone)
    return tuple(name for name in left if ".attention." not in name)


def load_backbone(body: nn.Module, path: str) -> None:
    """Load a classifier's file into a backbone, leaving out its last layers.

    Raises:
        CheckpointError: the file is of another network, damaged, or refers to code.
        OSError: there is no such file.
    """
    fill_backbone(body, read_weights(body, path), path)


def fill_backbone(body: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load the state dict of a classifier into a backbone, leaving out its last layers."""
    children = {name for name, _ in body.named_children()}
    tops = {name.partition(".")[0] for name in weights}
    fill(body, weights, source, tuple(f"{top}." for top in tops - children))
