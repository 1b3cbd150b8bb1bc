"""Figures that others have published for the networks that people train here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Published:
    """One figure of one network, with and without attention.

    Attributes:
        network: a model's name, as a config has it.
        num_classes: its classes.
        figure: what it is, with its unit.
        here: what it is called in our runs: ``accuracy``, ``macs``, ``images_per_second`` or
            ``parameters``.
        scale: what ours is multiplied by to be in the same unit.
        values: by variant.
        source: where it is from.
    """

    network: str
    num_classes: int
    figure: str
    here: str
    scale: float
    values: dict[str, float]
    source: str


def published_for(models: Sequence[dict[str, Any]]) -> list[Published]:
    """List what is known of the networks in the ``model`` sections of configs."""
    wanted = {(_name(model), int(model.get("num_classes", 1000))) for model in models if model}
    table = [Published(**row) for row in json.loads(_TABLE.read_text())]
    return [row for row in table if (row.network, row.num_classes) in wanted]


def _name(model: dict[str, Any]) -> str:
    return str(model.get("name")).removeprefix("timm/")
