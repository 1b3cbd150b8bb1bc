"""What a surgery is going to do: every candidate site, chosen or passed over and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """One candidate module of a model.

    Attributes:
        name: the module's name in the model; ``''`` is the model itself.
        kind: the name of its class.
        channels: the channels there, ``C``.
        reason: why it is passed over; empty where it is chosen.
        parameters: number of parameters its attention adds; 0 where it is passed over.
        side: what of the module passes through its attention: its ``output``, its ``input``, or,
            of a residual block, its ``shortcut``.
    """

    name: str
    kind: str
    channels: int
    reason: str = ""
    parameters: int = 0
    side: str = "output"

    @property
    def chosen(self) -> bool:
        """Whether this site is (to be) attended."""
        return not self.reason


@dataclass(frozen=True)
class SurgeryPlan:
    """The sites of a surgery, in the order in which the model names them; printing shows a table.

    Attributes:
        attention: name of the attention's class.
        sites: every candidate.
    """

    attention: str
    sites: tuple[Site, ...]

    @property
    def chosen(self) -> tuple[Site, ...]:
        """The sites that get attention."""
        return tuple(site for site in self.sites if site.chosen)

    @property
    def passed_over(self) -> tuple[Site, ...]:
        """The sites that do not, each with its reason."""
        return tuple(site for site in self.sites if not site.chosen)

    @property
    def parameters(self) -> int:
        """Number of parameters that all attentions add together."""
        return sum(site.parameters for site in self.sites)

    def __str__(self) -> str:
        """Draw the plan as a table, one candidate a line, under a line of totals."""
        head = (
            f"{self.attention}: {len(self.chosen)} of {len(self.sites)} candidates chosen, "
            f"{self.parameters:,} parameters added"
        )
        rows = [("site", "kind", "channels", "parameters", "chosen")]
        for site in self.sites:
            verdict = "yes" if site.chosen else f"no: {site.reason}"
            name = site.name or "(the model itself)"
            name += "" if site.side == "output" else f" ({site.side})"
            rows.append((name, site.kind, str(site.channels), f"{site.parameters:,}", verdict))
        return "\n".join([head, *align(rows)])


def align(rows: list[tuple[str, ...]]) -> list[str]:
    """Pad the cells of a table, the first row its heading, into lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
