"""What a fusion does: every attended site, what it is computed jointly with, or why not."""

from dataclasses import dataclass

from composer_attn.surgery.plan_table import align


@dataclass(frozen=True)
class FusedSite:
    """One attended module.

    Attributes:
        name: the module's name in the model; ``''`` is the model itself.
        kind: the name of its class before surgery.
        norm: name of the batch norm that is computed jointly with its attention (its own where it
            is one itself); empty where there is none.
        addition: the addition of a shortcut that is part of it too, as torch.fx names it below the
            module whose forward adds; empty where there is none.
        relu: name of the ReLU that is part of it too (of a function, as torch.fx names it); empty
            where there is none.
        reason: why no batch norm is, and its attention computed alone; empty where one is.
    """

    name: str
    kind: str
    norm: str = ""
    addition: str = ""
    relu: str = ""
    reason: str = ""

    @property
    def fused(self) -> bool:
        """Whether attention and a batch norm are computed jointly."""
        return not self.reason


@dataclass(frozen=True)
class FusionPlan:
    """The attended sites of a model, in its order; printing shows a table.

    Attributes:
        backend: what computes them.
        sites: every attended site.
    """

    backend: str
    sites: tuple[FusedSite, ...]

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
            f"with a norm, {sum(bool(site.relu) for site in self.sites)} with a ReLU, "
            f"{sum(bool(site.addition) for site in self.sites)} with an addition"
        )
        rows: list[tuple[str, ...]] = [("site", "kind", "norm", "addition", "relu", "fused")]
        for site in self.sites:
            name = site.name or "(the model itself)"
            verdict = "yes" if site.fused else f"no: {site.reason}"
            joined = (part or "-" for part in (site.norm, site.addition, site.relu))
            rows.append((name, site.kind, *joined, verdict))
        return "\n".join([head, *align(rows)])
