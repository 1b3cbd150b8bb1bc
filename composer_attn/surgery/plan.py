"""The plan of a surgery: every candidate site, chosen or passed over for a stated reason."""

from dataclasses import dataclass

from composer_attn.surgery.plan_table import draw
from composer_attn.surgery.site_cost import NetworkCost, SiteCost


@dataclass(frozen=True)
class Site:
    """One candidate module of a model.

    Attributes:
        name: the module's name in the model; ``''`` is the model itself.
        kind: the name of its class.
        channels: number of channels, ``C``.
        reason: why it is passed over; empty if it is chosen.
        parameters: number of parameters its attention adds; 0 if it is passed over.
        side: which side of the module passes through the attention: its ``output``, its ``input``
            or, for a residual block, its ``shortcut``.
        cost: cost of its attention on the example input, if the plan was given one.
        notes: remarks to consider before it is attended, as far as the example reveals them.
    """

    name: str
    kind: str
    channels: int
    reason: str = ""
    parameters: int = 0
    side: str = "output"
    cost: SiteCost | None = None
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> bool:
        """Whether this site is attended, or will be."""
        return not self.reason


@dataclass(frozen=True)
class SurgeryPlan:
    """The candidate sites of a surgery, in model order; printing it shows a table.

    Attributes:
        attention: name of the attention's class.
        sites: every candidate.
        plain: cost of the unchanged network on the example input, if there is one.
        attended: cost of the network with all attentions.
    """

    attention: str
    sites: tuple[Site, ...]
    plain: NetworkCost | None = None
    attended: NetworkCost | None = None

    @property
    def chosen(self) -> tuple[Site, ...]:
        """The sites that get attention."""
        return tuple(site for site in self.sites if site.chosen)

    @property
    def passed_over(self) -> tuple[Site, ...]:
        """The sites that do not get attention, each with its reason."""
        return tuple(site for site in self.sites if not site.chosen)

    @property
    def parameters(self) -> int:
        """Total number of parameters that the attentions add."""
        return sum(site.parameters for site in self.sites)

    def __str__(self) -> str:
        """Format the plan as a table with one candidate per line, under a line of totals."""
        return draw(self)
