"""The monitor sees attention that is computed jointly with a batch norm."""

import pytest
import torch
from composer.models import ComposerClassifier
from torch import nn

from composer_attn import ExcitationMonitor, SqueezeExcite
from composer_attn.callbacks.tally import FIGURES
from tests.callbacks.monitored import CLASSES, SE, fit


def with_norms() -> ComposerClassifier:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)]
    head = [nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)]
    return ComposerClassifier(nn.Sequential(*layers, *head), num_classes=CLASSES)


def test_fused_attention_is_seen_as_well():
    figures = {}
    for fuse in (True, False):
        algorithm = SqueezeExcite(**SE, fuse=fuse, backend="reference")
        monitor = ExcitationMonitor("2ba")
        _, logged = fit(monitor, algorithms=[algorithm], model=with_norms())
        assert (len(algorithm.fusion.fused) if fuse else algorithm.fusion) == (2 if fuse else None)
        keys = [key for key in logged.data if key.startswith("excitation/")]
        assert len(keys) == 2 * len(FIGURES)
        figures[fuse] = {key: [float(value) for _, value in logged.data[key]] for key in keys}
    for key, values in figures[False].items():
        assert len(values) == 3
        assert figures[True][key] == pytest.approx(values, abs=1e-4), key
