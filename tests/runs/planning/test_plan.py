"""Planning for a network by name, or for a run's YAML."""

import csv
import io
import json

import pytest
from rich.console import Console

from composer_attn.errors import ArgumentError, ComposerAttnError
from composer_attn.runs.config.shorthands import parse_number
from composer_attn.runs.planning.network_plan import make_plan, parse_kernel_sizes
from composer_attn.runs.planning.plan_report import as_json, show, write_csv

YAML = """
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 16, num_classes: 10, size: 64}
optimizer: {name: sgd, lr: 0.01}
algorithms: {squeeze_excite: {latent_channels: 16, include: layer4.*}, ema: {half_life: 20ba}}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return str(path)


@pytest.mark.parametrize(
    ("model", "image"),
    [
        ("resnet18", (3, 224, 224)),
        ("simplified_efficientnet", (3, 56, 56)),
        ("efficientnet_b1", (3, 240, 240)),
        ("timm/tf_efficientnet_b1", (3, 240, 240)),
        ("r3d_18", (3, 16, 112, 112)),
        ("regnet_y_400mf", (3, 224, 224)),  # cannot be built on the meta device
    ],
)
def test_the_image_is_by_default_what_a_network_was_made_for(model, image):
    planned = make_plan(model, "eca", {})
    assert (planned.image, planned.batch) == (image, 1)
    assert planned.plan.attended.macs > planned.plan.plain.macs > 0


def test_the_simplified_efficientnet_has_its_known_multiply_accumulates():
    assert make_plan("simplified_efficientnet", "eca", {}).plan.plain.macs == 193_898_304


def test_arguments_image_and_batch_are_passed_on():
    arguments = {"latent_channels": 0.0625, "placement": "residual", "bias": None}
    planned = make_plan("resnet18", "squeeze_excite", arguments, "3x64x96", 2)
    assert planned.arguments == {"latent_channels": 0.0625, "placement": "residual"}
    last = planned.plan.chosen[-1]
    assert (last.name, last.cost.sizes) == ("layer4.1.bn2", ((2, 3),))
    assert last.cost.width == 32
    assert last.cost.macs == 2 * 2 * 512 * 32


def test_a_run_s_yaml_gives_model_image_and_arguments(config):
    planned = make_plan(config, None, {})
    assert (planned.model, planned.algorithm) == ("resnet10", "squeeze_excite")
    assert planned.arguments == {"latent_channels": 16, "include": "layer4.*"}
    assert planned.image == (3, 64, 64)
    assert [site.name for site in planned.plan.chosen] == [
        "layer4.0.conv1", "layer4.0.conv2", "layer4.0.downsample.0",
    ]  # fmt: skip
    other = make_plan(config, None, {"include": ["layer3.*"]}, "3x32x32")
    assert other.arguments == {"latent_channels": 16, "include": ["layer3.*"]}
    assert other.image == (3, 32, 32)
    assert make_plan(config, "eca", {}).arguments == {}


@pytest.mark.slow
def test_a_detection_network_takes_a_list_of_images():
    planned = make_plan("ssdlite320_mobilenet_v3_large", "eca", {}, "3x64x64")
    noted = [site.name for site in planned.plan.sites if site.notes]
    assert "head.classification_head.module_list.0.1" in noted
    extra = sum(site.cost.macs for site in planned.plan.sites)
    assert planned.plan.attended.macs - planned.plan.plain.macs == extra > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet5", "eca", {}), "no model, and no file, named 'resnet5'; nearest: resnet50"),
        (("resnet18", "ecaa", {}), "unknown algorithm 'ecaa'; did you mean 'eca'?"),
        (("resnet18", None, {}), "set --algorithm to squeeze_excite or eca"),
        (("absent.yaml", "eca", {}), "absent.yaml: cannot be read: No such file"),
        (("resnet18", "eca", {"latent_channels": 8}), "unknown argument of eca 'latent_channels'"),
        (
            ("resnet18", "eca", {"min_channels": "x"}),
            "eca.min_channels: must be int or null; got 'x'",
        ),
        (("resnet18", "eca", {"kernel_size": 4}), "kernel_size must be odd"),
        (("resnet18", "eca", {"include": ["nix.*"]}), "include pattern 'nix.*' matches none of 20"),
        (("vgg11", "eca", {"placement": "post"}), "VGG has none that is known"),
        (("resnet18", "eca", {}, "3x"), "image must be CHANNELSxHEIGHTxWIDTH, like 3x224x224"),
        (("resnet18", "eca", {}, "3x0x8"), "image must be CHANNELSxHEIGHTxWIDTH, like 3x224x224"),
        (("resnet18", "eca", {}, "1x64x64"), "conv1, takes (N, 3, H, W), and its weights are"),
        (("resnet18", "eca", {}, "3x8x8x8"), "conv1, takes (N, 3, H, W), and its weights are"),
        (("resnet18", "eca", {}, None, 0), "batch must be a whole number >= 1; got 0"),
    ],
)
def test_mistakes_are_named_with_what_would_be_valid(arguments, message):
    with pytest.raises(ComposerAttnError) as refused:
        make_plan(*arguments)
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["x", "1/0", ""])
def test_a_count_that_is_not_a_number_is_refused(text):
    with pytest.raises(ArgumentError, match="latent_channels must be a number, or like 1/16"):
        parse_number("latent_channels", text)


@pytest.mark.parametrize("texts", [["3", "5"], ["a=x"], ["=3", "5"], ["3.5"]])
def test_kernel_sizes_that_cannot_be_told_apart_are_refused(texts):
    with pytest.raises(ArgumentError, match="or one or more PATTERN=SIZE"):
        parse_kernel_sizes(texts)


def test_one_kernel_size_needs_no_pattern():
    assert parse_kernel_sizes(["7"]) == 7
    assert parse_kernel_sizes(None) is None


def shown(planned, **options) -> list[str]:
    buffer = io.StringIO()
    show(planned, console=Console(file=buffer, width=80), **options)
    return buffer.getvalue().splitlines()


def test_the_table_fits_80_columns_and_ends_with_the_totals(config):
    planned = make_plan(config, None, {})
    lines = shown(planned)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "resnet10, squeeze_excite (latent_channels=16, include=layer4.*)"
    assert lines[1] == "on 1 x 3x64x64, evaluation mode"
    rows = [line.split() for line in lines]
    # The rescaled map of 2x2, the means and scales of 512 channels, 16 behind the ReLU.
    cost = planned.plan.chosen[0].cost
    assert cost.activation_bytes == 4 * (512 * 4 + 512 + 512 + 16)
    share = f"{100 * cost.activation_bytes / planned.plan.attended.activation_bytes:.2f}"
    assert ["layer4.0.conv1", "512", "2x2", "16", "16.4k", "0.33", "16.4k", "0.01", share] in rows
    assert "3 of 12 candidates chosen" in lines
    assert "  6 passed over: not in include" in lines
    assert "  3 passed over: fewer channels than min_channels=128" in lines
    assert not any(line.startswith("layer2") for line in lines)
    assert rows[-3][:3] == ["plain", "4,910,922", "72,553,472"]
    added = 3 * 2 * 512 * 16
    assert rows[-2][:4] == [
        "with",
        "attention",
        f"{4_910_922 + added:,}",
        f"{72_553_472 + added:,}",
    ]
    assert rows[-1][0] == f"+{added / 4_910_922:.2%}"


def test_passed_over_sites_are_listed_when_asked_for(config):
    lines = shown(make_plan(config, None, {}), everything=True)
    assert ["layer2.0.conv1", "128", "8x8", *"------"] in [line.split() for line in lines]


def test_long_names_cost_a_column_before_they_cost_a_line():
    planned = make_plan("deeplabv3_resnet50", "eca", {"min_channels": 21}, "3x64x64")
    lines = shown(planned)
    assert max(map(len, lines)) <= 80
    header = next(line.split() for line in lines if line.startswith("site"))
    assert header == ["site", "chan", "size", "kernel", "params", "MACs", "MiB", "%", "note"]
    row = next(line.split() for line in lines if line.startswith("classifier.4"))
    assert (row[1], row[-1]) == ("21", "[2]")
    assert "[2] its output is the network's output: consider exclude" in lines


def test_json_is_one_document_of_everything(config):
    planned = make_plan(config, None, {})
    document = json.loads(as_json(planned))
    assert document["model"] == "resnet10"
    assert document["image"] == [3, 64, 64]
    assert document["attended"]["parameters"] == planned.plan.attended.parameters
    assert len(document["sites"]) == 12
    site = document["sites"][-1]
    assert (site["name"], site["sizes"], site["macs"]) == (
        "layer4.0.downsample.0", [[2, 2]], 2 * 512 * 16
    )  # fmt: skip


def test_csv_has_a_header_and_one_row_a_site(config, capsys):
    planned = make_plan(config, None, {})
    write_csv(planned)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == [site.name for site in planned.plan.sites]
    assert [row["chosen"] for row in rows].count("True") == 3
    assert (rows[-1]["sizes"], rows[-1]["macs"]) == ("2x2", str(2 * 512 * 16))
    assert rows[0]["reason"] == "fewer channels than min_channels=128"


@pytest.mark.parametrize(
    ("data", "width"),
    [
        ("{name: digits, split: train}", 10),
        ("{name: cifar100, root: x, split: train}", 100),
        ("{name: synthetic, num_classes: 7, size: 32}", 7),
        ("{name: image_folder, root: x, augmentation: resnet, size: 32}", 1000),  # not read
    ],
)
def test_a_runs_network_is_planned_as_wide_as_its_data(data, width, tmp_path):
    optimizer = "optimizer: {name: sgd, lr: 0.1}"
    text = f"model: resnet10\ntrain_dataset: {data}\n{optimizer}\n"
    (tmp_path / "run.yaml").write_text(text)
    planned = make_plan(str(tmp_path / "run.yaml"), "eca", {})
    resnet10 = 4_905_792  # without its last layer
    assert planned.plan.plain.parameters == resnet10 + 513 * width


def test_a_network_that_only_its_task_knows_is_planned(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        """
task: semantic_segmentation
model: {name: lraspp, backbone: resnet10, num_classes: 4}
train_dataset: {name: shapes_segmentation, split: train, size: 32}
optimizer: {name: sgd, lr: 0.01}
algorithms: {eca: {include: backbone.layer4.*, min_channels: 1}}
"""
    )
    plan = make_plan(str(path), None, {})
    chosen = [site.name for site in plan.plan.chosen]
    assert chosen
    assert all(name.startswith("backbone.layer4.") for name in chosen)
