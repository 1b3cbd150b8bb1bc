"""What a fusion does: every attention, what it is computed jointly with, or why not."""

from dataclasses import dataclass

from composer_attn.surgery.plan_table import align


@dataclass(frozen=True)
class FusedSite:
    """One attention, or one norm without.

    Attributes:
        name: of the attended module, or of an attention that the network came with; of a norm that
            no attention goes with, its own. ``''`` is the model itself.
        kind: the name of its class before surgery.
        norm: name of the batch norm that is computed jointly with its attention (its own where it
            is one itself); empty where there is none.
        activation: name of the activation that is part of it too (of a function, as torch.fx names
            it below the module whose forward calls it); empty where there is none.
        addition: the addition of a shortcut that is part of it too, as torch.fx names it; empty
            where there is none.
        reason: why no batch norm is, and its attention computed alone; empty where one is.
        function: which activation that is, one of
            :data:`composer_attn.ops.activations.ACTIVATIONS`.
        last: whether the attention comes after the norm and the activation.
    """

    name: str
    kind: str
    norm: str = ""
    activation: str = ""
    addition: str = ""
    reason: str = ""
    function: str = ""
    last: bool = False

    @property
    def fused(self) -> bool:
        """Whether attention and a batch norm are computed jointly."""
        return not self.reason


@dataclass(frozen=True)
class FusionPlan:
    """The attentions of a model, in its order; printing shows a table.

    Attributes:
        backend: what computes them.
        sites: every attended site, and every attention that the network came with.
        norms: the norms without attention that are computed with what follows them.
    """

    backend: str
    sites: tuple[FusedSite, ...]
    norms: tuple[FusedSite, ...] = ()

    @property
    def fused(self) -> tuple[FusedSite, ...]:
        """The sites whose attention is computed jointly with a batch norm."""
        return tuple(site for site in self.sites if site.fused)

    @property
    def alone(self) -> tuple[FusedSite, ...]:
        """The others, each with its reason."""
        return tuple(site for site in self.sites if not site.fused)

    def __str__(self) -> str:
        """Draw the plan as a table, one site a line, under a line of totals."""
        head = (
            f"backend {self.backend}: {len(self.fused)} of {len(self.sites)} sites fused "
            f"with a norm, {_count(self.sites)}"
        )
        if self.norms:
            head += f"; {len(self.norms)} other norms, {_count(self.norms)}"
        rows: list[tuple[str, ...]] = [
            ("site", "kind", "norm", "activation", "addition", "fused"),
            *map(_row, self.sites),
            *map(_row, self.norms),
        ]
        return "\n".join([head, *align(rows)])


def _count(sites: tuple[FusedSite, ...]) -> str:
    activations = sum(bool(site.activation) for site in sites)
    additions = sum(bool(site.addition) for site in sites)
    return f"{activations} with an activation, {additions} with an addition"


def _row(site: FusedSite) -> tuple[str, ...]:
    verdict = f"no: {site.reason}" if site.reason else "yes"
    joined = (part or "-" for part in (site.norm, site.activation, site.addition))
    return (site.name or "(the model itself)", site.kind, *joined, verdict)
