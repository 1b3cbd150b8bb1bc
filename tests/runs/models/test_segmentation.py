"""Segmentation networks: torchvision's and its heads on other ResNets, their loss and weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models import resnet50, segmentation

from composer_attn import apply_eca, fuse_attention
from composer_attn.errors import ArgumentError, CheckpointError
from composer_attn.runs.models.segmentation import (
    SEGMENTATION_MODELS,
    SegmentationModel,
    backbone_of,
    build_segmentation_model,
    check_segmentation_weights,
    segmentation_classes,
    with_segmentation_classes,
)
from composer_attn.runs.models.segmentation_heads import _dilate, deeplabv3, fcn, lraspp
from composer_attn.runs.models.table import resnet10


def randomize_norms(network: torch.nn.Module) -> None:
    """Give batch norms statistics other than those of a new network."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)


def test_every_segmentation_network_of_torchvision_is_there():
    named = torchvision.models.list_models(module=segmentation)
    assert set(SEGMENTATION_MODELS) == {"deeplabv3", "fcn", "lraspp", *named}


@pytest.mark.parametrize("name", SEGMENTATION_MODELS)
def test_networks_have_the_parameters_of_torchvisions(name):
    with torch.device("meta"):
        model = build_segmentation_model({"name": name, "num_classes": 5})
        assert segmentation_classes({"name": name}) == 21
        if name not in ("deeplabv3", "fcn", "lraspp"):
            theirs = torchvision.models.get_model(
                name, weights=None, weights_backbone=None, num_classes=5
            )
            assert model.module.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_dilation_is_that_of_torchvision(stride):
    theirs = resnet50(replace_stride_with_dilation=[False, stride < 16, stride < 32]).eval()
    own = resnet50().eval()
    before = 1
    for stage, reached in ((own.layer3, 16), (own.layer4, 32)):
        if reached > stride:
            _dilate(stage, before, 2 * before)
            before *= 2
    randomize_norms(theirs)
    own.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(own(images), theirs(images))


@pytest.mark.parametrize("build", [deeplabv3, fcn, lraspp])
@pytest.mark.parametrize("stride", [8, 32])
def test_heads_on_small_resnets_return_logits_of_each_pixel(build, stride):
    network = build(num_classes=4, backbone="resnet10", output_stride=stride).eval()
    features = network.backbone(torch.randn(1, 3, 64, 96))
    last = features["high" if build is lraspp else "out"]
    assert last.shape == (1, 512, 64 // stride, 96 // stride)
    assert network(torch.randn(1, 3, 64, 96))["out"].shape == (1, 4, 64, 96)


@pytest.mark.parametrize("build", [deeplabv3, fcn])
def test_the_auxiliary_classifier_reads_the_third_stage(build):
    network = build(num_classes=4, backbone="resnet10", aux_loss=True)
    assert network.aux_classifier[0].in_channels == 256
    assert network(torch.randn(2, 3, 64, 64))["aux"].shape == (2, 4, 64, 64)


class Constant(torch.nn.Module):
    """Returns given logits."""

    def __init__(self, **logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


def test_the_loss_is_that_of_torchvisions_reference():
    masks = torch.randint(3, (2, 5, 7), dtype=torch.uint8)
    masks[:, 0] = 255
    out, aux = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    batch = torch.zeros(2, 3, 5, 7), masks
    model = SegmentationModel(Constant(out=out, aux=aux), 3)
    theirs = [F.cross_entropy(x, masks.long(), ignore_index=255) for x in (out, aux)]
    torch.testing.assert_close(model.loss(model(batch), batch), theirs[0] + 0.5 * theirs[1])


def test_a_batch_without_any_class_has_no_loss_and_a_gradient_of_zero():
    out = torch.randn(1, 3, 4, 4, requires_grad=True)
    model = SegmentationModel(Constant(out=out), 3)
    batch = torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 255, dtype=torch.uint8)
    loss = model.loss(model(batch), batch)
    loss.backward()
    assert loss.item() == 0
    assert out.grad.abs().max() == 0


def test_metrics_do_not_count_pixels_of_no_class():
    masks = torch.tensor([[[0, 0, 1, 1], [2, 2, 255, 255]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 1, 1, 1], [2, 2, 2, 0]]])
    logits = F.one_hot(predicted, 4).permute(0, 3, 1, 2).float()
    model = SegmentationModel(Constant(out=logits), 4)
    batch = torch.zeros(1, 3, 2, 4), masks
    metrics = model.get_metrics()
    for metric in metrics.values():
        model.update_metric(batch, model.eval_forward(batch), metric)
    # Intersection over union: 1/2, 2/3, 2/2; of the last class there is nothing.
    assert metrics["mean_iou"].compute().item() == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert metrics["pixel_accuracy"].compute().item() == pytest.approx(5 / 6)
    assert model.get_metrics(is_train=True) == {}


@pytest.mark.parametrize("name", ["fcn", "deeplabv3_mobilenet_v3_large"])
def test_the_weights_of_a_classifier_fill_the_backbone(name, tmp_path):
    section = {"name": name, "num_classes": 3} | ({"backbone": "resnet10"} if name == "fcn" else {})
    classifier = (
        resnet10(7) if name == "fcn" else torchvision.models.mobilenet_v3_large(num_classes=7)
    )
    randomize_norms(classifier)
    path = tmp_path / "classifier.pt"
    torch.save(classifier.state_dict(), path)
    model = build_segmentation_model(section | {"weights_backbone": str(path)})
    model.after_surgery()
    theirs = {k.removeprefix("features."): w for k, w in classifier.state_dict().items()}
    for key, weight in model.module.backbone.state_dict().items():
        assert torch.equal(weight, theirs[key])


