"""What folding does: every convolution, the norm that goes into it, or why none does."""

from dataclasses import dataclass

from composer_attn.surgery.plan_table import align


@dataclass(frozen=True)
class FoldedPair:
    """A convolution, and the norm behind it.

    Attributes:
        name: the convolution's name in the model; ``''`` is the model itself.
        kind: the name of its class before surgery.
        attended: whether attention stands between the two.
        norm: name of the norm that goes into it; empty where none does.
        reason: why none does; empty where one does.
    """

    name: str
    kind: str
    attended: bool = False
    norm: str = ""
    reason: str = ""

    @property
    def folded(self) -> bool:
        """Whether a norm goes into the convolution."""
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
        """The convolutions that a norm goes into."""
        return tuple(pair for pair in self.pairs if pair.folded)

    @property
    def left(self) -> tuple[FoldedPair, ...]:
        """The others, each with its reason."""
        return tuple(pair for pair in self.pairs if not pair.folded)

    def __str__(self) -> str:
        """Draw the plan as a table, one convolution a line, under a line of totals."""
        between = sum(pair.attended for pair in self.folded)
        head = (
            f"{len(self.folded)} of {len(self.pairs)} convolutions take in a norm, "
            f"{between} of them with attention between the two"
        )
        rows: list[tuple[str, ...]] = [("convolution", "kind", "attended", "norm", "folded")]
        for pair in self.pairs:
            name = pair.name or "(the model itself)"
            attended = "yes" if pair.attended else "-"
            verdict = "yes" if pair.folded else f"no: {pair.reason}"
            rows.append((name, pair.kind, attended, pair.norm or "-", verdict))
        return "\n".join([head, *align(rows)])
