"""Composer's ``export_for_inference``, from a model, a Trainer and a checkpoint."""

import inspect
from contextlib import nullcontext

import onnxruntime
import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from composer.utils import export_for_inference
from torch.utils.data import DataLoader, TensorDataset

from composer_attn import ECA, SqueezeExcite
from composer_attn.functional import apply_eca, apply_squeeze_excite, attended_modules
from tests.export.attended import assert_same_numbers, attended, longer
from tests.networks import MIN_CHANNELS, NETWORKS
from tests.surgeries import each_surgery

NETWORK = NETWORKS["resnet"]
# Composer leaves the way of exporting to torch. Its default since 2.9, torch.export, cannot convert
# dynamic_axes of a batch in a tuple: torch.onnx.export(dynamo=False) does (test_onnx.py).
TAKES_AXES = inspect.signature(torch.onnx.export).parameters["dynamo"].default is not True
AXES = {"input": {0: "batch"}, "output": {0: "batch"}}
each_format = pytest.mark.parametrize("save_format", ["torchscript", "onnx"])
each_algorithm = pytest.mark.parametrize(
    ("algorithm", "apply"), [(SqueezeExcite, apply_squeeze_excite), (ECA, apply_eca)]
)


def batch_of(x):
    return x, torch.zeros(len(x), dtype=torch.long)


def logits(path, save_format, x):
    if save_format == "torchscript":
        return torch.jit.load(path)(batch_of(x))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    # The labels are an input only where torch exports unused ones.
    given = zip(session.get_inputs(), batch_of(x), strict=False)
    (output,) = session.run(None, {each.name: tensor.numpy() for each, tensor in given})
    return torch.from_numpy(output)


@each_surgery
@each_format
def test_a_model_is_exported_and_takes_other_batches(surgery, save_format, tmp_path):
    model = ComposerClassifier(attended(NETWORK, surgery), num_classes=10).eval()
    x, path = NETWORK.batch(), str(tmp_path / "model")
    is_dynamic = save_format == "torchscript" or TAKES_AXES
    export_for_inference(
        model,
        save_format,
        path,
        sample_input=(batch_of(x),),
        dynamic_axes=AXES if is_dynamic else None,
    )
    for images in (x, longer(x)) if is_dynamic else (x,):
        assert_same_numbers(logits(path, save_format, images), model(batch_of(images)))
    assert len(attended_modules(model)) == len(NETWORK.sites)


@pytest.mark.parametrize("surgery", [None, apply_eca])
def test_axes_of_a_batch_in_a_tuple_are_torchs_to_convert_or_refuse(surgery, tmp_path):
    network = NETWORK.build()
    if surgery is not None:
        surgery(network, min_channels=MIN_CHANNELS)
    model = ComposerClassifier(network, num_classes=10).eval()
    sample = (batch_of(NETWORK.batch()),)
    refused = nullcontext() if TAKES_AXES else pytest.raises(RuntimeError, match="dynamic_axes")
    with refused:
        export_for_inference(
            model, "onnx", str(tmp_path / "model"), sample_input=sample, dynamic_axes=AXES
        )


@each_algorithm
@each_format
def test_a_trainer_exports_what_it_trained_as_does_its_checkpoint(
    algorithm, apply, save_format, tmp_path
):
    x = NETWORK.batch()
    model = ComposerClassifier(NETWORK.build(), num_classes=10)
    trainer = Trainer(
        model=model,
        algorithms=[algorithm(min_channels=MIN_CHANNELS)],
        # Small steps: Composer's own lr=0.1 blows logits up to 1e4, rounding with them.
        optimizers=torch.optim.SGD(model.parameters(), lr=1e-3),
        train_dataloader=DataLoader(TensorDataset(*batch_of(x)), batch_size=2),
        max_duration="1ba",
        save_folder=str(tmp_path / "checkpoints"),
        save_filename="last.pt",
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trained = str(tmp_path / "trained")
    if save_format == "onnx":
        trainer.export_for_inference(save_format, trained, sample_input=batch_of(x))
    else:
        # The Trainer's method adds an empty dictionary to the sample, which cannot be traced.
        export_for_inference(trainer.state.model, save_format, trained, sample_input=(batch_of(x),))
    model = trainer.state.model.eval()
    assert_same_numbers(logits(trained, save_format, x), model(batch_of(x)))

    # Into a network of other weights that has had the same surgery.
    loaded = str(tmp_path / "loaded")
    export_for_inference(
        ComposerClassifier(NETWORK.build(), num_classes=10),
        save_format,
        loaded,
        sample_input=(batch_of(x),),
        surgery_algs=lambda fresh: apply(fresh, min_channels=MIN_CHANNELS),
        load_path=str(tmp_path / "checkpoints" / "last.pt"),
        load_strict=True,
    )
    assert_same_numbers(logits(loaded, save_format, x), model(batch_of(x)))
