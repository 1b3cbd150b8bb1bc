"""Draw docs/scaled_heat_maps.png, in docs/scaling.md, from a search on handwritten digits.

OMP_NUM_THREADS=1 composer-attn scale yamls/scale_digits.yaml --budget 2
python -m benchmarks.scaled_heat_maps runs/scale_digits_scaling
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.heat_maps import IMAGES, SEED, draw
from benchmarks.picture import ROOT
from composer_attn.runs.heatmaps.of_evaluation import evaluation_images
from composer_attn.runs.heatmaps.views import View, views_of
from composer_attn.runs.inference import load_run

PICTURE = ROOT / "docs" / "scaled_heat_maps.png"
# In the order of the EfficientNet paper's figure 7: what each network scales.
SCALED = {
    "recipe": set(),
    "deeper": {"alpha"},
    "wider": {"beta"},
    "resolution": {"gamma"},
    "together": {"alpha", "beta", "gamma"},
}


def chosen(networks: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the network of each kind that is scaled furthest, as ``results.json`` lists them."""
    found = {}
    for label, factors in SCALED.items():
        kind = [
            row for row in networks
            if row["finished"] and {f for f in ("alpha", "beta", "gamma") if row[f] != 1} == factors
        ]  # fmt: skip
        found[label] = max(kind, key=lambda row: (row["phi"], row["accuracy"]))["network"]
    return found


def rows(search: Path) -> tuple[list[str], dict[str, list[View]]]:
    """Return the labels of evaluation images, and the views of them by each kind of network."""
    networks = json.loads((search / "results.json").read_text(encoding="utf-8"))["networks"]
    labels: list[str] = []
    views = {}
    for kind, name in chosen(networks).items():
        run = load_run(search / f"{name}-seed{SEED}")
        # The same images for all, at the size of each.
        images, labels = evaluation_images(run, IMAGES)
        order = sorted(range(len(labels)), key=lambda index: labels[index])
        views[kind] = views_of(run, kind, images[order])
    return sorted(labels), views


if __name__ == "__main__":
    draw(*rows(Path(sys.argv[1])), PICTURE)
