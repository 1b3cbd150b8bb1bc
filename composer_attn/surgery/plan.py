"""What a surgery is going to do: every candidate site, chosen or passed over and why."""

from dataclasses import dataclass

from composer_attn.surgery.plan_table import draw
from composer_attn.surgery.site_cost import NetworkCost, SiteCost


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
        cost: what its attention takes on the example input, where the plan was given one.
        notes: what to know of it before it is attended, as far as the example shows it.
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
        """Whether this site is (to be) attended."""
        return not self.reason


@dataclass(frozen=True)
class SurgeryPlan:
    """The sites of a surgery, in the order in which the model names them; printing shows a table.

    Attributes:
        attention: name of the attention's class.
        sites: every candidate.
        plain: what the network takes on the example input as it is, where there is one.
        attended: what it will take with all attentions.
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
        """The sites that do not, each with its reason."""
        return tuple(site for site in self.sites if not site.chosen)

    @property
    def parameters(self) -> int:
        """Number of parameters that all attentions add together."""
        return sum(site.parameters for site in self.sites)

    def __str__(self) -> str:
        """Draw the plan as a table, one candidate a line, under a line of totals."""
        return draw(self)
