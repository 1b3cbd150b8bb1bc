"""Format a plan as tables in a terminal, as JSON, or as CSV."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from composer_attn.runs.planning.network_plan import Planned
from composer_attn.surgery import NetworkCost, Site, SiteCost
from composer_attn.surgery.plan_table import site_name, width_label

_MIB = 2**20


def show(planned: Planned, everything: bool = False, console: Console | None = None) -> None:
    """Print a plan as tables; passed-over sites are only counted unless ``everything``."""
    console = console or Console(highlight=False)
    plan = planned.plan
    given = ", ".join(f"{name}={value}" for name, value in planned.arguments.items())
    head = f"{planned.model}, {planned.algorithm}" + (f" ({given})" if given else "")
    console.print(head, markup=False)
    console.print(f"on {planned.batch} x {_joined(planned.image)}, evaluation mode")
    listed = plan.sites if everything else plan.chosen
    notes = _numbered(listed)
    console.print("% of the network with all attentions; MiB kept for backward\n", markup=False)
    console.print(_sites(planned, listed, notes, console.width))
    for note, number in notes.items():
        console.print(f"[{number}] {note}", markup=False)
    console.print(f"\n{_passed_over(plan.sites)}\n", markup=False)
    console.print(_totals(*_networks(planned)))


def as_json(planned: Planned) -> str:
    """Return a plan as a JSON document."""
    plan, (plain, attended) = planned.plan, _networks(planned)
    document = {
        "model": planned.model,
        "algorithm": planned.algorithm,
        "arguments": planned.arguments,
        "image": planned.image,
        "batch": planned.batch,
        "attention": plan.attention,
        "plain": asdict(plain),
        "attended": asdict(attended),
        "sites": [_record(site) for site in plan.sites],
    }
    return json.dumps(document, indent=2)


def write_csv(planned: Planned) -> None:
    """Print a plan as CSV: a header, then one row per site, chosen or not."""
    records = [_record(site) for site in planned.plan.sites]
    for record in records:
        record["sizes"] = " ".join(_joined(size) for size in record["sizes"])
        record["notes"] = "; ".join(record["notes"])
    names = [*_record(Site("", "", 0))] if not records else [*records[0]]
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


# Plans shown here were made with an example, so that the network and all sites have costs.
def _networks(planned: Planned) -> tuple[NetworkCost, NetworkCost]:
    return cast(NetworkCost, planned.plan.plain), cast(NetworkCost, planned.plan.attended)


def _cost(site: Site) -> SiteCost:
    return cast(SiteCost, site.cost)


def _record(site: Site) -> dict[str, Any]:
    cost = asdict(site.cost) if site.cost else {}
    return {
        "name": site.name,
        "kind": site.kind,
        "side": site.side,
        "channels": site.channels,
        "chosen": site.chosen,
        "reason": site.reason,
        "calls": site.cost.calls if site.cost else 0,
        "parameters": site.parameters,
        **cost,
        "notes": list(site.notes),
    }


def _sites(planned: Planned, sites: tuple[Site, ...], notes: dict[str, int], width: int) -> Table:
    """Build the table of sites, dropping the least important columns if names are long."""
    names = [site_name(site) for site in sites]
    columns = _columns(planned, sites)
    if notes:
        columns["note"] = [" ".join(f"[{notes[note]}]" for note in s.notes) for s in sites]
    for spare in ("params %", "MACs"):
        needed = sum(1 + max(map(len, [name, *cells])) for name, cells in columns.items())
        if needed + max(map(len, names), default=0) > width:
            del columns[spare]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("site", overflow="fold", min_width=12)
    for name in columns:
        table.add_column(name.split()[-1], justify="right", no_wrap=True)
    for row in zip(names, *columns.values(), strict=True):
        table.add_row(*map(escape, row))
    return table


def _columns(planned: Planned, sites: tuple[Site, ...]) -> dict[str, list[str]]:
    costs: dict[str, Callable[[Site], str]] = {
        width_label(planned.plan): lambda site: str(_cost(site).width or "-"),
        "params": lambda site: _short(site.parameters),
        "params %": lambda site: _percent(_cost(site).parameters_share),
        "MACs": lambda site: _short(_cost(site).macs),
        "MiB": lambda site: _mib(_cost(site).activation_bytes),
        "MiB %": lambda site: _percent(_cost(site).activation_share),
    }
    return {
        "chan": [str(site.channels) for site in sites],
        "size": [_sizes(_cost(site).sizes) for site in sites],
    } | {
        name: [write(site) if site.chosen else "-" for site in sites]
        for name, write in costs.items()
    }


def _numbered(sites: tuple[Site, ...]) -> dict[str, int]:
    notes = dict.fromkeys(note for site in sites for note in site.notes)
    return {note: number for number, note in enumerate(notes, 1)}


def _passed_over(sites: tuple[Site, ...]) -> str:
    reasons = Counter(site.reason for site in sites if not site.chosen)
    chosen = len(sites) - reasons.total()
    lines = [f"{chosen} of {len(sites)} candidates chosen"]
    lines += [f"  {count} passed over: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def _totals(plain: NetworkCost, attended: NetworkCost) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("network")
    for column in ("parameters", "MACs", "kept for backward"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, cost in (("plain", plain), ("with attention", attended)):
        kept = f"{_mib(cost.activation_bytes)} MiB"
        table.add_row(label, f"{cost.parameters:,}", f"{cost.macs:,}", kept)
    pairs = zip(asdict(plain).values(), asdict(attended).values(), strict=True)
    table.add_row("", *(f"{after / max(1, before) - 1:+.2%}" for before, after in pairs))
    return table


def _sizes(sizes: tuple[tuple[int, ...], ...]) -> str:
    if not sizes:
        return "-"
    return _joined(sizes[0]) + (f" +{len(sizes) - 1}" if len(sizes) > 1 else "")


def _joined(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _percent(share: float) -> str:
    return f"{share:.2%}".removesuffix("%")


def _mib(count: int) -> str:
    return f"{count / _MIB:,.2f}"


def _short(count: int) -> str:
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if abs(count) >= unit:
            return f"{count / unit:.3g}{letter}" if abs(count) < 1000 * unit else f"{count:.2g}"
    return str(count)
