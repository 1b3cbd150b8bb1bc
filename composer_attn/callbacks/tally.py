"""Sums over excitations, additive over batches and ranks, from which all figures follow."""

from collections.abc import Iterable
from math import isfinite, log

import torch
from composer.utils import dist
from torch import Tensor

from composer_attn.attention.base import ChannelAttention

FIGURES = ("mean", "std", "saturated_low", "saturated_high", "dead", "entropy")
BINS = 10
# A scale is saturated within this share of its gate's range from either end.
_MARGIN = 0.05
_COUNT, _SUM, _SQUARES, _LOW, _HIGH = range(5)


class Tally:
    """Sums over the excitations ``(N, C)`` of one layer, for all samples and for groups of them.

    A scale is saturated within 5% of an end of its gate's range: below 0.05 or above 0.95 for a
    sigmoid from 0 to 1; a ReLU has no upper end.

    Args:
        attention: the attention that computes the excitations.
        groups: number of groups of samples that are also summed separately.
        histogram: whether to count scales by tenths of their range.
        device: device of the sums.

    Attributes:
        sums: ``(groups + 1, 5, C)``: number of samples, sum, sum of squares, number of scales
            saturated below and above; the last group is that of all samples.
        counts: ``(10,)``, the histogram, or ``(0,)``.
    """

    def __init__(
        self, attention: ChannelAttention, groups: int, histogram: bool, device: torch.device
    ):
        low, high = attention.gate_range
        # No scale is near an infinite end; the histogram then covers tenths from 0, or up to 1.
        width = high - low if isfinite(high - low) else 1.0
        self._low, self._width = (low if isfinite(low) else 0.0), width
        self._near_low = low + _MARGIN * width
        self._near_high = high - _MARGIN * width
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(groups + 1, 5, attention.channels, dtype=dtype, device=device)
        self.counts = torch.zeros(BINS if histogram else 0, dtype=dtype, device=device)

    def add(self, scales: Tensor, members: tuple[Tensor, Tensor] | None = None) -> None:
        """Add the excitations ``(N, C)`` of a batch.

        Args:
            scales: the excitations.
            members: which rows of the batch are in which groups: row indices and group indices.
        """
        s = scales.to(self.sums.device, self.sums.dtype)
        powers = (torch.ones_like(s), s, s * s)
        terms = torch.stack((*powers, s < self._near_low, s > self._near_high), dim=1)
        self.sums[-1] += terms.sum(0)
        if members is not None:
            rows, groups = members
            self.sums.index_add_(0, groups, terms[rows])
        if len(self.counts):
            tenths = ((s - self._low) / self._width * BINS).long().clamp(0, BINS - 1)
            self.counts += torch.bincount(tenths.flatten(), minlength=BINS)

    def mean(self) -> Tensor:
        """Return the mean of each channel ``(groups + 1, C)``; nan for groups without samples."""
        return self.sums[:, _SUM] / self.sums[:, _COUNT]

    def deviation(self) -> Tensor:
        """Return the standard deviation over samples of each channel ``(groups + 1, C)``."""
        spread = self.sums[:, _SQUARES] / self.sums[:, _COUNT] - self.mean() ** 2
        return spread.clamp(min=0).sqrt()  # rounding can take it below 0

    def samples(self) -> Tensor:
        """Return the number of samples of each group ``(groups + 1,)``."""
        return self.sums[:, _COUNT, 0]

    def figures(self) -> dict[str, float]:
        """Return the figures of :data:`FIGURES` over all samples; nan if there were none."""
        count, total, squares, low, high = self.sums[-1]
        mean = (total / count).mean()
        values = {
            "mean": mean,
            "std": ((squares / count).mean() - mean**2).clamp(min=0).sqrt(),
            "saturated_low": (low / count).mean(),
            "saturated_high": (high / count).mean(),
            "dead": (low == count).double().mean() if count[0] else mean,
            "entropy": _entropy((total / count).abs()),
        }
        return {name: float(values[name]) for name in FIGURES}

    def histogram(self) -> dict[str, float]:
        """Return the share of scales in each tenth of the gate's range; ``{}`` without counts."""
        shares = (self.counts / self.counts.sum()).tolist()
        ends = [self._low + self._width * i / BINS for i in range(BINS + 1)]
        return {f"{a:.1f}-{b:.1f}": s for a, b, s in zip(ends, ends[1:], shares, strict=False)}


def _entropy(means: Tensor) -> Tensor:
    """Return the entropy of the channels' shares: 1 if all are equal, 0 if only one is not 0."""
    if len(means) == 1 or not means.sum():
        return torch.zeros(())
    shares = means / means.sum()
    return -torch.special.xlogy(shares, shares).sum() / log(len(means))


def reduce(tallies: Iterable[Tally]) -> None:
    """Sum the tallies over all ranks with one all-reduce, and move them to the CPU."""
    tensors = [tensor for tally in tallies for tensor in (tally.sums, tally.counts)]
    if not tensors:
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(together, reduce_operation="SUM")
    parts = iter(together.cpu().double().split([tensor.numel() for tensor in tensors]))
    for tally in tallies:
        tally.sums = next(parts).view(tally.sums.shape)
        tally.counts = next(parts)
