"""Format a plan as plain text."""

from typing import Any

from composer_attn.surgery.site_cost import size_text


def draw(plan: Any) -> str:
    """Format a plan as a table with one candidate per line, under a line of totals."""
    head = (
        f"{plan.attention}: {len(plan.chosen)} of {len(plan.sites)} candidates chosen, "
        f"{plan.parameters:,} parameters added"
    )
    rows: list[tuple[str, ...]]
    if plan.plain is None:
        rows = [("site", "kind", "channels", "parameters", "chosen")]
        rows += [_row(site) for site in plan.sites]
        return "\n".join([head, *align(rows)])
    added = ("parameters", "share", "MACs", "activation bytes", "share")
    rows = [("site", "kind", "channels", "size", width_label(plan), *added, "chosen")]
    rows += [_row_with_cost(site) for site in plan.sites]
    notes = [f"{site_name(site)}: {note}" for site in plan.sites for note in site.notes]
    lines = [head, *align(rows), "", *align(_totals(plan))]
    return "\n".join([*lines, "", *notes] if notes else lines)


def site_name(site: Any) -> str:
    """Return the label of a site, with the attended side if it is not the output."""
    name = site.name or "(the model itself)"
    return name + ("" if site.side == "output" else f" ({site.side})")


def width_label(plan: Any) -> str:
    """Return the column label for the attentions' widths."""
    names = dict.fromkeys(site.cost.sized_by for site in plan.chosen if site.cost.sized_by)
    return next(iter(names), "width").split("_")[0]


def _row(site: Any) -> tuple[str, ...]:
    verdict = "yes" if site.chosen else f"no: {site.reason}"
    return (site_name(site), site.kind, str(site.channels), f"{site.parameters:,}", verdict)


def _row_with_cost(site: Any) -> tuple[str, ...]:
    name, kind, channels, parameters, verdict = _row(site)
    cost = site.cost
    size = size_text(cost.sizes) or "-"
    if not site.chosen:
        return (name, kind, channels, size, *["-"] * 6, verdict)
    return (
        name, kind, channels, size, str(cost.width or "-"), parameters,
        f"{cost.parameters_share:.2%}", f"{cost.macs:,}", f"{cost.activation_bytes:,}",
        f"{cost.activation_share:.2%}", verdict,
    )  # fmt: skip


def _totals(plan: Any) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("network", "parameters", "MACs", "activation bytes")]
    for label, cost in (("plain", plan.plain), ("with attention", plan.attended)):
        counts = (cost.parameters, cost.macs, cost.activation_bytes)
        rows.append((label, *(f"{count:,}" for count in counts)))
    return rows


def align(rows: list[tuple[str, ...]]) -> list[str]:
    """Pad the cells of a table, whose first row is the heading, into aligned lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
