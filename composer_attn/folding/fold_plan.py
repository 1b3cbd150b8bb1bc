"""What folding does: each convolution with the norm folded into it, or why there is none."""

from dataclasses import dataclass

from composer_attn.surgery.plan_table import align


@dataclass(frozen=True)
class FoldedPair:
    """A convolution, and the norm after it.

    Attributes:
        name: qualified name of the convolution; ``''`` is the model itself.
        kind: name of its class before surgery.
        attended: whether there is attention between the two.
        norm: name of the norm that is folded into it; empty if none is.
        reason: why none is; empty if one is.
    """

    name: str
    kind: str
    attended: bool = False
    norm: str = ""
    reason: str = ""

    @property
    def folded(self) -> bool:
        """Whether a norm is folded into the convolution."""
        return not self.reason


@dataclass(frozen=True)
class FoldPlan:
    """The convolutions of a model, in its order; printing shows a table.

    Attributes:
        pairs: every convolution.
    """

    pairs: tuple[FoldedPair, ...]

    @property
    def folded(self) -> tuple[FoldedPair, ...]:
        """The convolutions that a norm is folded into."""
        return tuple(pair for pair in self.pairs if pair.folded)

    @property
    def left(self) -> tuple[FoldedPair, ...]:
        """The convolutions that none is folded into, each with its reason."""
        return tuple(pair for pair in self.pairs if not pair.folded)

    def __str__(self) -> str:
        """Format the plan as a table with one row per convolution, under a line of totals."""
        between = sum(pair.attended for pair in self.folded)
        head = (
            f"{len(self.folded)} of {len(self.pairs)} convolutions have a norm folded in, "
            f"{between} of them with attention between the two"
        )
        rows: list[tuple[str, ...]] = [("convolution", "kind", "attended", "norm", "folded")]
        for pair in self.pairs:
            name = pair.name or "(the model itself)"
            attended = "yes" if pair.attended else "-"
            verdict = "yes" if pair.folded else f"no: {pair.reason}"
            rows.append((name, pair.kind, attended, pair.norm or "-", verdict))
        return "\n".join([head, *align(rows)])
