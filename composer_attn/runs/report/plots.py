"""The plots of a comparison, as files and as SVG with the colours of the page."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context

from composer_attn.runs.report.changed_images import changed_images
from composer_attn.runs.report.comparison import Comparison
from composer_attn.runs.report.confusion_plots import confusion_plots
from composer_attn.runs.report.cost_plots import cost_plots
from composer_attn.runs.report.curve_plots import curve_plots
from composer_attn.runs.report.examples import example_plots
from composer_attn.runs.report.excitation_plots import excitation_plots
from composer_attn.runs.report.style import RC, inline_svg


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        name: name of its files.
        section: section of the page: ``training``, ``cost``, ``confusion``, ``examples``,
            ``excitation`` or ``heat_maps``.
        title: title of the plot.
        alt: alternative text, with the main figures.
        svg: the SVG element for the page.
    """

    name: str
    section: str
    title: str
    alt: str
    svg: str


def draw(comparison: Comparison, folder: Path) -> list[Plot]:
    """Draw all plots for which there is data, and write them as SVG and PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.svg"), *folder.glob("*.png")):  # from an earlier report
        old.unlink()
    plots = []
    with rc_context(RC):
        drawn = [
            *curve_plots(comparison),
            *cost_plots(comparison),
            *confusion_plots(comparison),
            *changed_images(comparison),
            *example_plots(comparison),
            *excitation_plots(comparison),
        ]
        for name, section, title, alt, figure in drawn:
            figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", facecolor="white", dpi=160)
            plots.append(Plot(name, section, title, alt, inline_svg(figure, name, alt)))
    return plots
