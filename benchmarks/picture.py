"""Draw docs/cost.png, the picture in the README, from benchmarks/results/train_step.csv.

python -m benchmarks.picture
"""

import csv
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "train_step.csv"
PICTURE = ROOT / "docs" / "cost.png"

NAMES = {
    "composer_se": "Composer's SE",
    "timm_se": "timm's SE",
    "timm_eca": "timm's ECA",
    "se": "SE, this package",
    "eca": "ECA, this package",
}
LAYOUTS = {"nchw": ("NCHW", "#0868ac"), "channels_last": ("channels last", "#7bccc4")}
OURS = ("se", "eca")


def rows(path: Path = RESULTS) -> dict[tuple[str, str], dict[str, str]]:
    """Read the last CPU run that has all of the variants, by layout and variant."""
    with path.open() as file:
        measured = [row for row in csv.DictReader(file) if row["device"] == "cpu"]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for layout in LAYOUTS:
        runs: list[dict[str, dict[str, str]]] = []
        for row in (row for row in measured if row["layout"] == layout):
            if row["variant"] == "plain":
                runs.append({})
            runs[-1][row["variant"]] = row
        complete = [run for run in runs if set(NAMES) <= set(run)]
        found |= {(layout, variant): complete[-1][variant] for variant in NAMES}
    return found


def draw(found: dict[tuple[str, str], dict[str, str]], path: Path = PICTURE) -> None:
    """Draw the extra time and memory of each variant, relative to the plain network."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True)
    height = 0.38
    for index, (layout, (label, colour)) in enumerate(LAYOUTS.items()):
        places = [number + height * (index - 0.5) for number in range(len(NAMES))]
        runs = [found[layout, variant] for variant in NAMES]
        median, lower, upper = (
            [_percent(run[key]) for run in runs]
            for key in ("ratio", "ratio_lower_quartile", "ratio_upper_quartile")
        )
        spread = [
            [m - low for m, low in zip(median, lower, strict=True)],
            [up - m for m, up in zip(median, upper, strict=True)],
        ]
        time.barh(places, median, height, color=colour, label=label, xerr=spread, ecolor="#555555")
        kept = [_percent(run["saved_ratio"]) for run in runs]
        memory.barh(places, kept, height, color=colour)
    time.axvline(0, color="black", linewidth=1)
    time.set_xlabel("training step, % longer than plain")
    time.legend(loc="lower right", fontsize=8)
    memory.set_xlabel("kept for backward, % more than plain")
    time.set_yticks(range(len(NAMES)), NAMES.values())
    for label, variant in zip(time.get_yticklabels(), NAMES, strict=True):
        label.set_fontweight("bold" if variant in OURS else "normal")
    time.invert_yaxis()
    for axes in (time, memory):
        axes.spines[["top", "right"]].set_visible(False)
    title = "ResNet-50, batch 16 at 128x128, float32, two CPU cores; lines: quartiles"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def _percent(ratio: str) -> float:
    return 100 * (float(ratio) - 1)


if __name__ == "__main__":
    draw(rows())
