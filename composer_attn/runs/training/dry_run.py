"""Dry run: build everything, print what would be trained, and stop."""

from dataclasses import replace
from typing import Any

from composer import Trainer
from composer.utils import dist
from rich.console import Console
from rich.table import Table

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.runs.config.parallelism import join_ranks
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.training.build import Parts, build_parts, build_trainer
from composer_attn.runs.training.network_cost import count_parameters
from composer_attn.runs.training.summary import macs_of


def rehearse(config: RunConfig, console: Console | None = None) -> None:
    """Build what a config describes, surgery included; print plans, groups and sizes; save nothing.

    Raises:
        ConfigError: something in the config is invalid.
    """
    join_ranks(config)
    parts = build_parts(config)
    before = count_parameters(parts.model)
    # Loggers and callbacks would create their files as soon as the Trainer is built.
    silent = replace(parts, loggers=[], callbacks=[])
    trainer = build_trainer(config, silent, save_folder=None)
    try:
        if dist.get_global_rank() == 0:
            _report(config, parts, trainer, before, console or Console())
    finally:
        trainer.close()


def _report(
    config: RunConfig, parts: Parts, trainer: Trainer, before: int, console: Console
) -> None:
    for algorithm in trainer.state.algorithms:
        if isinstance(algorithm, AttentionAlgorithm):
            console.print(str(algorithm.plan), highlight=False, soft_wrap=True)
    console.print(_groups(trainer))
    console.print(_sizes(config, parts, before))


def _groups(trainer: Trainer) -> Table:
    table = Table("group", "lr", "weight decay", "tensors", "parameters", title="parameter groups")
    for optimizer in trainer.state.optimizers:
        for index, group in enumerate(optimizer.param_groups):
            # Parameters frozen by ``train`` are never updated.
            trained = [parameter for parameter in group["params"] if parameter.requires_grad]
            count = sum(parameter.numel() for parameter in trained)
            lr = f"{group.get('initial_lr', group['lr']):g}"  # before warm-up
            decay = f"{group.get('weight_decay', 0):g}"
            table.add_row(str(index), lr, decay, str(len(trained)), f"{count:,}")
    return table


def _sizes(config: RunConfig, parts: Parts, before: int) -> Table:
    table = Table(show_header=False, title="sizes")
    table.add_row("parameters before", f"{before:,}")
    table.add_row("parameters after", f"{count_parameters(parts.model):,}")
    macs = macs_of(config, parts)
    if macs is not None:
        table.add_row("multiply-accumulates", f"{macs:,} an image")
    for name, data in (("train", parts.train_data), ("eval", parts.eval_data)):
        if data is not None:
            loader: Any = data.dataloader  # the loader and its dataset both have a length
            samples, batches = len(loader.dataset), len(loader)
            table.add_row(f"{name} samples", f"{samples:,} in {batches:,} batches per rank")
    if parts.start.text:
        table.add_row("starts from", parts.start.text)
    table.add_row("batch size", f"{config.batch_size:,} over {dist.get_world_size()} ranks")
    table.add_row("max duration", config.max_duration)
    return table
