"""What an attention costs at its site, and a network as a whole, on an example input."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkCost:
    """What one forward pass of a whole network on an example takes.

    Attributes:
        parameters: number of parameters, shared ones once.
        macs: multiply-accumulates of the whole batch, by torch's flop counter: convolutions and
            matrix products count, what is done element by element does not.
        activation_bytes: bytes that autograd keeps for backward: each storage that an operation
            saves, once and whole, the example's own included, parameters and buffers not. In
            evaluation mode: masks of dropout are not among them.
    """

    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class SiteCost:
    """What one forward pass on an example takes at one site.

    Attributes:
        sizes: spatial size of each call, like ``((100, 100), (50, 50))`` of a convolution shared
            over two levels; empty where the example does not get there.
        sized_by: name of the argument that sizes its attention, like ``kernel_size``; empty where
            none does.
        width: that argument's value there, like 5.
        macs: multiply-accumulates of its attention, of the whole batch, over all calls.
        activation_bytes: bytes kept for backward that are not kept without its attention: the
            rescaled feature map or, where its consumer keeps nothing, the one before (the scaling
            keeps it), with the scales and what the gate and layers keep. See :class:`NetworkCost`.
        parameters_share: share of its parameters in those of the network with all attentions.
        macs_share: likewise, of the multiply-accumulates.
        activation_share: likewise, of the bytes kept for backward.
    """

    sizes: tuple[tuple[int, ...], ...]
    sized_by: str = ""
    width: int | float | None = None
    macs: int = 0
    activation_bytes: int = 0
    parameters_share: float = 0.0
    macs_share: float = 0.0
    activation_share: float = 0.0

    @property
    def calls(self) -> int:
        """How often the site's module runs in one forward pass."""
        return len(self.sizes)


def size_text(sizes: tuple[tuple[int, ...], ...]) -> str:
    """Write the distinct spatial sizes of a site's calls: ``100x100, 50x50``."""
    return ", ".join(dict.fromkeys("x".join(map(str, size)) for size in sizes))


# Where a map has no more, an attention of its own is likely around it: register_existing_attention.
ONE_POSITION = "sees one position (of an attention, or a small example): consider exclude"


def notes_on(sizes: tuple[tuple[int, ...], ...], is_output: bool) -> tuple[str, ...]:
    """Say what is worth knowing before a site is attended."""
    notes = []
    if not sizes:
        notes.append("not called on this example")
    if len(sizes) > 1:
        notes.append(f"called {len(sizes)} times in one forward pass, at {size_text(sizes)}")
    if sizes and all(side == 1 for size in sizes for side in size):
        notes.append(ONE_POSITION)
    if is_output:
        notes.append("its output is the network's output: consider exclude")
    return tuple(notes)
