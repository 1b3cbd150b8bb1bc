"""A Trainer on each kind of device: precision, saving there, resuming on a CPU."""

import pytest
import torch
from composer.utils import get_device

from tests.algorithms.training import ALGORITHMS, classifier, loader, sgd, trainer
from tests.devices.test_networks import DEVICES

NAMES = {"cpu": "cpu", "cuda": "gpu"}
# Composer trains in float32 alone on a CPU.
PRECISIONS = {"cpu": ["fp32"], "cuda": ["fp32", "amp_bf16", "amp_fp16"]}


@pytest.mark.parametrize("key", ALGORITHMS)
@pytest.mark.parametrize(
    ("device", "precision"), [(each, name) for each in DEVICES for name in PRECISIONS[each]]
)
def test_a_run_learns_is_saved_and_resumes_elsewhere(key, precision, device, tmp_path):
    model = classifier()
    options = {"train_dataloader": loader(), "device": get_device(NAMES[device])}
    first = trainer(
        [ALGORITHMS[key]()], model=model, optimizer=sgd(model), max_duration="3ep",
        precision=precision, save_folder=str(tmp_path), **options,
    )  # fmt: skip
    first.fit()
    assert next(model.parameters()).device.type == device
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    assert all(torch.isfinite(value).all() for value in state.values())
    again = classifier()
    second = trainer(
        [ALGORITHMS[key]()], model=again, optimizer=sgd(again), max_duration="4ep",
        device=get_device("cpu"), train_dataloader=loader(),
        load_path=str(tmp_path / "latest-rank0.pt"),
    )  # fmt: skip
    loaded = {name: value.cpu() for name, value in again.state_dict().items()}
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    second.fit()
    assert second.state.timestamp.epoch == 4
