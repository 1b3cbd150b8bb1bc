"""The cost of an attention at its site, and of a whole network, on an example input."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one forward pass of a whole network on an example.

    Attributes:
        parameters: number of parameters, shared ones counted once.
        macs: multiply-accumulates for the whole batch, by torch's flop counter: convolutions and
            matrix products count, element-wise operations do not.
        activation_bytes: bytes that autograd saves for backward: each saved storage once and in
            full, including the example's but not those of parameters and buffers. Measured in
            evaluation mode, hence without dropout masks.
    """

    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class SiteCost:
    """Cost of one forward pass on an example at one site.

    Attributes:
        sizes: spatial size of each call, such as ``((100, 100), (50, 50))`` for a convolution
            shared by two levels; empty if the example does not reach the site.
        sized_by: name of the argument that sizes its attention, such as ``kernel_size``; empty if
            there is none.
        width: value of that argument at the site, such as 5.
        macs: multiply-accumulates of its attention for the whole batch, over all calls.
        activation_bytes: bytes saved for backward only because of its attention: the rescaled
            feature map or, if its consumer saves nothing, the map before it (saved by the scaling),
            plus the scales and what the gate and layers save. See :class:`NetworkCost`.
        parameters_share: its parameters, as a share of the network's with all attentions.
        macs_share: its multiply-accumulates, as a share of the network's with all attentions.
        activation_share: its bytes saved for backward, as a share of the network's.
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
        """Number of times that the site's module runs in one forward pass."""
        return len(self.sizes)


def size_text(sizes: tuple[tuple[int, ...], ...]) -> str:
    """Format the distinct spatial sizes of a site's calls: ``100x100, 50x50``."""
    return ", ".join(dict.fromkeys("x".join(map(str, size)) for size in sizes))


# Such a site is probably part of an attention: see register_existing_attention.
ONE_POSITION = "sees one position (of an attention, or a small example): consider exclude"


def notes_on(sizes: tuple[tuple[int, ...], ...], is_output: bool) -> tuple[str, ...]:
    """Return remarks on a site to consider before it is attended."""
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
