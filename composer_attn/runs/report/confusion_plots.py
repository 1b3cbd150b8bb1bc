"""Confusion matrices of variants, and what changes in them against plain."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from composer_attn.runs.report.comparison import Comparison, VariantResults
from composer_attn.runs.report.style import INK, SERIES
from composer_attn.runs.training.class_names import read_class_names

_MOST = 20  # classes that can be distinguished in a plot
_MOST_NUMBERS = 12  # classes with numbers in the cells
_RIGHT, _WRONG, _BETTER = SERIES[1], SERIES[2], SERIES[3]
_Drawn = tuple[str, str, str, str, Figure]


def confusion_plots(comparison: Comparison) -> Iterator[_Drawn]:
    """Yield the confusion matrix of every variant, and its difference from that of plain."""
    for variant in comparison.variants:
        matrix = confusion(variant)
        if matrix is None:
            continue
        yield _plot(variant, matrix, None)
        plain = comparison.baseline(variant)
        base = confusion(plain) if plain and plain is not variant else None
        if plain and base is not None and np.isclose(base.sum(), matrix.sum()):
            yield _plot(variant, _minus(matrix, base), plain)


def confusion(variant: VariantResults) -> np.ndarray | None:
    """Return the mean number of images by label (rows) and predicted class, over the seeds.

    ``None`` if the predictions of no run are known, or if they are of different images.
    """
    found = [run.predictions for run in variant.runs if run.counts and run.predictions]
    if not found or not all(found[0].comparable(other) for other in found):
        return None
    classes = 1 + max(int(max(each.labels.max(), each.predicted.max())) for each in found)
    total = np.zeros((classes, classes))
    for each in found:
        np.add.at(total, (each.labels, each.predicted), 1)
    return total / len(found)


def _minus(matrix: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Subtract matrices, of which one may have had no image of the last classes."""
    classes = max(len(matrix), len(base))
    padded = [np.pad(each, (0, classes - len(each))) for each in (matrix, base)]
    return padded[0] - padded[1]


def _plot(variant: VariantResults, matrix: np.ndarray, plain: VariantResults | None) -> _Drawn:
    shown = _chosen(matrix, plain is not None)
    names = class_names(variant)
    cells = matrix[np.ix_(shown, shown)]
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, cells, plain is not None)
    labels = [shortened(names[i]) if i < len(names) else str(i) for i in shown]
    axes.set_xticks(range(len(shown)), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
    axes.set_yticks(range(len(shown)), labels)
    axes.set(xlabel="predicted class", ylabel="class")
    seeds = sum(run.counts is not None for run in variant.runs)
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    part = f", the {len(shown)} classes with the most" if len(shown) < len(matrix) else ""
    if plain is None:
        title = f"{variant.label}: images by class and predicted class{mean}{part} errors"
        title = title if part else title.removesuffix(" errors")
        told = _largest(matrix, names, np.where(np.eye(len(matrix)), -1, matrix), "{:.4g}")
    else:
        title = f"{variant.label} minus {plain.label}: what changes{mean}{part} changes"
        title = title if part else title.removesuffix(" changes")
        told = _largest(matrix, names, abs(matrix), "{:+.4g}")
    slug = "".join(c if c.isalnum() else "_" for c in variant.label)
    name = f"confusion_{slug}{'_difference' if plain else ''}"
    return name, "confusion", title, f"{title}. {told}", figure


def _chosen(matrix: np.ndarray, changes: bool) -> list[int]:
    """Choose the classes with the most errors, or changes, in their order."""
    off = abs(matrix) if changes else np.where(np.eye(len(matrix)), 0, matrix)
    most = np.argsort(-(off.sum(0) + off.sum(1)), kind="stable")[:_MOST]
    return sorted(most.tolist())


def _draw(axes: Axes, cells: np.ndarray, changes: bool) -> None:
    """Draw cells in colours of the page's series, which are visible in light and dark mode."""
    diagonal = np.eye(len(cells), dtype=bool)
    scales = np.where(diagonal, abs(cells[diagonal]).max(), abs(cells[~diagonal]).max(initial=0))
    if changes:
        scales = np.full(cells.shape, abs(cells).max())
    for row, column in zip(*np.nonzero(cells), strict=True):
        value = cells[row, column]
        good = (value > 0) == (row == column)
        color = (_BETTER if good else _WRONG) if changes else (_RIGHT if good else _WRONG)
        alpha = 0.12 + 0.68 * abs(value) / scales[row, column]
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, alpha=alpha, lw=0))
        if len(cells) <= _MOST_NUMBERS:
            text = f"{value:+.2g}" if changes else f"{value:.3g}"
            text = text.replace("-", "\N{MINUS SIGN}")
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=INK)
    axes.set(xlim=(-0.5, len(cells) - 0.5), ylim=(len(cells) - 0.5, -0.5), aspect="equal")
    axes.grid(visible=False)


def _largest(matrix: np.ndarray, names: Sequence[str], by: np.ndarray, form: str) -> str:
    """Describe the largest cells in words."""
    told = []
    for flat in np.argsort(-by, axis=None, kind="stable")[:3]:
        row, column = divmod(int(flat), len(matrix))
        if by[row, column] > 0:
            pair = [names[i] if i < len(names) else str(i) for i in (row, column)]
            told.append(f"{pair[0]} as {pair[1]}: {form.format(matrix[row, column])}")
    return f"The largest: {'; '.join(told)}." if told else "There are none."


def class_names(variant: VariantResults) -> tuple[str, ...]:
    """Return the names of the classes of a variant's runs, as far as they are known."""
    found = (read_class_names(run.folder) for run in variant.runs)
    return next((names.classes for names in found if names), ())


def shortened(name: str) -> str:
    """Return a name that leaves room for those beside it."""
    return name if len(name) <= 14 else f"{name[:13]}\N{HORIZONTAL ELLIPSIS}"
