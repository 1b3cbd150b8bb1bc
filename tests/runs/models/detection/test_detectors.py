"""Detectors: names, losses, backbones, frozen parts, weights from files; fused as unfused."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from composer_attn import apply_eca, apply_squeeze_excite, attended_modules, fuse_attention
from composer_attn.errors import ArgumentError, CheckpointError
from composer_attn.runs.data import build_loader
from composer_attn.runs.data.detection.coco import coco_boxes, coco_keypoints, coco_masks
from composer_attn.runs.models.detection.backbones import stages_of
from composer_attn.runs.models.detection.build import (
    DETECTORS,
    KEYPOINT_NETWORKS,
    MASK_NETWORKS,
    build_detector,
    build_keypoint_network,
    build_mask_network,
    build_network,
    check_weights,
    num_classes_of,
    with_num_classes,
)
from composer_attn.runs.models.table import resnet10
from tests.detection_data import content, write_coco

SMALL = {
    "name": "faster_rcnn", "backbone": "resnet10", "num_classes": 3, "min_size": 64,
    "max_size": 96, "fpn_channels": 16, "box_head_channels": 32,
    "anchor_sizes": [8, 16, 32, 48, 64],
}  # fmt: skip
HEADS = {name: value for name, value in SMALL.items() if name not in ("name", "backbone")}


def batch_of(source, size=4):
    data = build_loader(source, size, train=False, seed=0)
    return data.microbatch_transforms(next(iter(data.dataloader)))


@pytest.fixture
def batch(tmp_path):
    return batch_of(coco_boxes(**write_coco(tmp_path / "data")))


def losses_of(model, batch):
    torch.manual_seed(3)  # boxes are sampled at random
    return model.loss(model(batch), batch)


@pytest.mark.parametrize("name", [*DETECTORS, *MASK_NETWORKS, *KEYPOINT_NETWORKS])
def test_every_network_can_be_built_without_memory(name):
    with torch.device("meta"):
        network = build_network({"name": name, "num_classes": 5})
    assert sum(p.numel() for p in network.parameters()) > 1e6


def test_the_tables_are_those_of_torchvision_and_ours():
    assert len(DETECTORS) == 12
    assert set(MASK_NETWORKS) == {"maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "mask_rcnn"}
    assert set(KEYPOINT_NETWORKS) == {"keypointrcnn_resnet50_fpn", "keypoint_rcnn"}
    published = set(torchvision.models.list_models(module=torchvision.models.detection))
    ours = {"faster_rcnn", "fcos", "retinanet", "mask_rcnn", "keypoint_rcnn"}
    assert {*DETECTORS, *MASK_NETWORKS, *KEYPOINT_NETWORKS} == published | ours


def test_the_losses_are_those_of_the_network(batch):
    model = build_detector(SMALL).train()
    found = losses_of(model, batch)
    names = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(found) == names
    torch.manual_seed(3)
    expected = model.module(*batch)
    assert {n: v.item() for n, v in found.items()} == {n: v.item() for n, v in expected.items()}
    sum(found.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_crowds_are_not_trained_on(batch):
    images, targets = batch
    model = build_detector(SMALL).train()
    expected = losses_of(model, batch)
    crowd = [
        {
            **target,
            "boxes": torch.cat([target["boxes"], torch.tensor([[0.0, 0.0, 30.0, 30.0]])]),
            "labels": torch.cat([target["labels"], torch.tensor([1])]),
            "iscrowd": torch.cat([target["iscrowd"], torch.tensor([1])]),
        }
        for target in targets
    ]
    assert losses_of(model, (images, crowd)) == expected


@pytest.mark.parametrize(
    "section",
    [
        {"name": "retinanet", "backbone": "resnet10", "fpn_channels": 32},
        {"name": "fcos", "backbone": "resnet10", "fpn_channels": 32},
        {"name": "faster_rcnn", "backbone": "timm/mobilenetv3_small_050", **HEADS},
        {"name": "ssdlite320_mobilenet_v3_large"},
    ],
    ids=lambda section: section["name"] + section.get("backbone", "")[:4],
)
def test_other_detectors_train_and_detect(section, batch):
    model = build_detector({"num_classes": 3, "min_size": 64, **section} if "backbone" in section
                           else {"num_classes": 3, **section}).train()  # fmt: skip
    found = losses_of(model, batch)
    assert all(loss.isfinite() for loss in found.values())
    sum(found.values()).backward()
    with torch.no_grad():
        detections = model.eval().eval_forward(batch)
    assert [set(d) for d in detections] == [{"boxes", "labels", "scores"}] * 4


def test_images_without_objects_train(tmp_path):
    found = content()
    found["annotations"] = found["annotations"][:1]
    batch = batch_of(coco_masks(**write_coco(tmp_path, found)))
    for name in ("mask_rcnn", "retinanet", "fcos"):
        section = {**SMALL, "name": name}
        if name != "mask_rcnn":
            section = {n: v for n, v in section.items() if n not in ("box_head_channels",)}
            section["fpn_channels"] = 32
            section.pop("anchor_sizes")
        build = build_mask_network if name == "mask_rcnn" else build_detector
        assert all(v.isfinite() for v in losses_of(build(section).train(), batch).values())


def test_masks_and_keypoints_have_losses_and_detections(tmp_path):
    arguments = write_coco(tmp_path)
    few = {"box_score_thresh": 0.0, "box_batch_size_per_image": 4, "box_detections_per_img": 4}
    masked = build_mask_network({**SMALL, "name": "mask_rcnn", **few})
    batch = batch_of(coco_masks(**arguments), 2)
    assert losses_of(masked.train(), batch)["loss_mask"] > 0
    with torch.no_grad():
        detections = masked.eval().eval_forward(batch)
    assert detections[0]["masks"].shape[1:] == (1, 56, 48)
    for metric in masked.get_metrics().values():
        masked.update_metric(batch, detections, metric)
        assert 0 <= metric.compute() <= 1 or metric.compute().isnan()
    section = {**SMALL, "name": "keypoint_rcnn", "num_keypoints": 4, **few}
    pointed = build_keypoint_network(section)
    batch = batch_of(coco_keypoints(**arguments), 2)
    assert losses_of(pointed.train(), batch)["loss_keypoint"] > 0
    with torch.no_grad():
        detections = pointed.eval().eval_forward(batch)
    assert detections[0]["keypoints"].shape[1:] == (4, 3)
    for metric in pointed.get_metrics().values():
        pointed.update_metric(batch, detections, metric)
        assert 0 <= metric.compute() <= 1 or metric.compute().isnan()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"name": "mask_rcnn", "mask_head_channels": 0}, "mask_head_channels must be a whole numb"),
        ({"name": "keypoint_rcnn", "keypoint_head_channels": 0}, "keypoint_head_channels must be"),
    ],
)
def test_heads_need_channels(section, says):
    with pytest.raises(ArgumentError, match=says):
        build_network({**SMALL, **section})


def test_heads_have_the_channels_asked_for():
    masked: Any = build_mask_network({**SMALL, "name": "mask_rcnn", "mask_head_channels": 8})
    heads = masked.module.roi_heads
    assert [layer[0].out_channels for layer in heads.mask_head] == [8] * 4
    assert heads.mask_predictor.mask_fcn_logits.out_channels == 4
    section = {**SMALL, "name": "keypoint_rcnn", "num_keypoints": 5, "keypoint_head_channels": 8}
    pointed: Any = build_keypoint_network(section)
    heads = pointed.module.roi_heads
    assert [layer.out_channels for layer in list(heads.keypoint_head)[::2]] == [8] * 8
    assert pointed.num_keypoints == heads.keypoint_predictor.kps_score_lowres.out_channels == 5
    assert masked.num_keypoints == 0
    with pytest.raises(ArgumentError, match="num_keypoints must be a whole number >= 1"):
        build_keypoint_network(section | {"num_keypoints": 0})


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [
        ("resnet18", 5),
        ("timm/resnet18", 5),
        ("timm/efficientnet_b0", 5),
    ],
)
def test_stages_of_backbones(backbone, stages):
    with torch.device("meta"):
        network = build_network({**SMALL, "backbone": backbone})
    found = stages_of(network.backbone.body)
    children = [name for name, _ in network.backbone.body.named_children()]
    assert [name for stage in found for name in stage] == children
    assert len(found) == stages if "efficientnet" not in backbone else len(found) >= 1


def test_a_pretrained_backbone_has_frozen_norms_and_stages_as_in_the_reference(tmp_path):
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "classifier.pt")
    model = build_detector(
        {"name": "fasterrcnn_resnet50_fpn", "weights_backbone": f"{tmp_path}/classifier.pt"}
    )
    with torch.device("meta"):  # as torchvision builds it with weights
        reference = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, trainable_layers=3
        )
    trained = {n for n, p in model.module.backbone.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in reference.named_parameters() if p.requires_grad}
    assert [type(m) for m in model.module.backbone.modules()] == [
        type(m) for m in reference.modules()
    ]


@pytest.mark.parametrize(("frozen", "kind"), [(True, FrozenBatchNorm2d), (False, nn.BatchNorm2d)])
def test_norms_are_frozen_on_request(frozen, kind):
    for name in ("fasterrcnn_resnet50_fpn", "faster_rcnn"):
        with torch.device("meta"):
            network = build_network({"name": name, "frozen_norms": frozen})
        assert type(network.backbone.body.bn1) is kind
        network = network.train()
        assert isinstance(network.backbone.body.layer1[0].bn2, kind)


def classifier(path, attend=None):
    torch.manual_seed(1)
    network = resnet10(num_classes=7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    if attend:
        attend(network)
    torch.save(
        {"state": {"model": {f"module.{n}": t for n, t in network.state_dict().items()}}}, path
    )
    return network


def attend(model):
    apply_eca(model, placement="residual", min_channels=1, include="*layer*")


def test_the_backbone_takes_an_attended_classifier(tmp_path):
    path = f"{tmp_path}/classifier.pt"
    trained = classifier(path, attend)
    model = build_detector({**SMALL, "weights_backbone": path, "trainable_backbone_layers": 2})
    attend(model)
    model.after_surgery()
    body = model.module.backbone.body
    assert len(attended_modules(body)) == 4
    wanted = trained.state_dict()
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert [n for n, p in body.named_parameters() if not p.requires_grad] == [
        n for n, p in body.named_parameters()
        if not n.startswith(("layer3", "layer4")) and ".attention." not in n
    ]  # fmt: skip


def test_a_plain_classifier_leaves_the_attention_as_it_starts(tmp_path):
    path = f"{tmp_path}/classifier.pt"
    trained = classifier(path)
    model = build_detector({**SMALL, "weights_backbone": path})
    attend(model)
    before = model.module.backbone.body.layer1[0].bn2.attention.conv.weight.clone()
    model.after_surgery()
    after = model.module.backbone.body.layer1[0].bn2.attention.conv.weight
    assert torch.equal(before, after)
    assert torch.equal(model.module.backbone.body.conv1.weight, trained.conv1.weight)


def test_attention_that_has_no_place_is_refused(tmp_path):
    path = f"{tmp_path}/classifier.pt"
    classifier(path, attend)
    plain = build_detector({**SMALL, "weights_backbone": path})
    with pytest.raises(CheckpointError, match=r"attention.* is not in the model"):
        plain.after_surgery()
    other = build_detector({**SMALL, "weights_backbone": path})
    apply_squeeze_excite(other, placement="residual", min_channels=1, include="*layer*")
    with pytest.raises(CheckpointError, match="holds weights of a different network"):
        other.after_surgery()


def test_a_whole_network_is_loaded_with_a_new_head(tmp_path, caplog):
    path = f"{tmp_path}/detector.pt"
    trained = build_detector({**SMALL, "num_classes": 20})
    torch.save(trained.state_dict(), path)
    model = build_detector({**SMALL, "weights": path, "frozen_norms": False})
    model.after_surgery()
    head = model.module.roi_heads.box_predictor
    assert head.cls_score.out_features == 4
    assert "keep their initial values" in caplog.text
    assert torch.equal(
        model.module.rpn.head.cls_logits.weight, trained.module.rpn.head.cls_logits.weight
    )
    assert torch.equal(
        model.module.backbone.body.conv1.weight, trained.module.backbone.body.conv1.weight
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_a_fused_detector_computes_the_same(frozen, tmp_path, batch):
    path = f"{tmp_path}/classifier.pt"
    classifier(path, attend)
    section = {**SMALL, "weights_backbone": path, "frozen_norms": frozen}
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = build_detector(section)
        attend(model)
        model.after_surgery()
        if fused:
            fuse_attention(model)
        model.double().train()
        doubled = ([image.double() for image in batch[0]],
                   [{n: t.double() if t.is_floating_point() else t for n, t in target.items()}
                    for target in batch[1]])  # fmt: skip
        found = losses_of(model, doubled)
        sum(found.values()).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append((found, grads))
    (plain, plain_grads), (fused, fused_grads) = results
    assert plain_grads.keys() == fused_grads.keys()
    for name, loss in plain.items():
        torch.testing.assert_close(fused[name], loss, rtol=1e-6, atol=1e-9)
    for name, grad in plain_grads.items():
        torch.testing.assert_close(fused_grads[name], grad, rtol=1e-5, atol=1e-7, msg=name)


def test_the_number_of_classes_is_that_of_the_data_but_with_published_weights():
    assert with_num_classes({"name": "faster_rcnn"}, 3)["num_classes"] == 3
    section = {"name": "fasterrcnn_resnet50_fpn", "weights": "COCO_V1"}
    assert with_num_classes(section, 3) == section
    assert num_classes_of(section) == 90
    assert num_classes_of({"name": "keypointrcnn_resnet50_fpn"}) == 1


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"name": "faster_rcnn", "weights": "COCO_V1"}, "weights of faster_rcnn must be a file"),
        (
            {"name": "fasterrcnn_resnet50_fpn", "weights": "COCO"},
            "must be one of a file, COCO_V1, DEFAULT; got 'COCO'",
        ),
        (
            {"name": "fasterrcnn_resnet50_fpn", "weights_backbone": "IMAGENET"},
            "weights of resnet50 must be one of a file, DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2; got",
        ),
        ({"name": "faster_rcnn", "weights_backbone": "a/b.pt"}, "there is no file 'a/b.pt'"),
        (
            {"name": "faster_rcnn", "backbone": "resnet10", "weights_backbone": "IMAGENET1K_V1"},
            "weights_backbone of resnet10 must be a file",
        ),
        (
            {"name": "faster_rcnn", "backbone": "timm/resnet18", "weights_backbone": "a1"},
            "must be a file or DEFAULT",
        ),
        (
            {"name": "faster_rcnn", "weights": "a.pt", "weights_backbone": "b.pt"},
            "leave out weights_backbone",
        ),
    ],
)
def test_weights_that_do_not_exist(section, says):
    with pytest.raises(ArgumentError, match=says):
        check_weights(section)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"backbone": "resnet5"}, "unknown backbone 'resnet5'; did you mean 'resnet50'"),
        ({"backbone": "timm/resnet5"}, "unknown backbone 'timm/resnet5'"),
        ({"backbone": "timm/vit_tiny_patch16_224"}, "backbone timm/vit_tiny_patch16_224 has "),
        ({"num_classes": 0}, "num_classes must be a whole number >= 1; got 0"),
        ({"anchor_sizes": [8, 16]}, "anchor_sizes must have 5 numbers"),
        ({"anchor_sizes": [8, 16, 32, 64, -1]}, "anchor_sizes must be numbers greater than 0"),
        ({"aspect_ratios": []}, "aspect_ratios must be a list of numbers"),
        ({"trainable_backbone_layers": 6}, "trainable_backbone_layers must be a whole number <= 5"),
        ({"fpn_channels": 0}, "fpn_channels must be a whole number"),
    ],
)
def test_arguments_that_are_not_valid(change, says):
    with torch.device("meta"), pytest.raises(ArgumentError, match=says):
        build_network({**SMALL, **change})


def test_networks_without_a_pyramid_say_what_they_lack():
    with pytest.raises(ArgumentError, match="has no frozen norms: leave out frozen_norms"):
        build_network({"name": "ssdlite320_mobilenet_v3_large", "frozen_norms": True})
    with pytest.raises(ArgumentError, match="must be the name of published weights"):
        build_network({"name": "ssdlite320_mobilenet_v3_large", "weights_backbone": "a/b.pt"})


def test_a_mobilenets_file_fills_its_backbone(tmp_path):
    classifier = torchvision.models.mobilenet_v3_large(num_classes=7)
    apply_eca(classifier, min_channels=1, include="features.5.*")
    torch.save({"state": {"model": classifier.state_dict()}}, tmp_path / "classifier.pt")
    section = {"name": "fasterrcnn_mobilenet_v3_large_320_fpn", "num_classes": 3}
    model: Any = build_detector(section | {"weights_backbone": f"{tmp_path}/classifier.pt"})
    apply_eca(model.module, min_channels=1, include="backbone.body.5.*")
    model.after_surgery()
    own, theirs = model.module.backbone.body.state_dict(), classifier.state_dict()
    assert any(".attention." in key for key in own)
    assert all(torch.equal(weight, theirs[f"features.{key}"]) for key, weight in own.items())