def test_weights_for_other_classes_keep_a_new_classifier(tmp_path):
    section = {"name": "fcn", "backbone": "resnet10", "aux_loss": True}
    before = build_segmentation_model(section | {"num_classes": 4}).module
    path = tmp_path / "network.pt"
    torch.save(before.state_dict(), path)
    model = build_segmentation_model(section | {"num_classes": 6, "weights": str(path)})
    model.after_surgery()
    after = model.module
    assert after.classifier[4].out_channels == after.aux_classifier[4].out_channels == 6
    assert torch.equal(after.classifier[0].weight, before.classifier[0].weight)
    torch.save(resnet10().state_dict(), path)
    with pytest.raises(CheckpointError, match="holds weights of a different network"):
        build_segmentation_model(section | {"weights": str(path)}).after_surgery()


@pytest.mark.parametrize("name", ["fcn", "deeplabv3_mobilenet_v3_large"])
def test_the_attention_of_a_classifier_goes_into_the_backbone(name, tmp_path):
    section = {"name": name, "num_classes": 3} | ({"backbone": "resnet10"} if name == "fcn" else {})
    classifier = (
        resnet10(7) if name == "fcn" else torchvision.models.mobilenet_v3_large(num_classes=7)
    )
    first = "layer2" if name == "fcn" else "features.5"
    apply_eca(classifier, min_channels=1, include=f"{first}.*")
    torch.save({"state": {"model": {f"module.{k}": w for k, w in classifier.state_dict().items()}}},
               tmp_path / "classifier.pt")  # fmt: skip
    model = build_segmentation_model(section | {"weights_backbone": f"{tmp_path}/classifier.pt"})
    with pytest.raises(CheckpointError, match=r"attention.conv.weight is not in the model"):
        model.after_surgery()
    apply_eca(model.module, min_channels=1, include=f"backbone.{first.removeprefix('features.')}.*")
    model.after_surgery()
    theirs = {k.removeprefix("features."): w for k, w in classifier.state_dict().items()}
    own = model.module.backbone.state_dict()
    assert any(".attention." in key for key in own)
    assert all(torch.equal(weight, theirs[key]) for key, weight in own.items())


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (
            {"name": "fcn_resnet50", "weights": "V1"},
            "weights of fcn_resnet50 must be one of a file, COCO_WITH_VOC_LABELS_V1, DEFAULT",
        ),
        ({"name": "fcn_resnet50", "weights_backbone": "V9"}, "weights of resnet50 must be one of"),
        (
            {"name": "fcn", "weights": "a.pt", "weights_backbone": "b.pt"},
            "leave out weights_backbone",
        ),
        ({"name": "fcn", "weights_backbone": "/none.pt"}, "there is no file '/none.pt'"),
    ],
)
def test_weights_that_do_not_exist_are_refused(section, says):
    with pytest.raises(ArgumentError, match=says):
        check_segmentation_weights(section)


def test_published_weights_keep_their_classes():
    published = {"name": "fcn_resnet50", "weights": "COCO_WITH_VOC_LABELS_V1"}
    check_segmentation_weights(published)
    assert with_segmentation_classes(published, 4)["num_classes"] == 21
    assert with_segmentation_classes({"name": "fcn"}, 4)["num_classes"] == 4
    assert with_segmentation_classes({"name": "fcn", "num_classes": 9}, 4)["num_classes"] == 9


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ({"name": "deeplabv3_mobilenet_v3_large"}, "mobilenet_v3_large"),
        ({"name": "fcn"}, "resnet18"),
        ({"name": "fcn", "backbone": "resnet34"}, "resnet34"),
    ],
)
def test_the_backbone_is_known_by_name(section, name):
    assert backbone_of(section) == name


@pytest.mark.parametrize("classes", [1, 256, 2.5, "3"])
def test_the_number_of_classes_must_fit_a_mask(classes):
    with pytest.raises(ArgumentError, match="num_classes must be a whole number"):
        build_segmentation_model({"name": "fcn", "backbone": "resnet10", "num_classes": classes})


@pytest.mark.parametrize("build", [deeplabv3, lraspp])
def test_fused_attention_in_the_backbone_computes_the_same(build):
    network = build(num_classes=4, backbone="resnet10").train()
    randomize_norms(network)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the numbers that it draws are not what is compared
    apply_eca(network, include="backbone.*", placement="residual", min_channels=1)
    fused = copy.deepcopy(network)
    fuse_attention(fused)
    images = torch.randn(2, 3, 64, 64)
    results = []
    for each in (network, fused):
        out = each(images)["out"]
        out.square().mean().backward()
        results.append((out, {name: p.grad for name, p in each.named_parameters()}))
    assert sum("attention" in name for name in results[0][1]) == 4
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-4)
    for name, gradient in results[0][1].items():
        other = results[1][1][name]
        assert (gradient - other).norm() <= 1e-3 * gradient.norm() + 1e-6, name
