"""What of a recipe can be scaled, found by building its network."""

import pytest
from torchvision.models import mnasnet1_0

from composer_attn.errors import ConfigError
from composer_attn.runs.models import build_network
from composer_attn.runs.models.efficientnet import Scale
from composer_attn.runs.scaling.dimensions import find_dimensions, scaled
from composer_attn.runs.training.network_cost import count_parameters
from tests.runs.scaling.recipes import recipe

DEPTH = pytest.param("timm/mobilenetv2_100", {"depth": ("depth_multiplier", 1.0)}, id="timm-depth")


@pytest.mark.parametrize(
    ("model", "factors"),
    [
        ("efficientnet", {"depth": ("depth", 1.0), "width": ("width", 1.0)}),
        ("mobilenet_v2", {"width": ("width_mult", 1.0)}),
        ("mobilenet_v3_small", {"width": ("width_mult", 1.0)}),
        ("mnasnet", {"width": ("width_mult", 1.0)}),
        ("timm/rexnet_100", {"depth": ("depth_mult", 1.0), "width": ("width_mult", 1.0)}),
        ("timm/resnetv2_50", {"width": ("width_factor", 1.0)}),
        DEPTH,
    ],
)
def test_any_builder_with_a_depth_or_width_factor_can_be_scaled(model, factors):
    dimensions = find_dimensions(recipe(model={"name": model}))
    assert dimensions.factors == factors
    assert dimensions.names == (*factors, "resolution")


def test_factors_multiply_those_of_the_recipe():
    config = recipe(model={"name": "mobilenet_v2", "width_mult": 0.5}, size=40)
    own = scaled(config, find_dimensions(config), Scale(9.0, 1.5, 1.25))
    assert own.model == {"name": "mobilenet_v2", "width_mult": 0.75}
    assert own.train_dataset["size"] == own.eval_dataset["size"] == 50
    assert config.model["width_mult"] == 0.5


def test_a_compound_coefficient_in_the_recipe_is_where_scaling_starts():
    config = recipe(model={"name": "efficientnet", "phi": 1})
    own = scaled(config, find_dimensions(config), Scale(2.0, 1.5, 1.0))
    assert own.model == {"name": "efficientnet", "phi": 1, "depth": 2.4, "width": 1.65}


def test_resize_follows_the_size_also_where_both_are_defaults():
    config = recipe()
    config.train_dataset = {"name": "image_folder", "root": "train"}
    config.eval_dataset = {"name": "image_folder", "root": "val", "resize": 300}
    own = scaled(config, find_dimensions(config), Scale(1.0, 1.0, 1.5))
    assert (own.train_dataset["size"], own.train_dataset["resize"]) == (336, 384)
    assert (own.eval_dataset["size"], own.eval_dataset["resize"]) == (336, 450)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"name": "resnet10"}, r"^model.name: resnet10 cannot be scaled: .*: efficientnet, mobile"),
        ({"name": "efficientnet_b2"}, r"model: {name: efficientnet, depth: 1.2, width: 1.1}"),
        ({"name": "mnasnet0_5"}, r"instead, model: {name: mnasnet, width_mult: 1.0}"),
        ({"name": "mobilenet_v2", "weights": "DEFAULT"}, r"^model.weights: weights fit one size"),
    ],
)  # fmt: skip
def test_what_cannot_be_scaled_is_refused(model, says):
    with pytest.raises(ConfigError, match=says) as caught:
        find_dimensions(recipe(model=model))
    assert len(str(caught.value).splitlines()) == 1


def test_a_single_dimension_leaves_nothing_to_search():
    config = recipe(model={"name": "mobilenet_v2"})
    config.train_dataset = config.eval_dataset = {"name": "cifar10", "root": "data"}
    with pytest.raises(ConfigError, match="only the width of mobilenet_v2 on cifar10"):
        find_dimensions(config)


def test_our_mnasnet_is_torchvisions_at_any_width():
    ours = build_network({"name": "mnasnet", "num_classes": 7})
    assert count_parameters(ours) == count_parameters(mnasnet1_0(num_classes=7))
    assert count_parameters(build_network({"name": "mnasnet", "width_mult": 0.5})) == 2_218_512
    with pytest.raises(ValueError, match="width_mult must be a number greater than 0; got -1"):
        build_network({"name": "mnasnet", "width_mult": -1})
