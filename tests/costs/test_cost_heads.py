"""Detection and segmentation networks: what a plan points out, and what the papers leave out."""

import pytest
import torch
from torchvision.models import detection, segmentation

from composer_attn.functional import plan_eca
from composer_attn.surgery.site_cost import ONE_POSITION

OUTPUT = "its output is the network's output: consider exclude"
LEVELS = "called 5 times in one forward pass, at 8x8, 4x4, 2x2, 1x1"


def build(name, **options):
    return detection.__dict__[name](
        weights=None, weights_backbone=None, min_size=64, max_size=64, **options
    )


def noted(plan) -> dict[str, tuple[str, ...]]:
    return {site.name: site.notes for site in plan.chosen if site.notes}


@pytest.mark.slow
def test_a_head_shared_over_levels_and_its_predictions_are_pointed_out():
    model, example = build("retinanet_resnet50_fpn"), ([torch.rand(3, 64, 64)],)
    plan = plan_eca(model, example=example)
    assert len(plan.chosen) == 63
    convolutions = {
        f"head.{kind}_head.conv.{i}.0": (LEVELS,)
        for kind in ("classification", "regression")
        for i in range(4)
    }
    last = {f"backbone.fpn.extra_blocks.p{i}": (ONE_POSITION,) for i in (6, 7)}
    logits = {"head.classification_head.cls_logits": (LEVELS, OUTPUT)}
    assert noted(plan) == convolutions | logits | last
    boxes = next(site for site in plan.sites if site.name == "head.regression_head.bbox_reg")
    assert (boxes.chosen, boxes.notes) == (False, (LEVELS, OUTPUT))
    shared = next(site for site in plan.chosen if site.name == "head.regression_head.conv.0.0")
    assert shared.cost.macs == 5 * 256 * 5
    assert plan.attended.macs - plan.plain.macs == sum(site.cost.macs for site in plan.sites)
    body = plan_eca(model, exclude=("head.*", "backbone.fpn.*"), example=example)
    assert len(body.chosen) == 46
    assert noted(body) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exclude"),
    [
        ("fasterrcnn_resnet50_fpn", ("rpn.*", "backbone.fpn.*")),
        ("maskrcnn_resnet50_fpn", ("rpn.*", "backbone.fpn.*", "roi_heads.*")),
    ],
)
def test_excluding_all_but_the_body_leaves_the_body_of_resnet_50(name, exclude):
    plan = plan_eca(build(name), exclude=exclude)
    assert len(plan.chosen) == 46
    assert all(site.name.startswith("backbone.body.") for site in plan.chosen)


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "fcn_resnet50"])
def test_the_layer_that_predicts_a_segmentation_is_pointed_out(name):
    model = segmentation.__dict__[name](weights=None, weights_backbone=None, aux_loss=True)
    image = torch.zeros(2, 3, 64, 64)
    plan = plan_eca(model, min_channels=21, example=image)
    # DeepLab's context, pooled to one position.
    context = {"classifier.0.convs.4.1": (ONE_POSITION,)} if "deeplab" in name else {}
    assert noted(plan) == {"classifier.4": (OUTPUT,), "aux_classifier.4": (OUTPUT,), **context}
    body = plan_eca(model, exclude=("classifier.*", "aux_classifier.*"), example=image)
    assert len(body.chosen) == 46
    assert noted(body) == {}
