"""Monitor the excitations of attentions, on some training steps and at evaluation."""

import re
import warnings
from collections.abc import Iterable, Sized
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import cast

import torch
from composer.algorithms.warnings import NoEffectWarning
from composer.callbacks import CheckpointSaver
from composer.core import Callback, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.file_helpers import format_name_with_dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from composer_attn.attention.base import ChannelAttention
from composer_attn.callbacks import excitations
from composer_attn.callbacks.idle import IdleGates
from composer_attn.callbacks.tally import Tally, reduce
from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError, first_few
from composer_attn.surgery import find_attended
from composer_attn.surgery.names import as_patterns, check_patterns, matches, unwrapped

_FIRST_CLASSES = 10
# Name components inserted by activation checkpointing, FSDP and torch.compile.
_WRAPPERS = re.compile(r"\b(_checkpoint_wrapped_module|_fsdp_wrapped_module|_orig_mod)\b\.?")


class ExcitationMonitor(Callback):
    """Log statistics of the excitations of all attentions of a model.

    On logging steps it logs these figures under ``excitation/<layer>/<figure>``, over all samples
    of the batch (all microbatches and ranks); on other steps it costs nothing:

    - ``mean``: mean of the scales, over samples and channels
    - ``std``: their standard deviation, over samples and channels
    - ``saturated_low``: share of channels below 0.05, averaged over the samples
    - ``saturated_high``: share of channels above 0.95
    - ``dead``: share of channels below 0.05 in every sample of the batch
    - ``entropy``: of the channels' shares of the excitation, from 0 (one channel) to 1 (uniform)

    For gates whose range is not 0 to 1 the limits are 5% of the range from its ends.

    At every evaluation it writes, for each class, the mean excitation of each channel and its
    standard deviation over samples, as in figure 5 of `Squeeze-and-Excitation Networks
    <https://arxiv.org/abs/1709.01507>`_, to ``excitations.npz`` in ``folder``, for
    ``composer-attn report``.

    Under ``torch.compile`` a logging step runs eagerly, so that nothing is recompiled.

    Args:
        interval: time between logging steps, in ``ba`` or ``ep``; the step of the batch that
            completes the interval (for epochs, the last batch of the epoch) is logged.
        layers: glob pattern(s) of attended modules to monitor; all by default.
        classes: labels to distinguish at evaluation; the first ten by default.
        histogram: also log the share of scales in each tenth of the gate's range, under
            ``excitation/<layer>/histogram/<from>-<to>``.
        patience: number of consecutive logging steps after which gates that are saturated, or
            that do not change, cause a warning.
        folder: where to write the excitations by class; the Trainer's ``save_folder`` by default,
            without which they are not written.

    Raises:
        ArgumentError: an argument is invalid for any model.
        PatternError: at the start of training, a pattern matches no attended module.

    Warns:
        NoEffectWarning: at the start of training, no module is attended, or the attention is not
            a ChannelAttention, and does not expose its scales.
        IdleGatesWarning: gates are saturated, or do not change.

    Example:
        >>> from composer_attn import ExcitationMonitor
        >>> ExcitationMonitor("1ep", layers="layer4.*", classes=[0, 7]).interval
        Time(1, TimeUnit.EPOCH)
    """

    def __init__(
        self,
        interval: int | str = "100ba",
        layers: str | Iterable[str] | None = None,
        classes: Iterable[int] | None = None,
        histogram: bool = False,
        *,
        patience: int = 5,
        folder: str | None = None,
    ):
        self.interval = _interval(interval)
        self.layers = as_patterns("layers", layers)
        self.classes = _classes(classes)
        self.histogram = histogram
        self.folder = folder
        self._idle = IdleGates(whole_number("patience", patience))
        self._tallies: dict[str, Tally] = {}
        self._looking = ExitStack()
        self._seen = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Check the patterns, and warn if there is nothing to monitor."""
        attended = _attended(state)
        check_patterns("layers", self.layers if attended else None, list(attended))
        shown, chosen = self._attentions(state), self._chosen(state)
        hidden = [
            f"{n} ({type(m.attention).__name__})" for n, m in chosen.items() if n not in shown
        ]
        message = "the model has no added attention to monitor" if not attended else ""
        if hidden:
            message = (
                f"cannot monitor {first_few(hidden)}: only a ChannelAttention exposes its scales"
            )
        if message:
            warnings.warn(f"ExcitationMonitor: {message}", NoEffectWarning, stacklevel=2)

    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Start recording if this step is to be logged."""
        # May be called again within a step: after running out of memory, or by some optimizers.
        self._looking.close()
        self._tallies = {}
        if self._is_due(state):
            attentions = self._attentions(state)
            self._tallies = self._new_tallies(attentions, state, 0, self.histogram)
            self._look(attentions, None)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Stop recording."""
        self._looking.close()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the recorded figures."""
        if not self._tallies:
            return
        tallies, self._tallies = self._tallies, {}
        reduce(tallies.values())
        logger.log_metrics(
            {
                f"excitation/{layer}/{name}": value
                for layer, tally in tallies.items()
                for name, value in (tally.figures() | _under("histogram", tally)).items()
            }
        )
        for layer, tally in tallies.items():
            self._idle.look_at(layer, tally)

    def eval_start(self, state: State, logger: Logger) -> None:
        """Reset the tallies."""
        groups = len(self.classes)
        self._tallies = self._new_tallies(self._attentions(state), state, groups, False)
        self._seen = 0

    def eval_before_forward(self, state: State, logger: Logger) -> None:
        """Record the next forward pass, unless its batch is padding."""
        labels = _labels_of(state.batch)
        if self._tallies and not self._is_padding(state, labels):
            self._look(self._attentions(state), labels)

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        """Stop recording."""
        self._looking.close()

    def eval_end(self, state: State, logger: Logger) -> None:
        """Write the recorded excitations; of several datasets, the last is kept."""
        tallies, self._tallies = self._tallies, {}
        reduce(tallies.values())
        folder = self.folder or _save_folder(state)
        if tallies and folder and dist.get_global_rank() == 0:
            batch = state.timestamp.batch.value
            excitations.write(Path(folder), batch, self.classes, tallies)

    def close(self, state: State, logger: Logger) -> None:
        """Stop recording, however training ended."""
        self._looking.close()

    def _is_due(self, state: State) -> bool:
        """Return whether the step that begins completes an interval."""
        now, every = state.timestamp, self.interval.value
        if self.interval.unit == TimeUnit.BATCH:
            return (now.batch.value + 1) % every == 0
        if state.dataloader_len is None:  # log at the first step of the next epoch instead
            return now.epoch.value > 0 and now.batch_in_epoch == 0 and now.epoch.value % every == 0
        last = now.batch_in_epoch.value + 1 == state.dataloader_len.value
        return last and (now.epoch.value + 1) % every == 0

    def _attentions(self, state: State) -> dict[str, ChannelAttention]:
        # Looked up each time: another algorithm may have changed the model since.
        return {
            name: module.attention
            for name, module in self._chosen(state).items()
            if isinstance(module.attention, ChannelAttention)
        }

    def _chosen(self, state: State) -> dict[str, nn.Module]:
        found = _attended(state).items()
        return {n: m for n, m in found if self.layers is None or matches([n], self.layers)}

    def _new_tallies(
        self, attentions: dict[str, ChannelAttention], state: State, groups: int, histogram: bool
    ) -> dict[str, Tally]:
        device = state.device.tensor_to_device(torch.zeros(())).device
        return {
            name: Tally(attention, groups, histogram, device)
            for name, attention in attentions.items()
        }

    def _look(self, attentions: dict[str, ChannelAttention], labels: Tensor | None) -> None:
        """Register an observer on every attention, until ``_looking`` is closed."""
        self._looking.enter_context(torch.compiler.set_stance("force_eager"))
        members: tuple[Tensor, Tensor] | None = None
        if labels is not None:
            kept = torch.tensor(self.classes, device=labels.device)
            rows, groups = (labels[:, None] == kept).nonzero(as_tuple=True)
            members = rows, groups
        for name, attention in attentions.items():
            by_position = attention.squeeze == "none"
            report = partial(_report, self._tallies[name], labels, members, by_position)
            attention.observer = report
            self._looking.callback(delattr, attention, "observer")

    def _is_padding(self, state: State, labels: Tensor | None) -> bool:
        """Return whether a batch consists of a sample repeated by the sampler to pad the ranks.

        If it contains others as well, Composer has removed the padding.
        """
        if labels is None:
            return False
        before, self._seen = self._seen, self._seen + len(labels)
        sampler = getattr(state.dataloader, "sampler", None)
        if len(labels) != 1 or not isinstance(sampler, DistributedSampler) or sampler.drop_last:
            return False
        padding = sampler.total_size - len(cast(Sized, sampler.dataset))  # as the sampler does
        return before >= sampler.num_samples - (sampler.rank >= sampler.num_replicas - padding)


