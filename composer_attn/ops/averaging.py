"""Norms that average their statistics over other sets of values than batch norm does.

Every norm that normalizes a feature map ``x`` by its own statistics averages moments over space::

    mu  = A(m)        var = A(v + (m - mu)^2)        w = gamma / sqrt(var + eps)
    y   = w x + (beta - mu w)

where ``m``, ``v (N, C)`` are mean and variance of ``x`` over space, and ``A`` averages over the
values that are normalized together: all samples (batch norm), those of all ranks (synchronized),
groups of samples (ghost batch norm), groups of channels of each sample (group norm), or nothing
more (instance norm). Averages are idempotent, so that in the gradient ``A'``, the adjoint of ``A``,
is all that depends on the norm. With ``B = sum(dy)``, ``D = sum(dy (x - m))`` over space and
``T = D + B (m - mu)``::

    dbeta = sum_n B      dgamma = sum_n T / sqrt(var + eps)
    dx = w dy - A'(w B) / L - (x - mu) A'(w T / (var + eps)) / L

All of this is on ``(N, C)`` numbers: the passes over the map are those of batch norm.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.ops.normalization import Running, running_statistics, weighted


class Averaging(Protocol):
    """Which values of a feature map are normalized together. One object serves one call."""

    @property
    def per_channel(self) -> bool:
        """Whether all samples share their statistics, which are ``(C,)`` then, not ``(N, C)``."""
        ...

    def statistics(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Average moments ``(N, C)``, differentiably: return ``mu`` and ``var``."""
        ...

    def adjoint(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the adjoint of the averaging to two gradients ``(N, C)``."""
        ...

    def update(self, mu: Tensor, var: Tensor) -> None:
        """Update the running statistics, if there are any."""
        ...


class _Within:
    """An averaging within the ``(N, C)`` tensors, by :meth:`average`, which is self-adjoint."""

    per_channel = False

    def average(self, numbers: Tensor) -> Tensor:
        """Replace every number by the average of those that are normalized together."""
        raise NotImplementedError

    def statistics(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Average moments."""
        mu = self.average(mean)
        return mu, self.average(variance + (mean - mu).square())

    def adjoint(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Average both."""
        return self.average(first), self.average(second)

    def update(self, mu: Tensor, var: Tensor) -> None:
        """Keep no running statistics."""


@dataclass(frozen=True)
class ByInstance(_Within):
    """Each channel of each sample by itself.

    Attributes:
        running: running statistics to update by the average over the samples, if any.
    """

    running: Running | None = None

    def average(self, numbers: Tensor) -> Tensor:
        """Return the numbers."""
        return numbers

    def update(self, mu: Tensor, var: Tensor) -> None:
        """Update by the average over the samples, as ``nn.InstanceNorm`` does."""
        if self.running is not None:
            self.running.move(mu.mean(0), var.mean(0))


@dataclass(frozen=True)
class ByChannelGroup(_Within):
    """Groups of adjacent channels of each sample.

    Attributes:
        groups: number of groups, which divides the number of channels.
    """

    groups: int

    def average(self, numbers: Tensor) -> Tensor:
        """Average over the channels of each group."""
        apart = numbers.reshape(len(numbers), self.groups, -1)
        return apart.mean(2, keepdim=True).expand_as(apart).reshape(numbers.shape)


@dataclass(frozen=True)
class BySampleGroup(_Within):
    """Groups of consecutive samples, of which the last may be smaller.

    Attributes:
        norm: the batch norm that is called on each group, whose running statistics are updated.
        size: number of samples of a group.
        positions: number of positions of the feature map.
        fraction: factor of the momentum.
    """

    norm: _BatchNorm
    size: int
    positions: int
    fraction: float

    def average(self, numbers: Tensor) -> Tensor:
        """Average over the samples of each group."""
        samples, channels = numbers.shape
        whole = samples - samples % self.size
        parts = [numbers[:whole].reshape(-1, self.size, channels)]
        if whole < samples:
            parts.append(numbers[whole:].reshape(1, -1, channels))
        averages = [part.mean(1, keepdim=True).expand_as(part) for part in parts]
        return torch.cat([each.reshape(-1, channels) for each in averages])

    def update(self, mu: Tensor, var: Tensor) -> None:
        """Update by one group after the other."""
        for at in range(0, len(mu), self.size):
            count = min(self.size, len(mu) - at) * self.positions
            running = running_statistics(self.norm, count)
            if running is not None:
                # Only a momentum of None is a tensor: ghost batch norm refuses it in training.
                momentum = running.momentum * self.fraction
                running._replace(momentum=momentum).move(mu[at], var[at])


class Synchronized:
    """All samples of all ranks, as in ``nn.SyncBatchNorm``: one collective in each direction.

    Args:
        group: the process group.
        positions: number of positions of the feature map on this rank.
        eps: eps of the norm.
        running: running statistics to update, if any.
    """

    per_channel = True

    def __init__(self, group: Any, positions: int, eps: float, running: Running | None):
        self.group, self.positions, self.eps, self.running = group, positions, eps, running
        self.total: Any = None  # values per channel on all ranks, once they are known

    def statistics(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Average over the samples, then over the ranks."""
        own = mean.mean(0)
        var = (variance + (mean - own).square()).mean(0)
        return _AverageOverRanks.apply(own, var, self, len(mean))

    def adjoint(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over the samples of all ranks, each divided by the number of all values."""
        sums = self.sum_over_ranks(first.sum(0), second.sum(0))
        share = self.positions / self.total
        return sums[0] * share, sums[1] * share

    def update(self, mu: Tensor, var: Tensor) -> None:
        """Update by the statistics of all ranks, the same on each."""
        if self.running is not None:
            self.running.blend(mu, var * (self.total / (self.total - 1)))

    def sum_over_ranks(self, *numbers: Tensor) -> Tensor:
        """Sum tensors of equal shape over the ranks, in one collective."""
        stacked = torch.stack(numbers)
        torch.distributed.all_reduce(stacked, group=self.group)
        return stacked

    def gather(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return each rank's statistics ``(ranks, C)`` and number of values ``(ranks, 1)``.

        What is sent is what ``nn.SyncBatchNorm`` sends, so that both can meet in one collective: a
        rank's module computes an empty batch by itself.
        """
        sent = torch.cat([mean, torch.rsqrt(var + self.eps), mean.new_full((1,), count)])
        ranks = torch.distributed.get_world_size(self.group)
        if sent.is_cpu or torch.distributed.get_backend(self.group) == "gloo":
            each = [torch.empty_like(sent) for _ in range(ranks)]
            torch.distributed.all_gather(each, sent, self.group)
            found = torch.stack(each)
        else:
            found = sent.new_empty(ranks, len(sent))
            torch.distributed.all_gather_into_tensor(found.view(-1), sent, self.group)
        means, inverses, counts = found.split(len(mean), 1)
        # An empty rank sends zeros.
        variances = torch.where(counts > 0, inverses, 1).pow(-2) - self.eps
        return means, variances.clamp_min(0), counts


class _AverageOverRanks(torch.autograd.Function):
    """Mean and variance of the values of all ranks, given those of this one."""

    @staticmethod
    def forward(ctx, mean: Tensor, var: Tensor, averaging: Synchronized, samples: int):
        """Gather and average."""
        means, variances, counts = averaging.gather(mean, var, samples * averaging.positions)
        averaging.total = counts.sum()
        weights = counts / averaging.total
        mu = (weights * means).sum(0)
        ctx.averaging, ctx.samples = averaging, samples
        ctx.save_for_backward(mean - mu)
        return mu, (weights * (variances + (means - mu).square())).sum(0)

    @staticmethod
    def backward(ctx, d_mu: Tensor, d_var: Tensor):
        """Sum the gradients over the ranks; this one has its share of them."""
        averaging = ctx.averaging
        (deviation,) = ctx.saved_tensors
        d_mu, d_var = averaging.sum_over_ranks(d_mu, d_var)
        share = ctx.samples * averaging.positions / averaging.total
        return share * (d_mu + 2 * d_var * deviation), share * d_var, None, None


def normalization(
    averaging: Averaging,
    s: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize ``s x``; arguments and results are those of :func:`.normalization.normalization`.

    Mean and inverse standard deviation are ``(C,)`` or ``(N, C)``.
    """
    mu, var = averaging.statistics(s * mean, s.square() * variance)
    averaging.update(mu, var)
    inverse = torch.rsqrt(var + eps)
    w = weighted(inverse, weight)
    shift = -mu * w if bias is None else bias - mu * w
    return s * w, shift.expand_as(s).contiguous(), mu, inverse


def normalization_gradient(
    averaging: Averaging,
    d_scale: Tensor,
    d_shift: Tensor,
    s: Tensor,
    mean: Tensor,
    variance: Tensor,
    mu: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate :func:`normalization`, as :func:`.normalization.normalization_gradient`."""
    w = weighted(inverse, weight)
    deviation = torch.addcmul(-mu, s, mean)
    d_w = torch.addcmul(d_scale * s, d_shift, deviation)
    # The gradient of mu, and twice that of var.
    d_mu, d_var = averaging.adjoint(-w * d_shift, -w * inverse.square() * d_w)
    d_scaled = torch.addcmul(d_mu.expand_as(s), d_var, deviation)
    # The terms nearly cancel if the mean is large: add them before multiplying by it.
    d_s = torch.addcmul(torch.addcmul(d_scaled, d_shift, w) * mean, d_scale, w)
    d_s = torch.addcmul(d_s, d_var * s, variance)
    d_weight, d_bias = (d_w * inverse).sum(0), d_shift.sum(0)
    return d_s, d_scaled * s, s.square() * d_var / 2, d_weight, d_bias
