"""Steps of several runs, timed in turns."""

import json

import torch

from composer_attn.runs.components.variants import make_variants
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.training import step_times
from composer_attn.runs.training.step_times import measure, read_step_times
from tests.pictures import write_image_folder


def config(**changes) -> RunConfig:
    data = {"name": "synthetic", "num_samples": 16, "num_classes": 10, "size": 32}
    sections = {
        "model": {"name": "resnet10", "num_classes": 10},
        "train_dataset": data,
        "eval_dataset": data | {"num_samples": 9},
        "optimizer": {"name": "decoupled_sgdw", "lr": 0.1},
        "batch_size": 4,
        "device": "cpu",
    }
    return RunConfig(run_name="small", save_folder="runs/small", **(sections | changes))


def test_variants_are_measured_together(tmp_path):
    names = ["plain", "wide=squeeze_excite:min_channels=64,fuse=false"]
    variants = make_variants(config(), names, 1, tmp_path / "out")
    plain, wide = measure([variant.config for variant in variants], 0.1)
    assert plain.measurement == wide.measurement
    assert len(plain.steps) == len(wide.steps) >= 3
    assert all(seconds > 0 for seconds in (*wide.steps, *wide.latencies))
    assert (plain.batch_size, plain.image_shape) == (4, (3, 32, 32))
    assert (plain.batches, plain.evaluation_batches) == (4, 3)
    assert plain.precision == "fp32"
    assert plain.threads == torch.get_num_threads()
    assert plain.device
    # Attention that is not fused keeps its own copy of every feature map that it rescales.
    assert wide.kept_bytes > 1.1 * plain.kept_bytes > 0
    assert not (tmp_path / "out").exists()


def test_images_from_files_are_normalized_as_in_training(tmp_path):
    write_image_folder(tmp_path)
    data = {"name": "image_folder", "root": f"{tmp_path}/train", "size": 32, "resize": 32}
    data |= {"augmentation": "center_crop"}
    (times,) = measure(
        [config(train_dataset=data, eval_dataset=data)], 0.1
    )  # bytes would not pass a convolution
    assert times.image_shape == (3, 32, 32)
    assert min(times.steps) > 0


def test_what_is_kept_is_counted_to_the_byte():
    class Squares(torch.nn.Module):
        def forward(self, batch):
            return batch[0] ** 2

        def loss(self, outputs, batch):
            return outputs.sum()

    subject = object.__new__(step_times._Subject)
    subject.model = Squares()
    images = torch.randn(4, 3, 8, 8, requires_grad=True)
    subject.microbatches = [(images, torch.zeros(4))]
    subject._loss = lambda batch: subject.model.loss(subject.model(batch), batch)
    assert subject.kept_bytes() == 4 * 3 * 8 * 8 * 4


def test_they_are_stored(tmp_path):
    (times,) = measure([config(eval_dataset=None, device_train_microbatch_size=2)], 0.1)
    assert times.evaluation_batches is None
    times.write(tmp_path)
    assert read_step_times(tmp_path / step_times.FILE) == times
    values = json.loads((tmp_path / step_times.FILE).read_text())
    assert values["batch_size"] == 4
    assert read_step_times(tmp_path / "absent.json") is None