def _report(
    tally: Tally,
    labels: Tensor | None,
    members: tuple[Tensor, Tensor] | None,
    by_position: bool,
    scales: Tensor,
) -> None:
    if by_position and labels is not None and len(scales) % len(labels) == 0:
        scales = scales.unflatten(0, (len(labels), -1)).mean(1)
    fits = labels is not None and len(labels) == len(scales)  # false if samples are split up
    tally.add(scales, members if fits else None)


def _attended(state: State) -> dict[str, nn.Module]:
    """Return the attended modules by name in the network, without the names of wrappers."""
    model = state.model
    model = model.module if isinstance(model, DistributedDataParallel) else model
    found = find_attended(model)
    return {unwrapped(_WRAPPERS.sub("", name)).rstrip("."): m for name, m in found.items()}


def _labels_of(batch: object) -> Tensor | None:
    """Return the labels ``(N,)`` of a batch of images and labels, which may be one-hot."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return None
    labels = batch[1]
    if not isinstance(labels, Tensor) or labels.ndim not in (1, 2):
        return None
    return labels if labels.ndim == 1 else labels.argmax(1)


def _under(prefix: str, tally: Tally) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in tally.histogram().items()}


def _save_folder(state: State) -> str | None:
    for callback in state.callbacks:
        if isinstance(callback, CheckpointSaver):
            return format_name_with_dist(callback.folder, state.run_name)
    return None


def _interval(interval: int | str) -> Time:
    try:
        time = Time.from_input(interval, TimeUnit.BATCH)
    except (ValueError, TypeError):
        time = None
    if time is None or time.unit not in (TimeUnit.BATCH, TimeUnit.EPOCH) or time.value < 1:
        raise ArgumentError(f"interval must be a number of ba or ep, like 100ba; got {interval!r}")
    return time


def _classes(classes: Iterable[int] | None) -> tuple[int, ...]:
    if classes is None:
        return tuple(range(_FIRST_CLASSES))
    if isinstance(classes, (str, int)) or not isinstance(classes, Iterable):
        raise ArgumentError(f"classes must be labels, like [0, 7]; got {classes!r}")
    return tuple(dict.fromkeys(whole_number("classes", label, minimum=0) for label in classes))
