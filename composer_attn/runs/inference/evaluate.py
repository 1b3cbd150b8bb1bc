"""Evaluate a trained run, on its own evaluation data or on other data."""

import json
import warnings
from dataclasses import dataclass
from math import isfinite
from typing import Any

from composer import Trainer
from composer.core import DataSpec
from composer.utils import get_device

from composer_attn.errors import ComposerAttnError, ConfigError
from composer_attn.runs.config.config_errors import Mistake, at, foreign
from composer_attn.runs.inference.load_run import LoadedRun
from composer_attn.runs.inference.run_data import evaluation_data
from composer_attn.runs.tasks.table import computed, headline_named


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a trained run on a dataset.

    Attributes:
        run_name: name of the run.
        checkpoint: the file of its weights.
        dataset: the config section that describes the data.
        samples: number of images.
        skipped_images: number of these that were skipped as unreadable.
        metrics: the metrics by name.
    """

    run_name: str
    checkpoint: str
    dataset: dict[str, Any]
    samples: int
    skipped_images: int
    metrics: dict[str, float]

    def as_json(self) -> str:
        """Return the evaluation as one JSON document, with null for non-finite numbers."""
        metrics = {n: v if isfinite(v) else None for n, v in self.metrics.items()}
        return json.dumps(vars(self) | {"metrics": metrics}, indent=2)

    def as_text(self) -> str:
        """Return the evaluation as text, with one metric per line."""
        lines = [f"{self.run_name}: {self.checkpoint} on {self.samples:,} images"]
        if self.skipped_images:
            lines.append(f"  skipped images: {self.skipped_images:,}")
        lines += [f"  {_figure(name, value)}" for name, value in self.metrics.items()]
        return "\n".join(lines)


def evaluate(run: LoadedRun) -> Evaluation:
    """Evaluate a run as its training does: with the same transform, precision and metrics.

    Raises:
        ConfigError: there is no evaluation data, or its classes differ.
    """
    source, data = evaluation_data(run, run.config.batch_size)
    trainer = _trainer(run, data)
    try:
        trainer.eval()
        metrics = {
            name: value
            for group in trainer.state.eval_metrics.values()
            for name, value in computed(group).items()
        }
    except ComposerAttnError:
        raise
    except Exception as error:  # from the data, or from the device
        raise ConfigError(Mistake("eval_dataset", foreign(error))) from error
    finally:
        trainer.close()
        run.model.to("cpu")
    loader: Any = data.dataloader
    return Evaluation(
        run.config.run_name,
        str(run.checkpoint),
        dict(run.config.eval_dataset or {}),
        len(loader.dataset),
        source.skipped(),
        metrics,
    )


def _trainer(run: LoadedRun, data: DataSpec) -> Trainer:
    with at("device"):
        device = get_device(run.config.device)
    with at("precision"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No optimizer was specified")  # nothing is trained here
        return Trainer(
            model=run.model,
            eval_dataloader=data,
            seed=run.config.seed,
            run_name=run.config.run_name,
            precision=run.config.precision,
            device=device,
            dist_timeout=run.config.dist_timeout,
            progress_bar=False,
            auto_log_hparams=False,
        )


def _figure(name: str, value: float) -> str:
    written = headline_named(name)
    return f"{written.label}: {written.written(value)}"
