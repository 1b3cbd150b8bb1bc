"""Draw docs/study.png, in docs/study.md, from a study of handwritten digits.

composer-attn study --out runs/digits_study
python -m benchmarks.study_picture runs/digits_study
"""

import io
import sys
import textwrap
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread

from benchmarks.picture import ROOT
from composer_attn.runs.report.compare import compare
from composer_attn.runs.report.excitation_plots import excitation_plots
from composer_attn.runs.report.records import find_records
from composer_attn.runs.report.style import RC

PICTURE = ROOT / "docs" / "study.png"
PLOTS = 4  # by depth, then three layers of SE
_WIDTH = 52  # characters of a title's line


def plots(study: Path) -> list[tuple[str, Figure]]:
    """Return the first plots of what the gates learned in a study, each with its title."""
    comparison = compare(find_records([study]))
    drawn = islice(excitation_plots(comparison), PLOTS)
    return [(title, figure) for _, _, title, _, figure in drawn]


def draw(plots: Sequence[tuple[str, Figure]], path: Path = PICTURE) -> None:
    """Draw plots in two columns, each with its title."""
    rows = (len(plots) + 1) // 2
    figure = Figure(figsize=(11, 4.6 * rows), layout="constrained")
    for place, (title, plot) in enumerate(plots):
        axes = figure.add_subplot(rows, 2, place + 1)
        file = io.BytesIO()
        plot.savefig(file, facecolor="white", dpi=160)
        file.seek(0)
        axes.imshow(imread(file))
        axes.set_title(textwrap.fill(title, _WIDTH), fontsize=10)
        axes.set_axis_off()
    figure.savefig(path, facecolor="white", dpi=85)


if __name__ == "__main__":
    with rc_context(RC):
        draw(plots(Path(sys.argv[1])))
