"""What a fusion does: each attention, what it is fused with, or why it is not."""

from dataclasses import dataclass

from composer_attn.surgery.plan_table import align


@dataclass(frozen=True)
class FusedSite:
    """An attention, or a norm without attention.

    Attributes:
        name: name of the attended module, of the network's own attention, or of a norm without
            attention; ``''`` is the model itself.
        kind: name of its class before surgery.
        norm: name of the batch norm that is computed jointly with the attention (the site itself if
            it is a norm); empty if there is none.
        activation: name of the activation that is fused as well (of a function: its torch.fx node
            under the module whose forward calls it); empty if there is none.
        addition: name of the fused addition of a shortcut: its torch.fx node; empty if there is
            none.
        reason: why the attention is computed alone; empty if it is not.
        function: the activation function, one of
            :data:`composer_attn.ops.activations.ACTIVATIONS`.
        last: whether the attention follows the norm and the activation.
        convolution: name of the convolution whose activation and attention are fused if there is no
            norm between them; empty otherwise.
    """

    name: str
    kind: str
    norm: str = ""
    activation: str = ""
    addition: str = ""
    reason: str = ""
    function: str = ""
    last: bool = False
    convolution: str = ""

    @property
    def fused(self) -> bool:
        """Whether the attention is computed jointly with a norm, or with an activation alone."""
        return not self.reason


@dataclass(frozen=True)
class FusionPlan:
    """The attentions of a model, in its order; printing shows a table.

    Attributes:
        backend: name of the backend that computes them.
        sites: every attended site, and every attention of the network's own.
        norms: the norms without attention that are fused with what follows them.
        recomputing: the convolutions that compute their input again in backward instead of keeping
            it, where it is the output of something fused.
    """

    backend: str
    sites: tuple[FusedSite, ...]
    norms: tuple[FusedSite, ...] = ()
    recomputing: tuple[str, ...] = ()

    @property
    def fused(self) -> tuple[FusedSite, ...]:
        """The sites whose attention is not computed alone."""
        return tuple(site for site in self.sites if site.fused)

    @property
    def alone(self) -> tuple[FusedSite, ...]:
        """The sites whose attention is computed alone, each with its reason."""
        return tuple(site for site in self.sites if not site.fused)

    def __str__(self) -> str:
        """Format the plan as a table with one row per site, under a line of totals."""
        head = (
            f"backend {self.backend}: {sum(bool(each.norm) for each in self.fused)} of "
            f"{len(self.sites)} sites fused with a norm, {_count(self.sites)}"
        )
        if self.norms:
            head += f"; {len(self.norms)} other norms, {_count(self.norms)}"
        if self.recomputing:
            head += f"; {len(self.recomputing)} convolutions recompute fused inputs"
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
