"""Published figures for common networks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure of a network, with and without attention.

    Attributes:
        network: name of the model, as in a config.
        num_classes: number of classes.
        figure: name of the figure, with its unit.
        here: its name in a run's results: ``accuracy``, ``macs``, ``images_per_second`` or
            ``parameters``.
        scale: factor that converts ours to the same unit.
        values: values by variant.
        source: where it was published.
    """

    network: str
    num_classes: int
    figure: str
    here: str
    scale: float
    values: dict[str, float]
    source: str


def published_for(models: Sequence[dict[str, Any]]) -> list[PublishedFigure]:
    """List the published figures of the networks in the ``model`` sections of configs."""
    wanted = {(_name(model), int(model.get("num_classes", 1000))) for model in models if model}
    table = [PublishedFigure(**row) for row in json.loads(_TABLE.read_text())]
    return [row for row in table if (row.network, row.num_classes) in wanted]


def _name(model: dict[str, Any]) -> str:
    return str(model.get("name")).removeprefix("timm/")
