"""The main result in words: it names a best variant only if the intervals distinguish it."""

from collections.abc import Sequence

from composer_attn.runs.report.comparison import Comparison, VariantResults
from composer_attn.runs.report.contrast import Contrast
from composer_attn.runs.report.intervals import LEVEL
from composer_attn.runs.report.numerals import points, points_range
from composer_attn.runs.report.speeds import IN_TURNS


def headline(comparison: Comparison) -> str:
    """Return the main result, or an empty text if there are not two results to compare.

    Variants with fewer seeds than others are not compared. The best of k is compared with each of
    the others at level ``1 - 0.05 / (k - 1)``, so that all comparisons together err in 5%.
    """
    known = [v for v in comparison.variants if comparison.result(v).count]
    if not comparison.headline.percent or len(known) < 2:
        return ""
    seeds = {variant.label: comparison.result(variant).count for variant in known}
    most = max(seeds.values())
    compared = [variant for variant in known if seeds[variant.label] == most]
    left = [variant.label for variant in known if seeds[variant.label] < most]
    apart = f" Not compared, as they have fewer seeds: {_listed(left)}." if left else ""
    if len(compared) == 1:
        told = f"No variant can be called best: only {compared[0].label} has {most} seeds."
        return told + apart
    compared.sort(key=lambda variant: comparison.result(variant).mean or 0.0, reverse=True)
    return _of_compared(comparison, compared, most) + apart


def _of_compared(comparison: Comparison, compared: Sequence[VariantResults], seeds: int) -> str:
    best, *others = compared
    level = 1 - (1 - LEVEL) / len(others)
    contrasts = {other.label: comparison.contrast(best, other, level) for other in others}
    unclear = [
        label for label, found in contrasts.items() if not found or not found.distinguishable
    ]
    basis = "one seed each" if seeds == 1 else f"{seeds} seeds each"
    label = comparison.headline.label
    value = comparison.headline.written(comparison.result(best).mean or 0.0)
    if unclear:
        return (
            f"No variant can be called best: the highest {label}, {value} with {best.label}, is "
            f"not distinguishable from that of {_listed(unclear)} ({basis})."
        )
    plain = comparison.baseline(best)
    base = plain if plain in others else others[0]
    found = comparison.contrast(best, base)
    return f"{_crowned(best, base, label, value, found, seeds, basis)}{_speed(comparison, best)}"


def _crowned(
    best: VariantResults, base: VariantResults, label: str, value: str, found: Contrast | None,
    seeds: int, basis: str,
) -> str:  # fmt: skip
    if found is None or found.interval is None:  # not reached for distinguishable variants
        return f"{best.label} has {value}."
    ahead = f"{points(found.estimate)} from {base.label} ({points_range(found.interval)}; {basis})"
    if seeds == 1:
        return (
            f"In this one seed {best.label} is ahead with {value}, {ahead}: more than the choice "
            "of images explains, but another seed may order the variants differently."
        )
    return f"{best.label} has the highest {label}, {value}: {ahead}."


def _speed(comparison: Comparison, best: VariantResults) -> str:
    speed, plain = comparison.speed(best), comparison.baseline(best)
    if speed.relative is None or speed.how != IN_TURNS or plain is None or plain is best:
        return ""
    return f" Its training steps have {speed.relative.median:.2f} times the speed of plain."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
