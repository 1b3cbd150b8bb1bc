"""Plots of excitations: by depth, and by class at several depths."""

from collections.abc import Iterable, Iterator

import numpy as np
from matplotlib.figure import Figure

from composer_attn.callbacks.excitations import Excitations, Layer
from composer_attn.runs.report.comparison import Comparison, VariantResults
from composer_attn.runs.report.style import INK, add_legend, series, style_of

_DEPTHS = 3
_CHANNELS = 64  # the most that can be distinguished in a plot
_CLASSES = 4  # as in figure 5 of the SENet paper
_Drawn = tuple[str, str, str, str, Figure]


def excitation_plots(comparison: Comparison) -> Iterator[_Drawn]:
    """Yield the plots of recorded excitations, from the first run of each variant that has any."""
    seen = [(variant, found) for variant in comparison.variants if (found := looked_at(variant))]
    if seen:
        yield _by_depth(comparison, seen)
    for variant, found in seen:
        for place, layer in _spread_out(found.layers):
            yield _by_class(comparison, variant, found, place, layer)


def looked_at(variant: VariantResults) -> Excitations | None:
    """Return the excitations that a monitor recorded for a variant, if any."""
    kept = (run.excitations for run in variant.runs if run.excitations)
    return next(kept, None)


def _spread_out(layers: tuple[Layer, ...]) -> list[tuple[str, Layer]]:
    """Choose layers at several depths, including the first and the last."""
    places = np.unique(np.linspace(0, len(layers) - 1, _DEPTHS).round().astype(int))
    return [(f"{place + 1} of {len(layers)}", layers[place]) for place in places]


def _by_depth(comparison: Comparison, seen: Iterable[tuple[VariantResults, Excitations]]) -> _Drawn:
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    told = []
    for variant, found in seen:
        style = style_of(comparison, variant)
        depth = np.arange(1, len(found.layers) + 1)
        means = np.array([layer.mean[-1].mean() for layer in found.layers])
        channels = np.array([layer.mean[-1].std() for layer in found.layers])
        instances = np.array([layer.std[-1].mean() for layer in found.layers])
        above.plot(depth, means, label=variant.label, **style)
        above.fill_between(
            depth, means - channels, means + channels, color=style["color"], alpha=0.18, lw=0
        )
        below.plot(depth, instances, **style)
        told.append(f"{variant.label} from {means[0]:.2f} in the first to {means[-1]:.2f}")
    above.set(ylabel="mean excitation")
    add_legend(figure)
    below.set(xlabel="attended layer, by depth", ylabel="deviation over\nimages")
    below.set_ylim(bottom=0)
    below.xaxis.get_major_locator().set_params(integer=True)
    title = "Mean excitation by depth (band: deviation over channels), and deviation over images"
    alt = f"{title}. Mean of {'; '.join(told)} in the last layer."
    return "excitation_by_depth", "excitation", title, alt, figure


def _by_class(
    comparison: Comparison, variant: VariantResults, found: Excitations, place: str, layer: Layer
) -> _Drawn:
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    axes = figure.add_subplot()
    # Sorted by mean: in their original order, hundreds of channels are unreadable.
    order = np.argsort(layer.mean[-1])
    order = order[np.unique(np.linspace(0, len(order) - 1, _CHANNELS).round().astype(int))]
    channel, means = np.arange(len(order)), layer.mean[:, order]
    every, spread = means[-1], layer.std[-1][order]
    axes.fill_between(channel, every - spread, every + spread, color=INK, alpha=0.13, lw=0)
    present = [i for i, count in enumerate(found.samples[:-1]) if count]
    for number, row in enumerate(present[:_CLASSES]):
        style = series(number + 1) | {"marker": "none", "linewidth": 1.2}
        axes.plot(channel, means[row], label=f"class {found.classes[row]}", **style)
    axes.plot(channel, every, color=INK, linewidth=1.8, label="all")
    axes.set(xlabel="channels, by their mean over all images", ylabel="mean excitation")
    axes.margins(x=0.01)
    axes.legend(ncols=5, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=1)
    figures = layer.figures
    channels = layer.mean.shape[1]
    shown = f"{len(order)} of its {channels}" if len(order) < channels else f"its {channels}"
    title = f"{variant.label}, {layer.name} (layer {place}): {shown} channels, by class"
    alt = (
        f"{title}. Over all images: mean {figures['mean']:.2f}, deviation {figures['std']:.2f}, "
        f"from {every.min():.2f} to {every.max():.2f} by channel. The band is the deviation over "
        "all images."
    )
    slug = "".join(c if c.isalnum() else "_" for c in f"{variant.label}_{layer.name}")
    return f"excitation_{slug}", "excitation", title, alt, figure
