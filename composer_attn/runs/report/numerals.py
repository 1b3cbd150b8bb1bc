"""Numbers as the page writes them."""

from composer_attn.runs.report.intervals import Interval
from composer_attn.runs.report.speeds import Quartiles

NONE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def points(difference: float | None, percent: bool = True) -> str:
    """Write a difference, of shares as percentage points."""
    if difference is None:
        return ""
    text = f"{difference * 100:+.2f} points" if percent else f"{difference:+.4f}"
    return text.replace("-", _MINUS)


def points_range(interval: Interval | None, percent: bool = True) -> str:
    """Write the interval of a difference."""
    if interval is None:
        return ""
    scale, form = (100, "+.2f") if percent else (1, "+.4f")
    text = f"{interval.low * scale:{form}} to {interval.high * scale:{form}}"
    return f"95% interval {text}".replace("-", _MINUS)


def share_range(interval: Interval | None, percent: bool = True) -> str:
    """Write the interval of a figure."""
    if interval is None:
        return ""
    if percent:
        return f"{interval.low:.1%} to {interval.high:.1%}"
    return f"{interval.low:.4f} to {interval.high:.4f}"


def images_ahead(images: tuple[tuple[int, int], ...]) -> str:
    """Write by how many images a variant is ahead, in each seed."""
    if not images or len(images) > 5:
        return ""
    ahead = ", ".join(f"{count:+,}" for count, _ in images)
    return f"{ahead} of {images[0][1]:,} images".replace("-", _MINUS)


def count(value: float | None) -> str:
    """Write a whole number."""
    return number(value, "{:,.0f}")


def number(value: float | None, form: str, scale: float = 1) -> str:
    """Write a number in a form, or a dash in place of none."""
    return NONE if value is None else form.format(value * scale)


def plain(value: float) -> str:
    """Write a published figure."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def si(value: float | None) -> str:
    """Write a count of operations."""
    if value is None:
        return NONE
    return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.1f} M"


def duration(seconds: float | None) -> str:
    """Write a duration."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def milliseconds(seconds: float | None) -> str:
    """Write the time of a step."""
    if seconds is None:
        return NONE
    if seconds >= 10:
        return f"{seconds:,.1f} s"
    decimals = 0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2
    return f"{seconds * 1e3:,.{decimals}f} ms"


def milliseconds_range(found: Quartiles | None) -> str:
    """Write the quartiles of a time."""
    return f"({milliseconds(found.low)} to {milliseconds(found.high)})" if found else ""


def ratio_range(found: Quartiles | None) -> str:
    """Write the quartiles of a ratio, if there are any."""
    if found is None or found.low == found.high:
        return ""
    return f"({found.low:.2f} to {found.high:.2f})"
